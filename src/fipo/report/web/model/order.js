// The order of the list.

import { weightSpread } from "./groups.js";
import { openTrace } from "./traces.js";

/** @import { Facts, Report } from "../types.js" */

/** @type {WeakMap<Facts, number>} */
const spreads = new WeakMap();

/** By falling reward, spread of weights or length; what nobody knows comes last. @type {(report: Report, indices: number[], sort: string) => number[]} */
export function sortTraces(report, indices, sort) {
  if (sort === "") return indices;
  const keys = new Map(indices.map((index) => [index, keyOf(report, index, sort)]));
  return [...indices].sort((a, b) => (keys.get(b) ?? 0) - (keys.get(a) ?? 0) || a - b);
}

/** @type {(report: Report, index: number, sort: string) => number} */
function keyOf(report, index, sort) {
  const facts = report.traces[index];
  if (sort === "reward") return facts.reward ?? -Number.MAX_VALUE;
  if (sort === "length") return facts.length;
  const spread = spreads.get(facts) ?? weightSpread(openTrace(report, index));
  spreads.set(facts, spread);
  return spread;
}
