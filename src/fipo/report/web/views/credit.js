// The credit view: one completion, a group's completions, or one completion across updates.

import { byId, download, make, makeNotice, setAria, showString } from "../dom.js";
import { formatCount, formatNumber, formatReward } from "../format.js";
import { background, isContribution, isRecorded, scaleOf, scaledValues, valueAt, valuesOf } from "../model/channels.js";
import { markOf } from "../model/credit.js";
import { tracesAsCsv } from "../model/csv.js";
import { clamp } from "../model/fipo.js";
import { groupOf, updatesOf } from "../model/groups.js";
import { openTrace } from "../model/traces.js";
import { change, report, state, writeHash } from "../state.js";
import { showArithmetic } from "./arithmetic.js";
import { closePanes, LINE_HEIGHT, openPanes, repaint, TokenPane } from "./tokens.js";

/** @import { Changed, Scale, Trace } from "../types.js" */

/** @typedef {{ trace: Trace, t: number }} Token */

/** @type {Token | null} */
let hovered = null; // while the pointer is on a token

export function setUpCredit() {
  report.channels.forEach(({ name, label, help }, i) => {
    const button = make("button", { title: `${help}; key ${i + 1}` }, label);
    button.dataset.channel = name;
    button.addEventListener("click", () => change({ channel: name }));
    byId("channels").append(button);
    byId("help-channels").append(make("tr", {}, make("td", {}, make("kbd", {}, String(i + 1))), make("td", {}, `colour by ${label}: ${help}`)));
  });
  for (const button of modeButtons()) button.addEventListener("click", () => change({ mode: button.dataset.mode }));
  const stage = byId("stage");
  stage.addEventListener("pointerover", (event) => pointAt(tokenOf(event)));
  stage.addEventListener("pointerleave", () => pointAt(null));
  stage.addEventListener("click", onTokenClick);
  for (const name of Object.keys(report.flags)) addToLegend(name, markOf(name));
  addToLegend("untrained", "");
  byId("export-csv").addEventListener("click", () => {
    download("fipo-view.csv", new Blob([tracesAsCsv(report, stagedTraces(), state.knobs)], { type: "text/csv" }));
  });
}

/** @type {() => NodeListOf<HTMLButtonElement>} */
const modeButtons = () => document.querySelectorAll("#modes button");

/** @type {(name: string, mark: string) => void} */
function addToLegend(name, mark) {
  const example = make("span", { className: `token ${name}` }, "ab");
  if (mark) example.dataset.marks = mark;
  byId("marks").append(make("span", {}, example, ` ${name}`));
}

/** @type {(event: Event) => Token | null} */
function tokenOf(event) {
  const element = event.target instanceof Element ? event.target.closest(".token") : null;
  const column = element?.closest("[data-trace]");
  if (!(element instanceof HTMLElement) || !(column instanceof HTMLElement)) return null;
  return { trace: openTrace(report, Number(column.dataset.trace)), t: Number(element.dataset.t) };
}

/** @type {(token: Token | null) => void} */
function pointAt(token) {
  hovered = token;
  drawDetails();
}

/** @type {(event: Event) => void} */
function onTokenClick(event) {
  const token = tokenOf(event);
  if (!token) return;
  const again = token.trace.index === state.at && token.t === state.selected;
  change({ at: token.trace.index, active: token.t, selected: again ? null : token.t });
}

/** Indices of the traces on the stage, the present one among them. @type {() => number[]} */
function stagedTraces() {
  if (state.mode === "group") return groupOf(report.traces, state.at);
  if (state.mode === "updates") return updatesOf(report, state.at);
  return [state.at];
}

