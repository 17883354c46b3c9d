// Between the steps of the curves and the rollouts of the traces.

import { openingTrace } from "./groups.js";

/** @import { Facts, Report } from "../types.js" */

/**
 * The step that a rollout's first update is, or another of its updates; with 0 updates the metrics have one step a rollout.
 * @type {(updates: number, rollout: number, update?: number) => number}
 */
export const stepOf = (updates, rollout, update = 0) => (updates ? rollout * updates + Math.max(0, update) + 1 : rollout);

/** The rollout that a step belongs to. @type {(updates: number, step: number) => number} */
export const rolloutOf = (updates, step) => (updates ? Math.floor((step - 1) / updates) : step);

/** The one of some numbers that lies nearest. @type {(numbers: number[], wanted: number) => number} */
export const nearest = (numbers, wanted) =>
  numbers.reduce((best, number) => (Math.abs(number - wanted) < Math.abs(best - wanted) ? number : best));

/** The first step of every rollout that has traces, where it is known. @type {(report: Report) => number[]} */
export function stepsOf({ traces, sets }) {
  /** @type {(facts: Facts) => number | null} */
  const first = ({ set, rollout }) => {
    const { updates } = sets[set];
    return updates === null ? null : stepOf(updates, rollout);
  };
  return [...new Set(traces.map(first).filter((step) => step !== null))].sort((a, b) => a - b);
}

/**
 * The trace that a point of a curve leads to: the most telling one of the nearest rollout, at the point's own update where
 * there is one; null where nobody knows which steps the traces belong to.
 * @type {(report: Report, runs: string[], step: number) => number | null}
 */
export function traceAt(report, runs, step) {
  const known = report.traces.map((_, index) => index).filter((index) => report.sets[report.traces[index].set].updates !== null);
  const own = known.filter((index) => runs.includes(report.sets[report.traces[index].set].label));
  const candidates = own.length > 0 ? own : known;
  if (candidates.length === 0) return null;
  /** @type {(index: number) => number} */
  const stepAt = (index) => {
    const { set, rollout, update } = report.traces[index];
    return stepOf(report.sets[set].updates ?? 1, rollout, update);
  };
  const best = nearest(candidates.map(stepAt), step);
  return openingTrace(report, candidates.filter((index) => stepAt(index) === best));
}
