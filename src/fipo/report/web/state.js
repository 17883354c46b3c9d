// What the reader sees: the report, the view of it, and the address that names the view.

import { channelOf, FIRST_CHANNEL } from "./model/channels.js";
import { NO_FILTERS } from "./model/filters.js";
import { readKnob } from "./model/knobs.js";
import { emptyReport } from "./model/report.js";

/** @import { Changed, Filters, Moved, Report, View } from "./types.js" */

export const TABS = ["curves", "credit", "summary"];
const MODES = ["one", "group", "updates"];
export const SORTS = ["", "reward", "spread", "length"];
export const MOVABLE_KNOBS = ["decay_rate", "clip_ratio_low", "clip_ratio_high", "safety_thresh", "clip_high_only", "distance"];
/** @type {View} */
const START = { tab: "", at: -1, mode: "one", watched: "", sort: "", channel: FIRST_CHANNEL, selected: null, active: null, filters: NO_FILTERS, knobs: {} };

/** Filled once, by main.js. */
export const report = emptyReport();
/** @type {View} */
export const state = { ...START };
/** @type {((changed: Changed) => void)[]} */
const listeners = [];

/** @type {(listener: (changed: Changed) => void) => void} */
export const onChange = (listener) => void listeners.push(listener);

/** Every change of what is shown goes through here. @type {(changes: Partial<View>) => void} */
export function change(changes) {
  const before = { ...state };
  apply(changes, (...names) => names.some((name) => before[name] !== state[name]));
}

/** Draws everything again, for data that changed. @type {(changes: Partial<View>) => void} */
export const redraw = (changes) => apply(changes, () => true);

/** @type {(changes: Partial<View>, changed: Changed) => void} */
function apply(changes, changed) {
  Object.assign(state, changes);
  for (const listener of listeners) listener(changed);
  writeHash();
}

/** Names the view in the address bar. */
export const writeHash = () => history.replaceState(null, "", `#${hashOf(state)}`);

/** @type {(report: Report) => string[]} */
export const tabsOf = (report) => TABS.filter((name) => (name === "curves" ? report.charts : report.traces.length > 0));

/** The address of a view: whoever opens it sees the same. @type {(view: View) => string} */
export function hashOf(view) {
  const parts = new URLSearchParams();
  for (const name of /** @type {const} */ (["tab", "at", "mode", "watched", "sort", "channel", "selected", "active"])) {
    if (view[name] !== START[name]) parts.set(name, String(view[name]));
  }
  for (const [name, value] of Object.entries(view.filters)) if (value !== "") parts.set(`filter.${name}`, value);
  for (const [name, value] of Object.entries(view.knobs)) parts.set(`knob.${name}`, String(value));
  return parts.toString();
}

/**
 * The view of an address. What it does not name, or names wrongly, is as at the start, on the trace `opening`.
 * @type {(hash: string, report: Report, opening: number) => View}
 */
export function viewOf(hash, report, opening) {
  const parts = new URLSearchParams(hash);
  const at = wholeNumber(parts.get("at"), report.traces.length) ?? opening;
  const length = report.traces[at]?.length ?? 0;
  return {
    tab: oneOf(tabsOf(report), parts.get("tab")), at, mode: oneOf(MODES, parts.get("mode")),
    watched: /^\d{1,3}\.\d{1,9}$/.test(parts.get("watched") ?? "") ? parts.get("watched") ?? "" : "",
    sort: oneOf(SORTS, parts.get("sort")), channel: channelOf(report, parts.get("channel"))?.name ?? FIRST_CHANNEL,
    selected: wholeNumber(parts.get("selected"), length), active: wholeNumber(parts.get("active"), length),
    filters: filtersOf(parts), knobs: movedOf(parts, report),
  };
}

/** @type {(parts: URLSearchParams) => Filters} */
function filtersOf(parts) {
  const named = Object.entries(NO_FILTERS).map(([name, all]) => [name, parts.get(`filter.${name}`) ?? all]);
  return Object.fromEntries(named);
}

/** @type {(parts: URLSearchParams, report: Report) => Moved} */
function movedOf(parts, report) {
  const named = MOVABLE_KNOBS.map((name) => [name, readKnob(report.about.knobs[name], parts.get(`knob.${name}`) ?? "")]);
  return Object.fromEntries(named.filter(([, value]) => value !== undefined));
}

/** @type {(names: string[], name: string | null) => string} */
const oneOf = (names, name) => (name !== null && names.includes(name) ? name : names[0]);

/** @type {(text: string | null, end: number) => number | null} */
function wholeNumber(text, end) {
  const value = Number(text);
  return text !== null && text !== "" && Number.isInteger(value) && value >= 0 && value < end ? value : null;
}
