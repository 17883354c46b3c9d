// What the credit does over all traces that pass the filters, under the present knobs.

import { byId, make, makeCard, makeSvg, makeTable } from "../dom.js";
import { formatCount, formatNumber, formatPercent } from "../format.js";
import { roundUp } from "../model/channels.js";
import { decodeString, decodeTokens } from "../model/decode.js";
import { CLASS_NAMES, leadingTokens, LEAST_OCCURRENCES, tallyTraces } from "../model/tally.js";
import { tokenBytes } from "../model/traces.js";
import { report, state } from "../state.js";
import { passingTraces } from "./samples.js";

/** @import { Tally, TokenSums, WeightSums } from "../types.js" */

const CHART = { width: 560, height: 200, left: 56, bottom: 34, top: 12, right: 10 };
/** @type {object[]} the filters, knobs and traces that were drawn */
let drawn = [];

export function drawSummary() {
  if (state.tab !== "summary" || (drawn[0] === state.filters && drawn[1] === state.knobs && drawn[2] === report.traces)) return;
  drawn = [state.filters, state.knobs, report.traces];
  const tally = tallyTraces(report, passingTraces(), state.knobs);
  byId("summary-body").replaceChildren(make("p", {}, scopeSentence(tally)), ...(tally.traces ? summaryCards(tally) : []));
}

/** @type {(tally: Tally) => HTMLElement[]} */
function summaryCards({ runs, positions, classes, rollouts, tokens }) {
  const saturation = makeCard("Saturation", saturationTable(runs));
  saturation.classList.add("wide");
  return [
    saturation,
    makeCard("Weight by position in the response", positionChart(positions)),
    makeCard("Weight by kind of token", classTable(classes)),
    ...(rollouts.size > 1 ? [overTimeCard([...rollouts.values()])] : []),
    makeCard("Most often amplified", tokenTable(tokens, tokens.up, "weight above 1")),
    makeCard("Most often attenuated", tokenTable(tokens, tokens.down, "weight below 1")),
  ];
}

/** @type {(tally: Tally) => string} */
function scopeSentence(tally) {
  const without = tally.unknown ? ` ${tally.unknown} have no log-ratio and are left out.` : "";
  const moved = Object.keys(state.knobs).length ? " The knobs are those of the what-if panel." : "";
  return `Trained tokens of the ${formatCount(tally.traces)} traces that pass the filters.${without}${moved}`;
}

/** @type {(sums: WeightSums) => string} */
const meanWeight = ({ sum, count }) => (count ? formatNumber(sum / count, 4) : "–");

/** @type {(runs: Map<string, WeightSums>) => HTMLElement} */
function saturationTable(runs) {
  const rows = [...runs].map(([run, own]) => [
    decodeString(run), formatCount(own.count), meanWeight(own),
    ...[own.low, own.high, own.safety, own.outside].map((hits) => formatPercent(hits / own.count)),
  ]);
  return makeTable(["run", "tokens", "mean weight", "below low bound", "above high bound", "safety_capped", "outside"], rows);
}

/** @type {(classes: WeightSums[]) => HTMLElement} */
function classTable(classes) {
  const rows = classes.map((own, i) => [
    CLASS_NAMES[i], formatCount(own.count), meanWeight(own), formatPercent(own.up / own.count), formatPercent(own.down / own.count),
  ]);
  return makeTable(["kind", "tokens", "mean weight", "weight above 1", "weight below 1"], rows.filter((_, i) => classes[i].count > 0));
}

/** @type {(rollouts: { run: string, rollout: number, classes: WeightSums[] }[]) => HTMLElement} */
function overTimeCard(rollouts) {
  const card = makeCard("Mean weight by kind of token, over training", rolloutTable(rollouts));
  card.classList.add("wide");
  return card;
}

/**
 * A row a rollout, a column a kind of token that occurs.
 * @type {(rollouts: { run: string, rollout: number, classes: WeightSums[] }[]) => HTMLElement}
 */
function rolloutTable(rollouts) {
  const kinds = CLASS_NAMES.map((_, kind) => kind).filter((kind) => rollouts.some(({ classes }) => classes[kind].count > 0));
  const rows = [...rollouts].sort((a, b) => a.run.localeCompare(b.run) || a.rollout - b.rollout).map(({ run, rollout, classes }) => [
    decodeString(run), String(rollout), ...kinds.map((kind) => meanWeight(classes[kind])),
  ]);
  return makeTable(["run", "rollout", ...kinds.map((kind) => CLASS_NAMES[kind])], rows);
}

/** @type {(tokens: TokenSums, hits: Uint32Array, label: string) => HTMLElement} */
function tokenTable(tokens, hits, label) {
  const entries = leadingTokens(tokens, hits);
  if (entries.length === 0) return make("p", {}, `No token occurs ${LEAST_OCCURRENCES} times and has a ${label}.`);
  const rows = entries.map((entry) => [
    decodeTokens(1, () => tokenBytes(report.vocabulary, entry))[0], formatCount(tokens.count[entry]),
    formatPercent(hits[entry] / tokens.count[entry]), formatNumber(tokens.sum[entry] / tokens.count[entry], 4),
  ]);
  return makeTable(["token", "occurrences", label, "mean weight"], rows);
}

/** Mean weight in each part of the response, as bars from 1. @type {(positions: WeightSums[]) => SVGElement} */
function positionChart(positions) {
  const { width, height, left, bottom, top, right } = CHART;
  const means = positions.map(({ sum, count }) => (count ? sum / count : NaN));
  const span = roundUp(Math.max(0.001, ...means.filter((mean) => !Number.isNaN(mean)).map((mean) => Math.abs(mean - 1))));
  /** @type {(weight: number) => number} */
  const y = (weight) => top + ((1 + span - weight) / (2 * span)) * (height - top - bottom);
  const slot = (width - left - right) / positions.length;
  const chart = makeSvg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "mean weight by position", class: "chart" });
  for (const weight of [1 - span, 1, 1 + span]) {
    chart.append(makeSvg("line", { x1: left, x2: width - right, y1: y(weight), y2: y(weight), class: "rule" }));
    chart.append(makeSvg("text", { x: left - 6, y: y(weight) + 4, "text-anchor": "end" }, formatNumber(weight, 4)));
  }
  means.forEach((mean, i) => {
    if (Number.isNaN(mean)) return;
    const bar = makeSvg("rect", {
      x: left + i * slot + 1, width: slot - 2, y: Math.min(y(mean), y(1)), height: Math.abs(y(mean) - y(1)) + 0.5,
      class: mean < 1 ? "bar-low" : "bar-high",
    });
    const place = `${formatPercent(i / means.length)} to ${formatPercent((i + 1) / means.length)}`;
    bar.append(makeSvg("title", {}, `${place}: mean weight ${formatNumber(mean, 5)}, ${positions[i].count} tokens`));
    chart.append(bar);
  });
  chart.append(makeSvg("text", { x: left, y: height - 8 }, "start"));
  chart.append(makeSvg("text", { x: width - right, y: height - 8, "text-anchor": "end" }, "end of the response"));
  return chart;
}
