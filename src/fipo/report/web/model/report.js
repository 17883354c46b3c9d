// What the report holds, once its data blocks are decoded.

import { unpackColumn, unpackJson } from "./blocks.js";
import { measureSpans } from "./channels.js";
import { stepsOf } from "./steps.js";

/** @import { Column, Kind, Report, TraceSet, Vocabulary } from "../types.js" */

const COLUMN_TYPES = {
  tokens: Uint32Array, flags: Uint8Array, log_ratio: Float32Array, advantages: Float32Array, old_logps: Uint16Array,
  entropy: Uint16Array, future_kl: Float32Array, weight: Float32Array, logps: Uint16Array,
  true_advantage: Float32Array,
  mismatch: Float32Array,
};

/** @type {() => Report} */
export const emptyReport = () => ({
  about: { title: "", problems: [], version: "", knobs: {}, live: false }, charts: null, tracedSteps: [], traces: [], prompts: [], sets: [], flags: {},
  trainedBit: 0, columns: {}, vocabulary: { ids: new Int32Array(), ends: new Uint32Array(), bytes: new Uint8Array() },
  spans: { log_ratio: 1, future_kl: 1, advantage_weight: 1, entropy: 1, true_advantage: 1, mismatch: 1 },
});

/**
 * Decodes a report.
 * @type {(take: (name: string) => string | null) => Promise<Report>} `take` gives a data block once, null if there is none
 */
export async function loadReport(take) {
  const report = emptyReport();
  const [about, charts, head] = await Promise.all(["about", "charts", "traces"].map((name) => unpackJson(take(name))));
  if (about) report.about = { ...about, knobs: mapValues(about.knobs, withInfinity) };
  report.charts = charts;
  if (!head) return report;
  const { traces, prompts, flags, trained } = head;
  const sets = head.params.map(setOf(head));
  const columns = await loadColumns(take);
  Object.assign(report, { traces, prompts, sets, flags, trainedBit: trained, columns, vocabulary: await loadVocabulary(take) });
  report.spans = measureSpans(report);
  report.tracedSteps = stepsOf(report);
  return report;
}

/** @type {(take: (name: string) => string | null) => Promise<Record<string, Column>>} */
async function loadColumns(take) {
  /** @type {[string, Kind<Column>][]} */
  const kinds = Object.entries(COLUMN_TYPES);
  const entries = kinds.map(async ([name, Type]) => [name, await unpackColumn(take(name), Type)]);
  return Object.fromEntries(await Promise.all(entries));
}

/** @type {(take: (name: string) => string | null) => Promise<Vocabulary>} */
async function loadVocabulary(take) {
  const [ids, ends, bytes] = await Promise.all([
    unpackColumn(take("vocabulary_ids"), Int32Array),
    unpackColumn(take("vocabulary_ends"), Uint32Array),
    unpackColumn(take("vocabulary_bytes"), Uint8Array),
  ]);
  return { ids, ends, bytes };
}

/** @type {(head: Record<string, any[]>) => (params: Record<string, any>, set: number) => TraceSet} */
const setOf = ({ controls, labels, updates }) => ({ known, ...knobs }, set) => ({
  knobs: withInfinity(knobs), known, control: controls[set], label: labels[set], updates: updates[set],
});

/** JSON has no infinity: it travels as a text. @type {(values: Record<string, any>) => any} */
const withInfinity = (values) => mapValues(values, (value) => (value === "inf" ? Infinity : value));

/** @type {(values: Record<string, any>, change: (value: any) => any) => Record<string, any>} */
const mapValues = (values, change) =>
  Object.fromEntries(Object.entries(values).map(([name, value]) => [name, change(value)]));
