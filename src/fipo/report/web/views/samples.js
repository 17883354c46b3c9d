// The list of samples: filters, and a list that holds only the rows in sight.

import { byId, inputById, make, setAria, showString } from "../dom.js";
import { formatCount, formatReward } from "../format.js";
import { plainName } from "../model/decode.js";
import { filterTraces, followsKnobs, NO_FILTERS, TRACE_FLAGS } from "../model/filters.js";
import { clamp } from "../model/fipo.js";
import { sortTraces } from "../model/groups.js";
import { change, report, SORTS, state } from "../state.js";

/** @import { Changed, Facts, Filters } from "../types.js" */

const ROW_HEIGHTS = { oneRun: 50, severalRuns: 70 }; // pixels; two or three lines
const TYPING_PAUSE = 120; // ms: a search through a million tokens takes a moment
/** @type {Filters} the inputs' ids */
const FIELDS = {
  run: "filter-run", text: "filter-text", rewardMin: "filter-reward-min", rewardMax: "filter-reward-max",
  sign: "filter-sign", flag: "filter-flag", lengthMin: "filter-length-min", lengthMax: "filter-length-max",
};
/** @type {Record<string, string>} */
const ORDERS = { "": "as trained", reward: "reward", spread: "spread of weights", length: "length" };
let rowHeight = ROW_HEIGHTS.oneRun;
/** @type {Facts[]} */
let listed = []; // the traces whose runs can be chosen
let typing = 0; // the timer of a pause
/** @type {number[]} */
let passing = []; // indices of the traces that pass the filters

export function setUpSamples() {
  const flags = [...TRACE_FLAGS, ...Object.keys(report.flags)];
  addOptions("filter-flag", [["", "any marks"], ...flags.map((name) => [name, name])]);
  for (const id of Object.values(FIELDS)) {
    byId(id).addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => change({ filters: typedFilters() }), TYPING_PAUSE);
    });
  }
  byId("filter-reset").addEventListener("click", () => {
    clearTimeout(typing);
    change({ filters: NO_FILTERS });
  });
  addOptions("sort", SORTS.map((name) => [name, ORDERS[name]]));
  byId("sort").addEventListener("change", () => change({ sort: byId("sort", HTMLSelectElement).value }));
  byId("samples").addEventListener("scroll", drawRows, { passive: true });
  new ResizeObserver(drawRows).observe(byId("samples"));
}

/** The runs that can be chosen are those of the traces at hand. */
function listRuns() {
  if (listed === report.traces) return;
  listed = report.traces;
  const runs = [...new Set(report.traces.map((facts) => facts.run))];
  rowHeight = runs.length > 1 ? ROW_HEIGHTS.severalRuns : ROW_HEIGHTS.oneRun;
  byId("filter-run").replaceChildren();
  addOptions("filter-run", [["", "all runs"], ...runs.map((run) => [run, plainName(run)])]);
  if (!runs.includes(state.filters.run)) state.filters = { ...state.filters, run: "" };
}

/** @type {(id: string, options: string[][]) => void} */
function addOptions(id, options) {
  byId(id).append(...options.map(([value, label]) => new Option(label, value)));
}

/** @type {() => Filters} */
function typedFilters() {
  const typed = Object.entries(FIELDS).map(([name, id]) => [name, /** @type {HTMLInputElement} */ (byId(id)).value]);
  return Object.fromEntries(typed);
}

/** @type {(changed: Changed) => void} */
export function drawSamples(changed) {
  if (changed("filters", "sort") || (changed("knobs") && followsKnobs(state.filters))) applyFilters();
  if (state.tab !== "credit" || !changed("at", "tab")) return;
  revealRow(state.at);
  drawRows();
}

function applyFilters() {
  listRuns();
  for (const [name, value] of Object.entries(state.filters)) {
    const input = /** @type {HTMLInputElement} */ (byId(FIELDS[/** @type {keyof Filters} */ (name)]));
    if (input.value !== value && input !== document.activeElement) input.value = value; // what is being typed comes next
  }
  passing = sortTraces(report, filterTraces(report, state.filters, state.knobs), state.sort);
  byId("sort", HTMLSelectElement).value = state.sort;
  const all = report.traces.length;
  byId("sample-count").textContent = passing.length === all ? `${all} traces` : `${passing.length} of ${all} traces`;
  byId("sample-rows").style.height = `${passing.length * rowHeight}px`;
  drawRows();
}

function drawRows() {
  const scroller = byId("samples");
  const first = Math.max(0, Math.floor(scroller.scrollTop / rowHeight) - 4);
  const last = Math.ceil((scroller.scrollTop + scroller.clientHeight) / rowHeight) + 4;
  const rows = passing.slice(first, last).map((index, i) => makeRow(index, first + i));
  byId("sample-rows").replaceChildren(...rows);
  const active = rows.find((row) => Number(row.dataset.index) === state.at);
  if (active) setAria(scroller, { activedescendant: active.id });
  else scroller.removeAttribute("aria-activedescendant");
}

/** @type {(index: number, place: number) => HTMLElement} */
function makeRow(index, place) {
  const facts = report.traces[index];
  const title = `rollout ${facts.rollout} · sample ${facts.sample} · update ${facts.update}`;
  const line = `${formatReward(facts)} · ${formatCount(facts.length)} tokens${facts.dropped ? " · dropped" : ""}`;
  const row = make(
    "div", { className: "row", id: `row-${index}`, role: "option" },
    make("div", {}, title), make("div", { className: "faint" }, line),
  );
  row.dataset.index = String(index);
  setAria(row, { selected: index === state.at, posinset: place + 1, setsize: passing.length });
  row.style.top = `${place * rowHeight}px`;
  row.style.height = `${rowHeight}px`;
  if (rowHeight === ROW_HEIGHTS.severalRuns) row.prepend(showString(make("div"), facts.run));
  row.addEventListener("click", () => goTo(index));
  return row;
}

/** @type {(index: number) => void} */
function revealRow(index) {
  const scroller = byId("samples");
  const top = passing.indexOf(index) * rowHeight;
  if (top < 0) return;
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  const hidden = top + rowHeight - (scroller.scrollTop + scroller.clientHeight);
  if (hidden > 0) scroller.scrollTop += hidden;
}

/** To a trace so many places on, among those that pass the filters. @type {(places: number) => void} */
export function stepSample(places) {
  if (passing.length === 0) return;
  const place = passing.indexOf(state.at);
  goTo(passing[place < 0 ? 0 : clamp(place + places, 0, passing.length - 1)]);
}

/** @type {(index: number) => void} */
const goTo = (index) => change({ at: index, selected: null, active: null });

export function focusSearch() {
  if (state.tab !== "credit") change({ tab: "credit" });
  byId("filters", HTMLDetailsElement).open = true;
  inputById("filter-text").focus();
}
