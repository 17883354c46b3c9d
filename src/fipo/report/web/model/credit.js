// A trace's credit under the knobs that its run had, or under others that the reader has moved.

import { clippedWeight, isRisky, participates, recompute } from "./fipo.js";
import { advantageAt, isMeasured } from "./traces.js";

/** @import { Credit, Knobs, MeasuredTrace, Moved, Numbers, Trace } from "../types.js" */

export const LIVE_FLAGS = ["outside", "safety_capped"]; // they follow the knobs; the others are the recorded ones
const CACHED_CREDITS = 64;
/** @type {Map<Trace, { moved: Moved, credit: Credit }>} */
const cache = new Map();

/** @type {(trace: Trace, moved: Moved) => Knobs} */
export const knobsOf = (trace, moved) => ({ ...trace.made.knobs, ...moved });

/** As computeCredit, remembered for the traces asked for last. @type {(trace: MeasuredTrace, moved: Moved) => Credit} */
export function creditOf(trace, moved) {
  const known = cache.get(trace);
  if (known?.moved === moved) return known.credit;
  const credit = computeCredit(trace, moved);
  cache.delete(trace);
  cache.set(trace, { moved, credit });
  if (cache.size > CACHED_CREDITS) cache.delete([...cache.keys()][0]);
  return credit;
}

/** @type {(trace: MeasuredTrace, moved: Moved) => Credit} */
export function computeCredit(trace, moved) {
  const knobs = knobsOf(trace, moved);
  const { futureKl, weight: fipo } = recompute(trace.logRatio, trace.trained, (t) => advantageAt(trace, t), knobs);
  if (!isControlled(trace, moved)) return { futureKl, fipo, weight: fipo };
  return { futureKl, fipo, weight: trace.columns.weight ?? new Float32Array(trace.length).fill(NaN) };
}

/**
 * What can be shown: recomputed where the log-ratio is known, else as recorded.
 * @type {(trace: Trace, moved: Moved) => { futureKl: Numbers | null, weight: Numbers | null }}
 */
export function shownCredit(trace, moved) {
  if (isMeasured(trace)) return creditOf(trace, moved);
  return { futureKl: trace.columns.future_kl, weight: trace.columns.weight };
}

/**
 * Under other knobs nobody knows what a rule or a control would have made of the weights: FIPO's are shown then.
 * @type {(trace: Trace, moved: Moved) => boolean}
 */
export const isControlled = (trace, moved) => trace.made.control !== null && Object.keys(moved).length === 0;

/** Names of a token's flags. @type {(trace: Trace, t: number, moved: Moved) => string[]} */
export function flagsOf(trace, t, moved) {
  const names = Object.keys(trace.flagBits).filter((name) => trace.flags[t] & trace.flagBits[name]);
  if (!isMeasured(trace)) return names;
  const live = names.filter((name) => !LIVE_FLAGS.includes(name));
  if (!trace.trained[t]) return live;
  const knobs = knobsOf(trace, moved);
  if (isCapped(trace, t, moved, knobs)) live.unshift("safety_capped");
  if (!participates(trace.logRatio[t], true, knobs)) live.unshift("outside");
  return live;
}

/** @type {(trace: MeasuredTrace, t: number, moved: Moved, knobs: Knobs) => boolean} */
function isCapped(trace, t, moved, knobs) {
  if (!isRisky(trace.logRatio[t], advantageAt(trace, t), knobs)) return false;
  const { futureKl, fipo } = creditOf(trace, moved);
  return fipo[t] !== clippedWeight(futureKl[t], knobs);
}

/** @type {Record<string, string>} */
const MARKS = { outside: "o", safety_capped: "s", clipped_low: "‹", clipped_high: "›", dual_clipped: "d" };

/** The letter of a flag. @type {(flag: string) => string} */
export const markOf = (flag) => MARKS[flag] ?? "?";

/** The letters of a token's flags. @type {(trace: Trace, t: number, moved: Moved) => string} */
export const marksOf = (trace, t, moved) => flagsOf(trace, t, moved).map(markOf).join("");
