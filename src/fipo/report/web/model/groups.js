// Which traces belong together, and which one is worth seeing first.

import { computeCredit } from "./credit.js";
import { isMeasured, openTrace } from "./traces.js";

/** @import { Column, Facts, Report, Trace } from "../types.js" */

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

/**
 * The traces of one completion: its updates, and what else has its prompt and its tokens, as another run from the same seed
 * may; the run's own first, each run by rollout and update.
 * @type {(report: Report, index: number) => number[]}
 */
export function updatesOf(report, index) {
  const { traces } = report;
  const looked = traces[index];
  const same = indicesWhere(traces, (facts) => sameRollout(facts, looked) ? facts.sample === looked.sample : sameTokens(report, facts, looked));
  /** @type {(at: number) => number} */
  const away = (at) => (traces[at].set === looked.set && traces[at].run === looked.run ? -1 : traces[at].set);
  return same.sort((a, b) => away(a) - away(b) || traces[a].rollout - traces[b].rollout || traces[a].update - traces[b].update);
}

/** @type {(report: Report, a: Facts, b: Facts) => boolean} */
function sameTokens({ columns }, a, b) {
  if (a.length !== b.length || a.prompt !== b.prompt || a.length === 0) return false;
  /** @type {(facts: Facts) => Column} */
  const tokens = ({ at, length }) => columns.tokens.subarray(at.tokens, at.tokens + length);
  const others = tokens(b);
  return tokens(a).every((token, t) => token === others[t]);
}

/**
 * The trace that teaches most: of those whose advantage is not 0 the one whose weights differ most, before all in a group
 * whose rewards lie far apart, and there one that went wrong; else the first. It looks at so many tokens at most, from all
 * over the traces.
 * @type {(report: Report, among?: number[]) => number}
 */
export function openingTrace(report, among = report.traces.map((_, index) => index)) {
  const told = among.filter((index) => (report.traces[index].advantage ?? report.traces[index].sign ?? 0) !== 0);
  const spreads = spreadOut(told, report).map((index) => ({
    index, spread: weightSpread(openTrace(report, index)), range: rewardRange(report.traces, index),
  }));
  const widest = spreads.reduce((most, { range }) => Math.max(most, range), 0);
  const mixed = spreads.filter(({ range }) => range > 0 && range >= widest / 2);
  const wrong = mixed.filter(({ index }) => (report.traces[index].advantage ?? report.traces[index].sign ?? 0) < 0);
  for (const found of [wrong, mixed, spreads]) {
    const best = found.reduce((a, b) => (b.spread > a.spread ? b : a), { index: -1, spread: VISIBLE, range: 0 });
    if (best.index >= 0) return best.index;
  }
  return told[0] ?? among[0] ?? 0;
}

const VISIBLE = 1e-3; // a smaller difference between weights, such as that of the noise floor, hardly colours a token
const LOOKED_AT = 200_000; // tokens

/** Every so-manieth, as few as hold so many tokens. @type {(indices: number[], report: Report) => number[]} */
function spreadOut(indices, { traces }) {
  const tokens = indices.reduce((sum, index) => sum + traces[index].length, 0);
  const stride = Math.max(1, Math.ceil(tokens / LOOKED_AT));
  return indices.filter((_, place) => place % stride === 0);
}

/** How far the rewards of a trace's group lie apart; those that are not known do not count. @type {(traces: Facts[], index: number) => number} */
function rewardRange(traces, index) {
  const rewards = groupOf(traces, index).map((other) => traces[other].reward).filter((reward) => reward !== null);
  return rewards.length > 0 ? Math.max(...rewards) - Math.min(...rewards) : 0;
}

/** The standard deviation of the weights of trained tokens; 0 where they are not known. @type {(trace: Trace) => number} */
export function weightSpread(trace) {
  const weight = isMeasured(trace) ? computeCredit(trace, {}).weight : trace.columns.weight;
  let [count, sum, squares] = [0, 0, 0];
  for (let t = 0; weight && t < trace.length; t++) {
    if (!trace.trained[t] || !Number.isFinite(weight[t])) continue;
    count += 1;
    sum += weight[t] - 1;
    squares += (weight[t] - 1) ** 2;
  }
  return count ? Math.sqrt(Math.max(0, squares / count - (sum / count) ** 2)) : 0;
}

/** @type {WeakMap<Facts, number>} */
const spreads = new WeakMap();

/**
 * The list by falling reward, spread of weights or length; what nobody knows comes last.
 * @type {(report: Report, indices: number[], sort: string) => number[]}
 */
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
  if (!spreads.has(facts)) spreads.set(facts, weightSpread(openTrace(report, index)));
  return spreads.get(facts) ?? 0;
}
