// What colours tokens. The channels are those of fipo.report.channels; a scale is the same for every sample.

import { knobsOf, shownCredit } from "./credit.js";
import { clamp, contributions, weightHigh, weightLow } from "./fipo.js";
import { advantageAt, isMeasured, openTrace } from "./traces.js";

/** @import { Channel, MeasuredTrace, Moved, Numbers, Report, Scale, Trace, View } from "../types.js" */

export const FIRST_CHANNEL = "weight"; // that colours a report when it is opened
/** @type {Channel} */
const CONTRIBUTION = { name: "contribution", label: "contribution", help: "", dtype: "", unit: "", neutral: 0, scale: "linear" };
const SAMPLED_TRACES = 48;

/** @typedef {(t: number) => number} Values NaN where nobody knows */

/** @type {Record<string, (trace: Trace, moved: Moved) => Values | null>} the channels that are no column, or not always */
const COMPUTED = {
  ratio: ({ logRatio }) => logRatio && ((t) => Math.exp(logRatio[t])),
  future_kl: (trace, moved) => entriesOf(shownCredit(trace, moved).futureKl),
  weight: (trace, moved) => entriesOf(shownCredit(trace, moved).weight),
  advantage_weight: (trace, moved) => {
    const { weight } = shownCredit(trace, moved);
    return weight && ((t) => (trace.trained[t] ? advantageAt(trace, t) * weight[t] : 0));
  },
};

/** @type {(column: Numbers | null) => Values | null} */
const entriesOf = (column) => column && ((t) => column[t]);

/** The value of a channel at every token as a function of t. @type {(trace: Trace, name: string, moved: Moved) => Values} */
export function valuesOf(trace, name, moved) {
  const found = Object.hasOwn(COMPUTED, name) ? COMPUTED[name](trace, moved) : entriesOf(trace.columns[name]);
  return found ?? (() => NaN);
}

/** @type {(report: Report, name: string | null) => Channel | undefined} */
export const channelOf = (report, name) => report.channels.find((channel) => channel.name === name);

/** Whether some trace has it. @type {(report: Report, name: string) => boolean} */
export const isRecorded = ({ columns }, name) => Object.hasOwn(COMPUTED, name) || columns[name].length > 0;

/**
 * The ends of scales, from traces spread over all: set once, so that a colour means the same under every knob.
 * @type {(report: Report) => Record<string, number>}
 */
export function measureSpans(report) {
  const asRun = {};
  const step = Math.max(1, Math.floor(report.traces.length / SAMPLED_TRACES));
  const sampled = report.traces.map((_, index) => index).filter((index) => index % step === 0);
  return Object.fromEntries(report.channels.map((channel) => {
    const sizes = sampled.flatMap((index) => sizesOf(openTrace(report, index), channel, asRun)).sort((a, b) => a - b);
    return [channel.name, roundUp(sizes[Math.floor(sizes.length * 0.99)] || 0)];
  }));
}

/** @type {(trace: Trace, channel: Channel, moved: Moved) => number[]} */
function sizesOf(trace, channel, moved) {
  const value = valuesOf(trace, channel.name, moved);
  const stride = Math.max(1, Math.floor(trace.length / 200));
  const sizes = [];
  for (let t = 0; t < trace.length; t += stride) {
    const size = Math.abs(distanceOf(channel, value(t)));
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
  const channel = /** @type {Channel} */ (channelOf(report, view.channel));
  return { ...channel, span: channel.scale === "bounds" ? weightSpan(report, view.knobs) : report.spans[channel.name] };
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

/** The values that a scale of scaleOf colours. @type {(trace: Trace, scale: Scale, view: View) => Values} */
export function scaledValues(trace, scale, view) {
  if (!isContribution(scale) || !isMeasured(trace)) return valuesOf(trace, scale.name, view.knobs);
  const added = selectedContributions(trace, view);
  return (t) => (t >= (view.selected ?? 0) ? added[t] : NaN);
}

/** @type {(scale: Scale) => boolean} */
export const isContribution = (scale) => scale.name === CONTRIBUTION.name;

/** From the neutral value, in log where the scale is. @type {(channel: Channel, value: number) => number} */
const distanceOf = ({ scale, neutral }, value) => (scale === "log" ? Math.log(value / (neutral ?? 1)) : value - (neutral ?? 0));

/** Where a value lies on its scale: −1 … 1, or 0 … 1 without a neutral value. @type {(scale: Scale, value: number) => number} */
export const positionOf = (scale, value) => clamp(distanceOf(scale, value) / scale.span, -1, 1);

/** The value at a position: the inverse of positionOf. @type {(scale: Scale, position: number) => number} */
export function valueAt({ scale, neutral, span }, position) {
  return scale === "log" ? (neutral ?? 1) * Math.exp(position * span) : (neutral ?? 0) + position * span;
}

/** A value's colour for CSS; "" near neutral and where nobody knows. @type {(scale: Scale, value: number) => string} */
export function background(scale, value) {
  const position = positionOf(scale, value);
  if (Number.isNaN(position) || Math.abs(position) < 0.005) return "";
  const colour = scale.neutral === null ? "--seq" : position < 0 ? "--low" : "--high";
  return `color-mix(in srgb, var(${colour}) ${(Math.abs(position) * 100).toFixed(1)}%, transparent)`;
}
