// The arithmetic of one token, in full.

import { byId, fill, make } from "../dom.js";
import { formatCount, formatHex, formatNumber } from "../format.js";
import { isRecorded } from "../model/channels.js";
import { creditOf, flagsOf, isControlled, knobsOf } from "../model/credit.js";
import {
  clippedWeight, contributions, futureKlErrors, gammaOf, isRisky, LOG_RATIO_LIMIT, participates, weightHigh, weightLow,
} from "../model/fipo.js";
import { advantageAt, isMeasured, piecesOf, tokenBytes } from "../model/traces.js";
import { report } from "../state.js";

/** @import { Knobs, MeasuredTrace, Moved, Piece, Trace } from "../types.js" */

/** @typedef {[string, string | Piece[]]} Line a name, and what is known under it */

const LARGEST_TERMS = 4;

/** @type {(trace: Trace, t: number | null, moved: Moved) => void} */
export function showArithmetic(trace, t, moved) {
  const lines = t === null ? [] : tokenLines(trace, t, moved);
  byId("arithmetic").replaceChildren(
    ...lines.flatMap(([name, content]) => [make("dt", {}, name), fill(make("dd"), content)]),
  );
  byId("arithmetic-hint").hidden = t !== null;
}

/** @type {(trace: Trace, t: number, moved: Moved) => Line[]} */
function tokenLines(trace, t, moved) {
  const marks = flagsOf(trace, t, moved);
  if (!trace.trained[t]) marks.unshift("untrained");
  return [
    ["token", tokenName(trace, t)],
    ["text", piecesOf(trace)[t]],
    ...(isMeasured(trace) ? creditLines(trace, t, moved) : recordedLines(trace, t)),
    ...otherLines(trace, t),
    ["marks", marks.join(", ") || "none"],
  ];
}

/** The channels that the arithmetic of the credit does not show. @type {(trace: Trace, t: number) => Line[]} */
function otherLines({ columns }, t) {
  const others = report.channels.filter(({ name, unit }) => unit && isRecorded(report, name));
  return others.map(({ name, label, unit }) => [label, columns[name] ? `${formatNumber(columns[name][t], 4)} ${unit}` : "unknown"]);
}

/** @type {(trace: Trace, t: number) => string} */
function tokenName(trace, t) {
  const entry = trace.tokens[t];
  const bytes = tokenBytes(trace.vocabulary, entry);
  const shown = Array.from(bytes.subarray(0, 16), (byte) => formatHex(byte, 2)).join(" ");
  const rest = bytes.length > 16 ? ` … (${formatCount(bytes.length)} bytes)` : "";
  return `position ${t} of ${trace.length} · id ${trace.vocabulary.ids[entry]} · bytes ${shown || "none"}${rest}`;
}

/** @type {(trace: MeasuredTrace, t: number, moved: Moved) => Line[]} */
function creditLines(trace, t, moved) {
  const knobs = knobsOf(trace, moved);
  const total = creditOf(trace, moved).futureKl[t];
  return [
    ["log π_θ − log π_old", logRatioLine(trace, t)],
    ["ratio", `exp(${formatNumber(trace.logRatio[t])}) = ${formatNumber(Math.exp(trace.logRatio[t]))}`],
    ["M", participationLine(trace, t, knobs)],
    ["future_kl", sumLine(trace, t, knobs, total)],
    ...(trace.trained[t] ? weightLines(trace, t, moved) : /** @type {Line[]} */ ([["weight", "1 (not trained)"]])),
  ];
}

/** @type {(trace: MeasuredTrace, t: number) => string} */
function logRatioLine(trace, t) {
  const value = trace.logRatio[t];
  const old = trace.columns.old_logps?.[t] ?? NaN;
  if (!trace.trained[t] || Number.isNaN(old) || Math.abs(value) >= LOG_RATIO_LIMIT) return formatNumber(value);
  return `${formatNumber(old + value, 4)} − (${formatNumber(old, 4)}) = ${formatNumber(value)}`;
}

/** @type {(trace: MeasuredTrace, t: number, knobs: Knobs) => string} */
function participationLine(trace, t, knobs) {
  const bound = formatNumber(knobs.dual_clip_c);
  if (!trace.trained[t]) return "0 (not trained)";
  return participates(trace.logRatio[t], true, knobs) ? `1 (trained, ratio ≤ ${bound})` : `0 (ratio > ${bound})`;
}