/** @type {(changed: Changed) => void} */
export function drawCredit(changed) {
  const stale = changed("mode", "tab") || (changed("at") && (state.mode === "one" || !openPanes.has(state.at)));
  if (stale) drawStage();
  else repaint();
  if (changed("at", "tab")) {
    hovered = null;
    const { prompt } = report.traces[state.at];
    showString(byId("prompt"), report.prompts[prompt] || "(no prompt recorded)");
  }
  if (changed("at", "tab", "mode")) drawModes();
  for (const [index, pane] of openPanes) setAria(columnOf(pane), { current: index === state.at });
  if (changed("at") && !stale && state.active === null) revealColumn();
  drawChannels();
  drawDetails();
  if (stale && state.active !== null) openPanes.get(state.at)?.reveal(state.active);
}

function drawStage() {
  closePanes();
  const stage = byId("stage");
  const indices = stagedTraces();
  stage.className = indices.length > 1 ? "columns" : "";
  const first = state.mode === "updates" ? openTrace(report, indices[0]) : null;
  stage.replaceChildren(...indices.map((index) => makeColumn(openTrace(report, index), stage, first)));
  stage.scrollTop = 0;
  if (indices.length > 1) revealColumn();
}

/** @type {(pane: TokenPane) => Element} */
const columnOf = (pane) => /** @type {Element} */ (pane.element.parentElement);

function revealColumn() {
  const pane = openPanes.get(state.at);
  if (pane) columnOf(pane).scrollIntoView({ block: "nearest", inline: "nearest" });
}

/** `first`: the trace that this one is compared with. @type {(trace: Trace, scroller: Element, first: Trace | null) => HTMLElement} */
function makeColumn(trace, scroller, first) {
  const { element } = new TokenPane(trace, scroller);
  element.role = "listbox";
  element.tabIndex = 0;
  setAria(element, { label: `completion of sample ${trace.facts.sample}, one option a token` });
  element.addEventListener("focus", () => state.at === trace.index && state.active === null && activateToken(0));
  if (trace.length === 0) element.textContent = "This completion is empty.";
  const column = make("article", {}, makeHead(trace), element);
  if (first && first !== trace) column.firstElementChild?.append(make("p", { className: "change" }, changeSince(first, trace)));
  column.dataset.trace = String(trace.index);
  return column;
}

/** @type {(trace: Trace) => HTMLElement} */
function makeHead(trace) {
  const { facts } = trace;
  const name = `${facts.run} · rollout ${facts.rollout} · update ${facts.update} · group ${facts.group} · sample ${facts.sample}`;
  const parts = Object.entries(facts.rewards).map(([name, value]) => `${name} ${formatNumber(value, 3)}`);
  const outcome = `${formatReward(facts)}${parts.length ? ` (${parts.join(", ")})` : ""}`;
  const ending = [facts.stop_reason && `ended: ${facts.stop_reason}`, facts.truncated && "truncated", facts.dropped && "dropped"];
  const line = [outcome, `${formatCount(trace.length)} tokens`, ...ending].filter(Boolean).join(" · ");
  const head = make("header", {}, showString(make("h3"), name), showString(make("p", { className: "faint" }), line));
  if (!trace.logRatio) head.append(makeNotice("This trace has no log-ratio, so its credit cannot be recovered; the report shows what its source recorded."));
  else if (!trace.made.known) head.append(makeNotice("The knobs of this run are not recorded; the report shows fipo's defaults."));
  return head;
}

/** What changed on the same tokens. @type {(first: Trace, trace: Trace) => string} */
function changeSince(first, trace) {
  const parts = ["weight", "log_ratio"].map((name) => {
    const [before, now] = [first, trace].map((each) => valuesOf(each, name, state.knobs));
    const changes = Array.from(trace.trained, (trained, t) => (trained ? Math.abs(now(t) - before(t)) : NaN)).filter((change) => !Number.isNaN(change));
    const mean = changes.reduce((sum, change) => sum + change, 0) / changes.length;
    return `${name} ${changes.length ? formatNumber(mean, 3) : "unknown"}`;
  });
  return `mean change from the first column: ${parts.join(", ")}`;
}

