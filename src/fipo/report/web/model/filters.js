// Which traces pass the filters.

import { flagsOf, knobsOf, LIVE_FLAGS } from "./credit.js";
import { isMeasured, openTrace, searchText } from "./traces.js";

/** @import { Filters, MeasuredTrace, Moved, Report } from "../types.js" */

export const NO_FILTERS = { run: "", text: "", rewardMin: "", rewardMax: "", sign: "", flag: "", lengthMin: "", lengthMax: "" };
export const TRACE_FLAGS = ["dropped", "truncated", "untrained"]; // beside those of tokens

/** Indices of the traces that pass. @type {(report: Report, filters: Filters, moved: Moved) => number[]} */
export function filterTraces(report, filters, moved) {
  return report.traces.flatMap((_, index) => (passes(report, index, filters, moved) ? [index] : []));
}

/** Whether the knobs decide what passes. @type {(filters: Filters) => boolean} */
export const followsKnobs = (filters) => LIVE_FLAGS.includes(filters.flag);

/** @type {(report: Report, index: number, filters: Filters, moved: Moved) => boolean} */
function passes(report, index, filters, moved) {
  const facts = report.traces[index];
  const { run, text, rewardMin, rewardMax, sign, flag, lengthMin, lengthMax } = filters;
  return (
    (run === "" || facts.run === run) &&
    within(facts.reward, rewardMin, rewardMax) &&
    within(facts.length, lengthMin, lengthMax) &&
    (sign === "" || facts.sign === Number(sign)) &&
    (flag === "" || hasFlag(report, index, flag, moved)) &&
    (text === "" || searchText(openTrace(report, index)).includes(text.toLowerCase()))
  );
}

/** @type {(value: number | null, least: string, greatest: string) => boolean} */
function within(value, least, greatest) {
  if (least === "" && greatest === "") return true;
  if (value === null) return false;
  return (least === "" || value >= Number(least)) && (greatest === "" || value <= Number(greatest));
}

/** @type {(report: Report, index: number, flag: string, moved: Moved) => boolean} */
function hasFlag(report, index, flag, moved) {
  const trace = openTrace(report, index);
  if (flag === "untrained") return trace.trained.some((trained) => !trained);
  if (flag === "dropped" || flag === "truncated") return trace.facts[flag] === true;
  if (LIVE_FLAGS.includes(flag) && isMeasured(trace)) return hasLiveFlag(trace, flag, moved);
  return (trace.facts.anyFlags & report.flags[flag]) !== 0;
}

/** Both live flags need a large ratio, which few traces have. @type {(trace: MeasuredTrace, flag: string, moved: Moved) => boolean} */
function hasLiveFlag(trace, flag, moved) {
  const knobs = knobsOf(trace, moved);
  const limit = Math.log(Math.min(knobs.dual_clip_c, knobs.safety_thresh));
  return trace.logRatio.some((logRatio, t) => logRatio > limit && flagsOf(trace, t, moved).includes(flag));
}