/** @type {(trace: MeasuredTrace, t: number, knobs: Knobs, total: number) => string} */
function sumLine(trace, t, knobs, total) {
  const terms = contributions(trace.logRatio, trace.trained, knobs, t);
  const later = [];
  for (let k = t + 1; k < terms.length; k++) if (terms[k] !== 0) later.push(k);
  const rest = later.reduce((sum, k) => sum + terms[k], 0);
  const largest = later.sort((a, b) => Math.abs(terms[b]) - Math.abs(terms[a])).slice(0, LARGEST_TERMS);
  const named = largest.map((k) => `${formatNumber(terms[k], 3)} at +${k - t}`).join(", ");
  const gamma = `γ = 2^(−1/${formatNumber(knobs.decay_rate)}) = ${formatNumber(gammaOf(knobs))}`;
  const sum = `${formatNumber(terms[t])} (itself) + ${formatNumber(rest)} (${later.length} later tokens) = ${formatNumber(total)}`;
  return `Σ γ^d · M · log_ratio = ${sum}; ${gamma}${named && `; largest: ${named}`}`;
}

/** @type {(trace: MeasuredTrace, t: number, moved: Moved) => Line[]} */
function weightLines(trace, t, moved) {
  const knobs = knobsOf(trace, moved);
  const { futureKl, fipo, weight } = creditOf(trace, moved);
  const advantage = advantageAt(trace, t);
  /** @type {Line[]} */
  const used = isControlled(trace, moved)
    ? [["weight in the loss", `${formatNumber(weight[t])} (of ${trace.made.control})`]] : [];
  return [
    ["exp(future_kl)", formatNumber(Math.exp(futureKl[t]))],
    [`clip to [${formatNumber(weightLow(knobs))}, ${formatNumber(weightHigh(knobs))}]`, formatNumber(clippedWeight(futureKl[t], knobs))],
    ["safety rule", safetyLine(trace, t, knobs, clippedWeight(futureKl[t], knobs), fipo[t])],
    ...used,
    ...roundingLine(trace, t, knobs, futureKl[t]),
    ["advantage × weight", `${formatNumber(advantage)} × ${formatNumber(weight[t])} = ${formatNumber(advantage * weight[t])}`],
  ];
}

/** What the weight may be apart from rounding. @type {(trace: MeasuredTrace, t: number, knobs: Knobs, futureKl: number) => Line[]} */
function roundingLine(trace, t, knobs, futureKl) {
  const { analysis } = trace.made;
  const error = "rounding" in analysis && trace.facts.update !== 0 ? analysis.rounding?.log_ratio ?? 0 : 0;
  if (!error) return [];
  const off = futureKlErrors(trace.trained, knobs, error)[t];
  const [low, high] = [-off, off].map((shift) => formatNumber(clippedWeight(futureKl + shift, knobs)));
  return [["rounding", `future_kl ± ${formatNumber(off, 2)}, so the weight lies between ${low} and ${high}`]];
}

/** @type {(trace: MeasuredTrace, t: number, knobs: Knobs, clipped: number, weight: number) => string} */
function safetyLine(trace, t, knobs, clipped, weight) {
  const condition = `A < 0 and ratio > ${formatNumber(knobs.safety_thresh)}`;
  if (!isRisky(trace.logRatio[t], advantageAt(trace, t), knobs)) return `${condition}: no, weight = ${formatNumber(weight)}`;
  return `${condition}: yes, ${formatNumber(clipped)} clipped to [0.8, 1] = ${formatNumber(weight)}`;
}

/** An imported trace without log-ratios: what its source recorded. @type {(trace: Trace, t: number) => Line[]} */
function recordedLines(trace, t) {
  const { logps, old_logps, future_kl, weight } = trace.columns;
  /** @type {Line[]} */
  const lines = [["credit", "cannot be recovered: this trace has no log-ratio"]];
  if (logps) lines.push(["log π_θ", formatNumber(logps[t], 4)]);
  if (old_logps) lines.push(["log π_old", formatNumber(old_logps[t], 4)]);
  if (future_kl) lines.push(["future_kl", `${formatNumber(future_kl[t])} (recorded)`]);
  if (weight) lines.push(["weight", `${formatNumber(weight[t])} (recorded)`]);
  return [...lines, ["advantage", formatNumber(advantageAt(trace, t))]];
}
