// What colours tokens: eight channels, each with a scale that is the same for every sample.

import { knobsOf, shownCredit } from "./credit.js";
import { clamp, contributions, weightHigh, weightLow } from "./fipo.js";
import { advantageAt, isMeasured, openTrace } from "./traces.js";
import { fromHalf } from "./blocks.js";

/** @import { Channel, MeasuredTrace, Moved, Report, Scale, Spans, Trace, View } from "../types.js" */

/** @type {Channel[]} */
export const CHANNELS = [
  { id: "log_ratio", label: "log_ratio", neutral: 0 },
  { id: "future_kl", label: "future_kl", neutral: 0 },
  { id: "weight", label: "weight", neutral: 1 },
  { id: "advantage_weight", label: "advantage × weight", neutral: 0 },
  { id: "entropy", label: "entropy", neutral: null },
  { id: "ratio", label: "ratio", neutral: 1 },
  { id: "true_advantage", label: "true advantage", neutral: 0 },
  { id: "mismatch", label: "trainer − engine", neutral: 0 },
];
const CONTRIBUTION = { id: "contribution", label: "contribution", neutral: 0 };
const SAMPLED_TRACES = 48;

/** @type {(id: string | null) => Channel} */
export const channelById = (id) => CHANNELS.find((channel) => channel.id === id) ?? CHANNELS[2];

/**
 * The value of a channel at every token as a function of t; NaN where nobody knows.
 * @type {(trace: Trace, id: string, moved: Moved) => (t: number) => number}
 */
export function valuesOf(trace, id, moved) {
  const { logRatio, entropy, trueAdvantage, mismatch } = trace;
  const { futureKl, weight } = shownCredit(trace, moved);
  /** @type {Record<string, ((t: number) => number) | null>} */
  const by = {
    log_ratio: logRatio && ((t) => logRatio[t]),
    ratio: logRatio && ((t) => Math.exp(logRatio[t])),
    future_kl: futureKl && ((t) => futureKl[t]),
    weight: weight && ((t) => weight[t]),
    advantage_weight: weight && ((t) => (trace.trained[t] ? advantageAt(trace, t) * weight[t] : 0)),
    entropy: entropy && ((t) => fromHalf(entropy[t])),
    true_advantage: trueAdvantage && ((t) => trueAdvantage[t]),
    mismatch: mismatch && ((t) => mismatch[t]),
  };
  return by[id] ?? (() => NaN);
}

/**
 * The ends of scales, from traces spread over all: set once, so that a colour means the same under every knob.
 * @type {(report: Report) => Spans}
 */
export function measureSpans(report) {
  const asRun = {};
  const step = Math.max(1, Math.floor(report.traces.length / SAMPLED_TRACES));
  const sampled = report.traces.map((_, index) => index).filter((index) => index % step === 0);
  /** @type {(id: string) => number} */
  const measure = (id) => {
    const sizes = sampled.flatMap((index) => sizesOf(openTrace(report, index), id, asRun)).sort((a, b) => a - b);
    return roundUp(sizes[Math.floor(sizes.length * 0.99)] || 0);
  };
  return {
    log_ratio: measure("log_ratio"), future_kl: measure("future_kl"),
    advantage_weight: measure("advantage_weight"), entropy: measure("entropy"),
    true_advantage: measure("true_advantage"), mismatch: measure("mismatch"),
  };
}

/** @type {(trace: Trace, id: string, moved: Moved) => number[]} */
function sizesOf(trace, id, moved) {
  const value = valuesOf(trace, id, moved);
  const stride = Math.max(1, Math.floor(trace.length / 200));
  const sizes = [];
  for (let t = 0; t < trace.length; t += stride) {
    const size = Math.abs(value(t));
    if (size > 0 && size < Infinity) sizes.push(size);
  }
  return sizes;
}

/** To 1, 2 or 5 times a power of ten. @type {(value: number) => number} */
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * ([1, 2, 5].find((factor) => factor * unit >= value * 0.999) ?? 10);
}

/**
 * What colours a trace: the channel chosen, or what its later tokens add to the token selected.
 * @type {(report: Report, trace: Trace, view: View) => Scale}
 */
export function scaleOf(report, trace, view) {
  if (view.selected !== null && trace.index === view.at && isMeasured(trace)) {
    const largest = selectedContributions(trace, view).reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    return { ...CONTRIBUTION, span: largest || 1 };
  }
  const channel = channelById(view.channel);
  const spans = { ...report.spans, ratio: report.spans.log_ratio, weight: weightSpan(report, view.knobs) };
  return { ...channel, span: spans[/** @type {keyof spans} */ (channel.id)] };
}

/** @type {(report: Report, moved: Moved) => number} */
function weightSpan(report, moved) {
  const each = report.sets.map((set) => ({ ...set.knobs, ...moved }));
  return Math.max(0.05, ...each.flatMap((knobs) => [1 - weightLow(knobs), weightHigh(knobs) - 1]));
}

/** @type {(trace: MeasuredTrace, view: View) => Float64Array} */
function selectedContributions(trace, { selected, knobs }) {
  return contributions(trace.logRatio, trace.trained, knobsOf(trace, knobs), selected ?? 0);
}

/**
 * The values that a scale of scaleOf colours, as a function of t.
 * @type {(trace: Trace, scale: Scale, view: View) => (t: number) => number}
 */
export function scaledValues(trace, scale, view) {
  if (scale.id !== CONTRIBUTION.id || !isMeasured(trace)) return valuesOf(trace, scale.id, view.knobs);
  const added = selectedContributions(trace, view);
  return (t) => (t >= (view.selected ?? 0) ? added[t] : NaN);
}

/** @type {(scale: Scale) => boolean} */
export const isContribution = (scale) => scale.id === CONTRIBUTION.id;

/** Where a value lies on its scale: −1 … 1, or 0 … 1 for entropy. @type {(scale: Scale, value: number) => number} */
export function positionOf(scale, value) {
  if (Number.isNaN(value)) return NaN;
  const distance = scale.id === "ratio" ? Math.log(value) : value - (scale.neutral ?? 0);
  return clamp(distance / scale.span, -1, 1);
}

/** The value at a position: the inverse of positionOf. @type {(scale: Scale, position: number) => number} */
export function valueAt(scale, position) {
  const distance = position * scale.span;
  return scale.id === "ratio" ? Math.exp(distance) : (scale.neutral ?? 0) + distance;
}

/** The colour, a property of report.css, of one end of a scale. @type {(scale: Scale, position: number) => string} */
export const colourName = (scale, position) => (scale.neutral === null ? "--seq" : position < 0 ? "--low" : "--high");

/** A value's colour for CSS; "" near neutral and where nobody knows. @type {(scale: Scale, value: number) => string} */
export function background(scale, value) {
  const position = positionOf(scale, value);
  if (Number.isNaN(position) || Math.abs(position) < 0.005) return "";
  return `color-mix(in srgb, var(${colourName(scale, position)}) ${(Math.abs(position) * 100).toFixed(1)}%, transparent)`;
}
