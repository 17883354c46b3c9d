// One trace: its columns as views into those of all traces, and the text of its tokens.

import { decodeTokens } from "./decode.js";

/** @import { Facts, MeasuredTrace, Piece, Report, Trace, Vocabulary } from "../types.js" */

/** @type {WeakMap<Facts, Trace>} */
const opened = new WeakMap();

/** @type {(report: Report, index: number) => Trace} */
export function openTrace(report, index) {
  const facts = report.traces[index];
  const trace = opened.get(facts) ?? makeTrace(report, index);
  opened.set(facts, trace);
  return trace;
}

/** @type {(report: Report, index: number) => Trace} */
function makeTrace(report, index) {
  const facts = report.traces[index];
  const columns = Object.fromEntries(Object.entries(report.columns).map(([name, column]) => {
    const start = facts.at[name];
    return [name, start === undefined ? null : column.subarray(start, start + facts.length)];
  }));
  const { tokens, flags } = /** @type {any} */ (columns);
  return {
    index, facts, made: report.sets[facts.set], length: facts.length, vocabulary: report.vocabulary, flagBits: report.flags,
    columns, tokens, flags, trained: flags.map((/** @type {number} */ bits) => bits & report.trainedBit), logRatio: columns.log_ratio,
    pieces: null, search: null,
  };
}

/** @type {(trace: Trace) => trace is MeasuredTrace} */
export const isMeasured = (trace) => trace.logRatio !== null;

/** @type {(trace: Trace, t: number) => number} */
export function advantageAt(trace, t) {
  return trace.columns.advantages ? trace.columns.advantages[t] : trace.facts.advantage ?? NaN;
}

/** @type {(vocabulary: Vocabulary, entry: number) => Uint8Array} */
export function tokenBytes({ ends, bytes }, entry) {
  return bytes.subarray(entry ? ends[entry - 1] : 0, ends[entry]);
}

/** @type {(trace: Trace) => Piece[][]} */
export function piecesOf(trace) {
  trace.pieces ??= decodeTokens(trace.length, (t) => tokenBytes(trace.vocabulary, trace.tokens[t]));
  return trace.pieces;
}

/** The completion as one string, for searching; lower case, so that case does not matter. @type {(trace: Trace) => string} */
export function searchText(trace) {
  if (trace.search !== null) return trace.search;
  let size = 0;
  for (const entry of trace.tokens) size += tokenBytes(trace.vocabulary, entry).length;
  const joined = new Uint8Array(size);
  let at = 0;
  for (const entry of trace.tokens) {
    const bytes = tokenBytes(trace.vocabulary, entry);
    joined.set(bytes, at);
    at += bytes.length;
  }
  trace.search = new TextDecoder().decode(joined).toLowerCase();
  return trace.search;
}

/** The tokens that hold a match of a lower-case text. @type {(trace: Trace, needle: string) => Set<number>} */
export function matchingTokens(trace, needle) {
  /** @type {Set<number>} */
  const found = new Set();
  if (!needle) return found;
  const decoder = new TextDecoder();
  let text = "";
  const ends = Array.from(trace.tokens, (entry) => {
    text += decoder.decode(tokenBytes(trace.vocabulary, entry), { stream: true }).toLowerCase();
    return text.length;
  });
  let t = 0;
  for (let at = text.indexOf(needle); at >= 0; at = text.indexOf(needle, at + needle.length)) {
    while (ends[t] <= at) t++;
    for (let k = t; k < ends.length && (k === t || ends[k - 1] < at + needle.length); k++) found.add(k);
  }
  return found;
}