function drawModes() {
  const sizes = new Map([["group", groupOf(report.traces, state.at).length], ["updates", updatesOf(report, state.at).length]]);
  for (const button of modeButtons()) {
    const { mode = "", label } = button.dataset;
    const size = sizes.get(mode);
    setAria(button, { pressed: mode === state.mode });
    if (size === undefined) continue;
    button.disabled = size < 2 && mode !== state.mode;
    button.textContent = `${label} (${size})`;
  }
}

function drawChannels() {
  for (const button of /** @type {NodeListOf<HTMLButtonElement>} */ (document.querySelectorAll("#channels button"))) {
    setAria(button, { pressed: button.dataset.channel === state.channel });
    const { channel = "" } = button.dataset;
    button.hidden = !isRecorded(report, channel) && state.channel !== channel;
  }
  const trace = openTrace(report, state.at);
  const scale = scaleOf(report, trace, state);
  const notes = [];
  if (isContribution(scale)) notes.push(` to future_kl of token ${state.selected}; Esc goes back`);
  else if (trace.length && Number.isNaN(scaledValues(trace, scale, state)(0))) notes.push(" unknown for this trace");
  byId("legend").replaceChildren(`${scale.label} `, ...legendSwatches(scale), ...notes);
}

/** @type {(scale: Scale) => HTMLElement[]} */
function legendSwatches(scale) {
  const positions = scale.neutral === null ? [0, 0.25, 0.5, 0.75, 1] : [-1, -0.5, 0, 0.5, 1];
  return positions.map((position) => {
    const edge = Math.abs(position) === 1 ? (position < 0 ? "≤ " : "≥ ") : "";
    const value = valueAt(scale, position);
    const swatch = make("span", { className: "swatch" }, edge + formatNumber(value, 3));
    swatch.style.background = background(scale, value);
    return swatch;
  });
}

function drawDetails() {
  const { trace, t } = hovered ?? { trace: openTrace(report, state.at), t: state.active };
  showArithmetic(trace, t, state.knobs);
}

/** The keyboard goes to the present completion. */
export const focusTokens = () => openPanes.get(state.at)?.element.focus({ preventScroll: true });

/** Moves the keyboard's token. @type {(t: number) => void} */
export function activateToken(t) {
  const pane = openPanes.get(state.at);
  const before = state.active;
  if (!pane || pane.trace.length === 0) return;
  hovered = null;
  state.active = clamp(t, 0, pane.trace.length - 1);
  pane.reveal(state.active);
  if (before !== null) pane.repaintToken(before);
  pane.repaintToken(state.active);
  setAria(pane.element, { activedescendant: `token-${state.at}-${state.active}` });
  drawDetails();
  writeHash();
}

/** So many tokens on, or to the first. @type {(tokens: number) => void} */
export const stepToken = (tokens) => activateToken(state.active === null ? 0 : state.active + tokens);

/** To the next or previous line. @type {(direction: 1 | -1) => void} */
export const stepLine = (direction) => activateToken(state.active === null ? 0 : tokenOnLine(state.active, direction));

/**
 * The token on the next or previous line that lies nearest, or a step of ten where there is none in sight.
 * @type {(active: number, direction: 1 | -1) => number}
 */
function tokenOnLine(active, direction) {
  const pane = openPanes.get(state.at);
  const here = pane?.tokenElement(active)?.getBoundingClientRect();
  let best = null;
  for (let t = active + direction; pane && here && t >= 0 && t < pane.trace.length; t += direction) {
    const there = pane.tokenElement(t)?.getBoundingClientRect();
    if (!there) break;
    const lines = ((there.top - here.top) * direction) / LINE_HEIGHT;
    if (lines > 1.6 && best) break;
    if (lines < 0.6) continue;
    const distance = Math.abs(there.left - here.left);
    if (!best || distance < best.distance) best = { t, distance };
  }
  return best ? best.t : active + 10 * direction;
}
