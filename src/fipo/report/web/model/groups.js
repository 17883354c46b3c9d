// Which traces belong together, and which one is worth seeing first.

import { computeCredit } from "./credit.js";
import { isMeasured, openTrace } from "./traces.js";

/** @import { Facts, Report, Trace } from "../types.js" */

/** @type {(a: Facts, b: Facts) => boolean} */
const sameRollout = (a, b) => a.set === b.set && a.run === b.run && a.rollout === b.rollout;

/** @type {(traces: Facts[], test: (facts: Facts) => boolean) => number[]} */
const indicesWhere = (traces, test) => traces.flatMap((facts, index) => (test(facts) ? [index] : []));

/**
 * A group's traces by falling reward, one a completion: a rollout's updates share its completions out, so those of a
 * group may lie in different ones.
 * @type {(traces: Facts[], index: number) => number[]}
 */
export function groupOf(traces, index) {
  const looked = traces[index];
  /** @type {Map<number, number>} */
  const bySample = new Map();
  for (const other of indicesWhere(traces, (facts) => sameRollout(facts, looked) && facts.group === looked.group)) {
    const { sample, update } = traces[other];
    if (!bySample.has(sample) || update === looked.update) bySample.set(sample, other);
  }
  /** @type {(at: number) => number} */
  const reward = (at) => traces[at].reward ?? -Infinity;
  return [...bySample.values()].sort((a, b) => reward(b) - reward(a) || a - b);
}

/** The traces of one completion, by update. @type {(traces: Facts[], index: number) => number[]} */
export function updatesOf(traces, index) {
  const looked = traces[index];
  const same = indicesWhere(traces, (facts) => sameRollout(facts, looked) && facts.sample === looked.sample);
  return same.sort((a, b) => traces[a].update - traces[b].update);
}

/**
 * The trace that the report opens on: the first whose advantage is not 0 and whose weights vary; without such a one the
 * first whose advantage is not 0; else the first.
 * @type {(report: Report) => number}
 */
export function openingTrace(report) {
  const told = indicesWhere(report.traces, ({ advantage, sign }) => (advantage ?? sign ?? 0) !== 0);
  return told.find((index) => weightsVary(openTrace(report, index))) ?? told[0] ?? 0;
}

const VISIBLE = 1e-3; // a smaller difference between weights, such as that of the noise floor, hardly colours a token

/** @type {(trace: Trace) => boolean} */
function weightsVary(trace) {
  const weight = isMeasured(trace) ? computeCredit(trace, {}).weight : trace.recordedWeight;
  const first = trace.trained.findIndex(Boolean);
  return weight !== null && trace.trained.some((trained, t) => trained !== 0 && Math.abs(weight[t] - weight[first]) > VISIBLE);
}
