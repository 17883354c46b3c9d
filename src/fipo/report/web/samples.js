// The list of samples: filters, and a list that holds only the rows in sight.

const ROW_HEIGHTS = { oneRun: 50, severalRuns: 70 }; // pixels; two or three lines
let rowHeight = ROW_HEIGHTS.oneRun;
const NO_FILTERS = { run: "", text: "", rewardMin: "", rewardMax: "", sign: "", flag: "", lengthMin: "", lengthMax: "" };
const FILTER_FIELDS = {
  run: "filter-run", text: "filter-text", rewardMin: "filter-reward-min", rewardMax: "filter-reward-max",
  sign: "filter-sign", flag: "filter-flag", lengthMin: "filter-length-min", lengthMax: "filter-length-max",
};
let shown = []; // indices of the traces that pass the filters

function passes(facts, index, filters) {
  const { run, text, rewardMin, rewardMax, sign, flag, lengthMin, lengthMax } = filters;
  return (
    (run === "" || facts.run === run) &&
    within(facts.reward, rewardMin, rewardMax) &&
    within(facts.length, lengthMin, lengthMax) &&
    (sign === "" || facts.sign === Number(sign)) &&
    (flag === "" || hasFlag(facts, index, flag)) &&
    (text === "" || searchText(openTrace(index)).includes(text.toLowerCase()))
  );
}

function within(value, least, greatest) {
  if (least === "" && greatest === "") return true;
  if (value === null) return false;
  return (least === "" || value >= Number(least)) && (greatest === "" || value <= Number(greatest));
}

function hasFlag(facts, index, flag) {
  if (flag === "untrained") return openTrace(index).trained.some((trained) => !trained);
  if (flag === "dropped" || flag === "truncated") return facts[flag] === true;
  const live = LIVE_FLAGS.includes(flag) && openTrace(index).logRatio;
  return live ? hasLiveFlag(openTrace(index), flag) : (facts.anyFlags & page.flags[flag]) !== 0;
}

// Both live flags need a large ratio, which few traces have.
function hasLiveFlag(trace, flag) {
  const knobs = knobsOf(trace);
  const limit = Math.log(Math.min(knobs.dual_clip_c, knobs.safety_thresh));
  return trace.logRatio.some((logRatio, t) => logRatio > limit && flagsOf(trace, t).includes(flag));
}

function setUpFilters() {
  const runs = [...new Set(page.traces.map((facts) => facts.run))];
  if (runs.length > 1) rowHeight = ROW_HEIGHTS.severalRuns;
  fillOptions(document.getElementById("filter-run"), [["", "all runs"], ...runs.map((run) => [run, visible(run)])]);
  const flags = ["dropped", "truncated", "untrained", ...Object.keys(page.flags)];
  fillOptions(document.getElementById("filter-flag"), [["", "any marks"], ...flags.map((name) => [name, name])]);
  for (const id of Object.values(FILTER_FIELDS)) {
    document.getElementById(id).addEventListener("input", () => later(() => change({ filters: typedFilters() })));
  }
  document.getElementById("filter-reset").addEventListener("click", () => {
    clearTimeout(laterTimer);
    change({ filters: NO_FILTERS });
  });
  const scroller = document.getElementById("samples");
  scroller.addEventListener("scroll", drawRows, { passive: true });
  new ResizeObserver(drawRows).observe(scroller);
}

function fillOptions(select, options) {
  for (const [value, label] of options) select.append(new Option(label, value));
}

const visible = (string) => plainText(decodeString(string, 80));

function typedFilters() {
  const fields = Object.entries(FILTER_FIELDS);
  return Object.fromEntries(fields.map(([name, id]) => [name, document.getElementById(id).value]));
}

// Typing is answered when it pauses: a search through a million tokens takes a moment.
let laterTimer = 0;
function later(work) {
  clearTimeout(laterTimer);
  laterTimer = setTimeout(work, 120);
}

function applyFilters() {
  for (const [name, id] of Object.entries(FILTER_FIELDS)) {
    const input = document.getElementById(id);
    if (input.value !== state.filters[name]) input.value = state.filters[name];
  }
  shown = page.traces.flatMap((facts, index) => (passes(facts, index, state.filters) ? [index] : []));
  const all = page.traces.length;
  document.getElementById("sample-count").textContent =
    shown.length === all ? `${all} traces` : `${shown.length} of ${all} traces`;
  document.getElementById("sample-rows").style.height = `${shown.length * rowHeight}px`;
  drawRows();
}

function drawRows() {
  const scroller = document.getElementById("samples");
  const first = Math.max(0, Math.floor(scroller.scrollTop / rowHeight) - 4);
  const last = Math.min(shown.length, Math.ceil((scroller.scrollTop + scroller.clientHeight) / rowHeight) + 4);
  const rows = shown.slice(first, last).map((index, i) => makeRow(index, first + i));
  document.getElementById("sample-rows").replaceChildren(...rows);
  const active = rows.find((row) => Number(row.dataset.index) === state.at);
  if (active) scroller.setAttribute("aria-activedescendant", active.id);
  else scroller.removeAttribute("aria-activedescendant");
}

function makeRow(index, place) {
  const facts = page.traces[index];
  const row = document.createElement("div");
  row.className = "row";
  row.id = `row-${index}`;
  row.dataset.index = index;
  row.setAttribute("role", "option");
  row.setAttribute("aria-selected", index === state.at);
  row.setAttribute("aria-posinset", place + 1);
  row.setAttribute("aria-setsize", shown.length);
  row.style.top = `${place * rowHeight}px`;
  row.style.height = `${rowHeight}px`;
  const title = document.createElement("div");
  title.textContent = `rollout ${facts.rollout} · sample ${facts.sample} · update ${facts.update}`;
  const line = document.createElement("div");
  line.className = "faint";
  line.textContent = `${rewardText(facts)} · ${facts.length.toLocaleString("en")} tokens${facts.dropped ? " · dropped" : ""}`;
  row.append(title, line);
  if (rowHeight === ROW_HEIGHTS.severalRuns) row.prepend(showString(document.createElement("div"), facts.run));
  row.addEventListener("click", () => go(index));
  return row;
}

const rewardText = (facts) => `reward ${number(facts.reward, 3)} · A ${advantageText(facts)}`;
const SIGNS = { "-1": "negative", 0: "zero", 1: "positive" };
const advantageText = (facts) => (facts.advantage === null ? SIGNS[facts.sign] ?? "unknown" : number(facts.advantage, 3));

function revealRow(index) {
  const scroller = document.getElementById("samples");
  const top = shown.indexOf(index) * rowHeight;
  if (top < 0) return;
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  const hidden = top + rowHeight - (scroller.scrollTop + scroller.clientHeight);
  if (hidden > 0) scroller.scrollTop += hidden;
}

// The next or previous trace among those that pass the filters.
function step(direction) {
  if (shown.length === 0) return;
  const place = shown.indexOf(state.at);
  const next = place < 0 ? 0 : clamp(place + direction, 0, shown.length - 1);
  go(shown[next]);
}

const go = (index) => change({ at: index, selected: null, active: null });
