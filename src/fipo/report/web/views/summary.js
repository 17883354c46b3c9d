// What the credit does over all traces: the numbers of fipo.traces.analysis as tables, run by run.

import { byId, make, makeCard, makeNotice, makeSvg, makeTable, showString } from "../dom.js";
import { formatCount, formatNumber, formatPercent } from "../format.js";
import { roundUp } from "../model/channels.js";
import { decodeString, decodeTokens } from "../model/decode.js";
import { report, state } from "../state.js";

/** @import { Analysis, Piece, Report, TraceSet, Weights } from "../types.js" */

/** @typedef {(string | Piece[])[]} Cells one row of a table */

const PARTS = 24; // of a response
const CHART = { width: 560, height: 200, left: 56, bottom: 34, top: 12, right: 10 };
/** @type {Report["sets"] | null} */
let drawn = null;

export function drawSummary() {
  if (state.tab !== "summary" || drawn === report.sets) return;
  drawn = report.sets;
  const analyses = drawn.flatMap(({ label, analysis }) => ("weight" in analysis ? [{ label, analysis }] : []));
  const unknown = report.traces.length - analyses.reduce((sum, { analysis }) => sum + analysis.completions, 0);
  const scope = `The weights that the loss used at the trained tokens of all traces.${unknown ? ` ${unknown} have no log-ratio, or no token, and are left out.` : ""}`;
  const table = analyses.length ? [wide(makeCard("Weights", weightTable(analyses)))] : [];
  byId("summary-body").replaceChildren(make("p", {}, scope), ...drawn.flatMap(warningsOf), ...table, ...analyses.flatMap(cardsOf));
}

/** @type {(element: HTMLElement) => HTMLElement} */
const wide = (element) => Object.assign(element, { className: `${element.className} wide` });

/** @type {(set: TraceSet, place: number, sets: TraceSet[]) => HTMLElement[]} */
const warningsOf = ({ label, analysis }, _, sets) =>
  analysis.warnings.map((sentence) => wide(showString(makeNotice(""), sets.length > 1 ? `${label}: ${sentence}` : sentence)));

/** A row a run. @type {(analyses: { label: string, analysis: Analysis }[]) => HTMLElement} */
function weightTable(analyses) {
  const names = ["mean", "std", "min", "median", "max", "below low bound", "above high bound", "safety_capped", "outside", "noise floor", "rounding"];
  return makeTable(["run", "tokens", ...names], analyses.map(({ label, analysis: { tokens, weight, flags, noise_floor, rounding } }) => [
    decodeString(label), formatCount(tokens),
    ...[weight.mean, weight.std, weight.min, weight.deciles[5], weight.max].map((value) => formatNumber(value, 4)),
    ...[weight.at_low, weight.at_high, flags.safety_capped, flags.outside, noise_floor?.weight_shift ?? NaN, rounding?.weight ?? NaN].map(formatPercent),
  ]));
}

/** @type {(one: { label: string, analysis: Analysis }, place: number, all: object[]) => HTMLElement[]} */
function cardsOf({ label, analysis }, _, all) {
  const { parts, kinds, rollouts, what_if, amplified, attenuated } = analysis;
  const title = all.length > 1 ? [wide(showString(make("h3", {}), label))] : [];
  const followed = new Set(rollouts.map(({ run, rollout }) => `${run}\n${rollout}`)).size > 1;
  return [
    ...title,
    makeCard("Weight by position in the response", positionChart(parts)),
    makeCard("Weight by kind of token", makeTable(["kind", ...WEIGHTS], kinds.map((row) => [row.kind, ...weightCells(row)]))),
    ...(followed ? [wide(makeCard("Mean weight by kind of token, over training", rolloutTable(analysis)))] : []),
    makeCard("Most often amplified", tokenTable(amplified, "above")),
    makeCard("Most often attenuated", tokenTable(attenuated, "below")),
    makeCard("What if", makeTable(["decay_rate", "clip ratios", "below low bound", "above high bound", "std"], what_if.map((row) => [
      row.decay_rate === "inf" ? "∞" : formatNumber(Number(row.decay_rate)), formatNumber(row.clip_ratio),
      formatPercent(row.at_low), formatPercent(row.at_high), formatNumber(row.std, 3),
    ]))),
  ];
}

const WEIGHTS = ["tokens", "mean weight", "weight above 1", "weight below 1"];

/** @type {(row: Weights) => Cells} */
const weightCells = ({ tokens, mean, above, below }) => [formatCount(tokens), formatNumber(mean, 4), formatPercent(above), formatPercent(below)];

/** A row a rollout, a column a kind of token that occurs. @type {(analysis: Analysis) => HTMLElement} */
function rolloutTable({ kinds, rollouts }) {
  /** @type {Map<string, { first: Cells, means: Map<string, number> }>} */
  const rows = new Map();
  for (const { run, rollout, kind, mean } of rollouts) {
    const key = `${run}\n${rollout}`;
    const row = rows.get(key) ?? { first: [decodeString(run), String(rollout)], means: new Map() };
    rows.set(key, row);
    row.means.set(kind, mean);
  }
  const names = kinds.map(({ kind }) => kind);
  return makeTable(["run", "rollout", ...names], [...rows.values()].map(({ first, means }) => [
    ...first, ...names.map((name) => (means.has(name) ? formatNumber(means.get(name), 4) : "–")),
  ]));
}

/** @type {(rows: Analysis["amplified"], side: "above" | "below") => HTMLElement} */
function tokenTable(rows, side) {
  if (rows.length === 0) return make("p", {}, `No token is often enough, and has a weight ${side} 1.`);
  return makeTable(["token", "occurrences", `weight ${side} 1`, "mean weight"], rows.map((row) => {
    const bytes = new TextEncoder().encode(row.token);
    return [decodeTokens(1, () => bytes)[0], formatCount(row.tokens), formatPercent(row[side]), formatNumber(row.mean, 4)];
  }));
}

/** Mean weight in each part of the response, as bars from 1. @type {(parts: Analysis["parts"]) => SVGElement} */
function positionChart(parts) {
  const { width, height, left, bottom, top, right } = CHART;
  const span = roundUp(Math.max(0.001, ...parts.map(({ mean }) => Math.abs(mean - 1))));
  /** @type {(weight: number) => number} */
  const y = (weight) => top + ((1 + span - weight) / (2 * span)) * (height - top - bottom);
  const slot = (width - left - right) / PARTS;
  const chart = makeSvg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "mean weight by position", class: "chart" });
  for (const weight of [1 - span, 1, 1 + span]) {
    chart.append(makeSvg("line", { x1: left, x2: width - right, y1: y(weight), y2: y(weight), class: "rule" }));
    chart.append(makeSvg("text", { x: left - 6, y: y(weight) + 4, "text-anchor": "end" }, formatNumber(weight, 4)));
  }
  for (const { part, mean, tokens } of parts) {
    const bar = makeSvg("rect", {
      x: left + part * slot + 1, width: slot - 2, y: Math.min(y(mean), y(1)), height: Math.abs(y(mean) - y(1)) + 0.5,
      class: mean < 1 ? "bar-low" : "bar-high",
    });
    const place = `${formatPercent(part / PARTS)} to ${formatPercent((part + 1) / PARTS)}`;
    bar.append(makeSvg("title", {}, `${place}: mean weight ${formatNumber(mean, 5)}, ${tokens} tokens`));
    chart.append(bar);
  }
  chart.append(makeSvg("text", { x: left, y: height - 8 }, "start"));
  chart.append(makeSvg("text", { x: width - right, y: height - 8, "text-anchor": "end" }, "end of the response"));
  return chart;
}
