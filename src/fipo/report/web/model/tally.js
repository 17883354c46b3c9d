// What the credit does over many traces: sums over trained tokens by run, position, kind of token, rollout, and token.

import { computeCredit, knobsOf } from "./credit.js";
import { clippedWeight, participates, weightHigh, weightLow } from "./fipo.js";
import { isMeasured, openTrace, tokenBytes } from "./traces.js";

/** @import { MeasuredTrace, Moved, Report, Tally, TokenSums, Vocabulary, WeightSums } from "../types.js" */

const POSITION_BINS = 24;
const SHOWN_TOKENS = 15;
export const LEAST_OCCURRENCES = 5;
/** @type {[string, RegExp][]} */
const TOKEN_CLASSES = [
  ["reflection words", /^(wait|however|but|let|check|hmm|alternatively|actually|verify|recheck|mistake|maybe|instead)$/],
  ["digits", /^\p{N}+$/u],
  ["operators", /^[+\-−*/=×÷·^<>≤≥≠≈±%]+$/u],
  ["punctuation", /^[\p{P}\p{S}]+$/u],
  ["white space", /^$/],
];
export const CLASS_NAMES = [...TOKEN_CLASSES.map(([name]) => name), "other"];
/** @type {WeakMap<Vocabulary, Uint8Array>} */
const classified = new WeakMap();

/** Entry → place in CLASS_NAMES. @type {(vocabulary: Vocabulary) => Uint8Array} */
function classesOf(vocabulary) {
  const classes = classified.get(vocabulary) ?? classify(vocabulary);
  classified.set(vocabulary, classes);
  return classes;
}

/** @type {(vocabulary: Vocabulary) => Uint8Array} */
function classify(vocabulary) {
  const decoder = new TextDecoder();
  return Uint8Array.from(vocabulary.ends, (_, entry) => {
    const text = decoder.decode(tokenBytes(vocabulary, entry).subarray(0, 64)).trim().toLowerCase();
    const place = TOKEN_CLASSES.findIndex(([, pattern]) => pattern.test(text));
    return place < 0 ? TOKEN_CLASSES.length : place;
  });
}

/** @type {() => WeightSums} */
const noSums = () => ({ count: 0, sum: 0, low: 0, high: 0, up: 0, down: 0, safety: 0, outside: 0 });

/** One pass over the tokens of the traces given. @type {(report: Report, indices: number[], moved: Moved) => Tally} */
export function tallyTraces(report, indices, moved) {
  const size = report.vocabulary.ends.length;
  /** @type {Tally} */
  const tally = {
    traces: 0, unknown: 0, runs: new Map(), positions: Array.from({ length: POSITION_BINS }, noSums),
    classes: CLASS_NAMES.map(noSums), rollouts: new Map(),
    tokens: {
      count: new Uint32Array(size), sum: new Float64Array(size), up: new Uint32Array(size), down: new Uint32Array(size),
    },
  };
  for (const index of indices) {
    const trace = openTrace(report, index);
    if (isMeasured(trace)) tallyTrace(trace, moved, tally);
    else tally.unknown += 1;
  }
  return tally;
}

/** @type {(trace: MeasuredTrace, moved: Moved, tally: Tally) => void} */
function tallyTrace(trace, moved, tally) {
  const knobs = knobsOf(trace, moved);
  const [low, high] = [weightLow(knobs), weightHigh(knobs)];
  const { futureKl, fipo, weight } = computeCredit(trace, moved);
  const classes = classesOf(trace.vocabulary);
  const own = tally.runs.get(trace.facts.run) ?? noSums();
  tally.runs.set(trace.facts.run, own);
  const place = `${trace.facts.run}\n${trace.facts.rollout}`;
  const ofRollout = tally.rollouts.get(place) ?? { run: trace.facts.run, rollout: trace.facts.rollout, classes: CLASS_NAMES.map(noSums) };
  tally.rollouts.set(place, ofRollout);
  tally.traces += 1;
  for (let t = 0; t < trace.length; t++) {
    if (!trace.trained[t] || Number.isNaN(weight[t])) continue;
    const entry = trace.tokens[t];
    const raw = Math.exp(futureKl[t]);
    const part = tally.positions[Math.floor((t * POSITION_BINS) / trace.length)];
    const kind = classes[entry];
    for (const sums of [own, part, tally.classes[kind], ofRollout.classes[kind]]) addWeight(sums, weight[t], raw < low, raw > high);
    own.safety += Number(fipo[t] !== clippedWeight(futureKl[t], knobs));
    own.outside += Number(!participates(trace.logRatio[t], true, knobs));
    addToken(tally.tokens, entry, weight[t]);
  }
}

/** @type {(sums: WeightSums, weight: number, atLow: boolean, atHigh: boolean) => void} */
function addWeight(sums, weight, atLow, atHigh) {
  sums.count += 1;
  sums.sum += weight;
  sums.low += Number(atLow);
  sums.high += Number(atHigh);
  sums.up += Number(weight > 1);
  sums.down += Number(weight < 1);
}

/** @type {(tokens: TokenSums, entry: number, weight: number) => void} */
function addToken(tokens, entry, weight) {
  tokens.count[entry] += 1;
  tokens.sum[entry] += weight;
  if (weight > 1) tokens.up[entry] += 1;
  else if (weight < 1) tokens.down[entry] += 1;
}

/**
 * The lower end of a 95 % interval of a share (Wilson's), so that rare tokens do not lead the tables.
 * @type {(hits: number, count: number) => number}
 */
export function lowerShare(hits, count) {
  const z = 1.96;
  const share = hits / count;
  const spread = z * Math.sqrt((share * (1 - share)) / count + (z * z) / (4 * count * count));
  return (share + (z * z) / (2 * count) - spread) / (1 + (z * z) / count);
}

/** The entries that are hit most surely. @type {(tokens: TokenSums, hits: Uint32Array) => number[]} */
export function leadingTokens(tokens, hits) {
  /** @type {[number, number][]} */
  const shares = [];
  hits.forEach((hit, entry) => {
    if (tokens.count[entry] >= LEAST_OCCURRENCES && hit > 0) shares.push([lowerShare(hit, tokens.count[entry]), entry]);
  });
  return shares.sort((a, b) => b[0] - a[0]).slice(0, SHOWN_TOKENS).map(([, entry]) => entry);
}
