// What the report holds, once its data blocks are decoded.

import { unpackColumn, unpackJson } from "./blocks.js";
import { measureSpans } from "./channels.js";
import { stepsOf } from "./steps.js";

/** @import { Report, Vocabulary } from "../types.js" */

/** @type {() => Report} */
export const emptyReport = () => ({
  about: { title: "", problems: [], version: "", knobs: {}, live: false }, charts: null, tracedSteps: [], traces: [], prompts: [], sets: [],
  flags: {}, trainedBit: 0, channels: [], columns: {}, spans: {},
  vocabulary: { ids: new Int32Array(), ends: new Uint32Array(), bytes: new Uint8Array() },
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
  const { traces, prompts, flags, channels, trained: trainedBit } = head;
  const sets = head.sets.map((/** @type {any} */ set) => ({ ...set, knobs: withInfinity(set.knobs) }));
  /** @type {[string, string][]} */
  const dtypes = Object.entries(head.columns);
  const columns = await Promise.all(dtypes.map(async ([name, dtype]) => [name, await unpackColumn(take(name), dtype)]));
  Object.assign(report, { traces, prompts, sets, flags, channels, trainedBit, columns: Object.fromEntries(columns) });
  report.vocabulary = await loadVocabulary(take);
  report.spans = measureSpans(report);
  report.tracedSteps = stepsOf(report);
  return report;
}

/** @type {(take: (name: string) => string | null) => Promise<Vocabulary>} */
async function loadVocabulary(take) {
  const parts = Object.entries({ ids: "<i4", ends: "<u4", bytes: "u1" });
  const columns = parts.map(async ([name, dtype]) => [name, await unpackColumn(take(`vocabulary_${name}`), dtype)]);
  return Object.fromEntries(await Promise.all(columns));
}

/** JSON has no infinity: it travels as a text. @type {(values: Record<string, any>) => any} */
const withInfinity = (values) => mapValues(values, (value) => (value === "inf" ? Infinity : value));

/** @type {(values: Record<string, any>, change: (value: any) => any) => Record<string, any>} */
const mapValues = (values, change) =>
  Object.fromEntries(Object.entries(values).map(([name, value]) => [name, change(value)]));
