import assert from "node:assert/strict";
import { test } from "node:test";

import { formatCount, formatNumber, formatPercent, formatReward } from "../../src/fipo/report/web/format.js";
import { positionOf, roundUp, scaleOf, valueAt, valuesOf } from "../../src/fipo/report/web/model/channels.js";
import { creditOf, flagsOf } from "../../src/fipo/report/web/model/credit.js";
import { filterTraces, NO_FILTERS } from "../../src/fipo/report/web/model/filters.js";
import { groupOf, openingTrace, sortTraces, updatesOf, weightSpread } from "../../src/fipo/report/web/model/groups.js";
import { readKnob, sliderEnds } from "../../src/fipo/report/web/model/knobs.js";
import { rolloutOf, stepOf, stepsOf, traceAt } from "../../src/fipo/report/web/model/steps.js";
import { matchingTokens, openTrace } from "../../src/fipo/report/web/model/traces.js";
import { hashOf, viewOf } from "../../src/fipo/report/web/state.js";
import { goldenReport } from "./golden.js";

test("numbers", () => {
  assert.deepEqual([0, -0, 1 / 3, -1234567, 1e-9].map((value) => formatNumber(value)), ["0", "0", "0.333333", "−1234570", "1e−9"]);
  assert.deepEqual([Infinity, -Infinity, NaN, null].map((value) => formatNumber(value)), ["∞", "−∞", "unknown", "unknown"]);
  assert.deepEqual([formatNumber(0.123456, 3), formatPercent(0.1234), formatPercent(NaN), formatCount(1234567)], ["0.123", "12.3 %", "–", "1,234,567"]);
  assert.equal(formatReward({ reward: 1, advantage: -0.5 }), "reward 1 · A −0.5");
  assert.equal(formatReward({ reward: null, advantage: null, sign: 1 }), "reward unknown · A positive");
  assert.deepEqual([0, 0.7, 1, 2.3, 60].map(roundUp), [1, 1, 1, 5, 100]);
});

test("a knob from the address is one that fipo takes", async () => {
  const { knobs } = (await goldenReport()).about;
  const read = (name, ...texts) => texts.map((text) => readKnob(knobs[name], text));
  assert.deepEqual(read("decay_rate", "3", "0", "-1", "Infinity", "x", ""), [3, undefined, undefined, Infinity, undefined, undefined]);
  assert.deepEqual(read("clip_ratio_low", "0", "0.5", "1", " "), [0, 0.5, undefined, undefined]);
  assert.deepEqual(read("clip_ratio_high", "0", "3.5", "Infinity"), [0, 3.5, undefined]);
  assert.deepEqual(read("clip_high_only", "true", "false", "1", "toString"), [true, false, undefined, undefined]);
  assert.deepEqual(read("distance", "trained", "other"), ["trained", undefined]);
});

test("a slider ends where the range does", async () => {
  const { knobs } = (await goldenReport()).about;
  assert.deepEqual(sliderEnds(knobs.clip_ratio_low, { min: 0, max: 1, step: 0.01 }), { min: 0, max: 0.99 });
  assert.deepEqual(sliderEnds(knobs.clip_ratio_high, { min: 0, max: 3, step: 0.01 }), { min: 0, max: 3 });
  assert.deepEqual(sliderEnds(knobs.safety_thresh, { min: 0, max: 20, step: 0.1 }), { min: 1, max: 20 });
});

test("the address gives back the view", async () => {
  const report = await goldenReport();
  const view = {
    tab: "summary", at: 1, mode: "group", watched: "0.8", sort: "spread", channel: "entropy", selected: 3, active: 0,
    filters: { ...NO_FILTERS, text: "a & b=#ü", rewardMin: "0.5" },
    knobs: { decay_rate: Infinity, clip_high_only: false, distance: "trained" },
  };
  assert.deepEqual(viewOf(hashOf(view), report, 2), view);
  const start = viewOf("", report, 2);
  assert.deepEqual([start.tab, start.at, start.mode, start.channel, start.knobs], ["credit", 2, "one", "weight", {}]);
  assert.deepEqual(viewOf(hashOf(start), report, 0), start);
});

test("what an address cannot mean is as at the start", async () => {
  const report = await goldenReport();
  const odd = "tab=curves&at=9&mode=x&channel=%00&selected=7&active=1.5&filter.toString=1&knob.__proto__=1&knob.decay_rate=-3&knob.dual_clip_c=2";
  assert.deepEqual(viewOf(odd, report, 0), viewOf("", report, 0));
});

test("filters", async () => {
  const report = await goldenReport();
  const passing = (filters, moved = {}) => filterTraces(report, { ...NO_FILTERS, ...filters }, moved);
  assert.deepEqual(passing({}), [0, 1, 2, 3]);
  assert.deepEqual(passing({ rewardMin: "1" }), [0, 3]);
  assert.deepEqual(passing({ lengthMax: "6" }), [3]);
  assert.deepEqual(passing({ lengthMin: "7", lengthMax: "7" }), [0, 1, 2]);
  assert.deepEqual(passing({ text: "WAIT42" }), [0, 1, 2]);
  assert.deepEqual(passing({ sign: "-1", flag: "untrained" }), [0, 1, 2]);
  assert.deepEqual(passing({ flag: "outside" }), []);
  assert.deepEqual(passing({ flag: "outside" }, { dual_clip_c: 1.2 }), [0, 1]); // the imported trace has no ratio
  assert.deepEqual(passing({ run: "nobody" }), []);
});

test("a match may span tokens", async () => {
  const trace = openTrace(await goldenReport(), 0);
  assert.deepEqual([...matchingTokens(trace, "wait42")], [5, 6]);
  assert.deepEqual([...matchingTokens(trace, "€")], [2]);
  assert.deepEqual([...matchingTokens(trace, "")], []);
});

test("credit is remembered for the knobs that it was asked for", async () => {
  const trace = openTrace(await goldenReport(), 0);
  const moved = { decay_rate: 1 };
  assert.equal(creditOf(trace, moved), creditOf(trace, moved));
  assert.notDeepEqual(creditOf(trace, moved).futureKl, creditOf(trace, {}).futureKl);
});

test("live marks follow the knobs", async () => {
  const trace = openTrace(await goldenReport(), 0); // log-ratios up to 0.5, advantage −0.5
  const marks = (moved) => Array.from(trace.tokens, (_, t) => flagsOf(trace, t, moved).join());
  assert.ok(marks({}).every((mark) => mark === ""));
  assert.ok(marks({ dual_clip_c: 1.2 }).includes("outside"));
  assert.ok(marks({ safety_thresh: 1, clip_ratio_high: 2 }).includes("safety_capped"));
});

test("a scale and its inverse agree, and a ratio's is logarithmic", async () => {
  const report = await goldenReport();
  const view = { ...viewOf("", report, 0), channel: "ratio" };
  const scale = scaleOf(report, openTrace(report, 0), view);
  for (const position of [-1, -0.3, 0, 0.7, 1]) assert.ok(Math.abs(positionOf(scale, valueAt(scale, position)) - position) < 1e-12);
  assert.ok(Math.abs(valueAt(scale, 1) * valueAt(scale, -1) - 1) < 1e-12);
  assert.ok(Number.isNaN(valuesOf(openTrace(report, 2), "ratio", {})(0))); // imported
});

const facts = (changes) => ({ set: 0, run: "r", rollout: 0, update: 0, group: 0, sample: 0, reward: 0, advantage: 0, sign: 0, ...changes });

test("a group has one trace a completion, by falling reward; updates are in order", () => {
  const traces = [
    facts({ update: 1 }), facts({ sample: 1, reward: 1 }), facts({}), facts({ sample: 2, reward: null, update: 1 }),
    facts({ group: 1, sample: 4 }), facts({ run: "other" }), facts({ rollout: 1 }),
  ];
  assert.deepEqual(groupOf(traces, 2), [1, 2, 3]);
  assert.deepEqual(groupOf(traces, 0), [1, 0, 3]);
  const columns = { tokens: Uint32Array.of(7, 8, 7, 8, 7, 9) };
  const placed = traces.map((facts, index) => ({ ...facts, prompt: 0, length: 2, at: { tokens: index % 2 ? 4 : 0 } }));
  assert.deepEqual(updatesOf({ traces: placed, columns }, 0).slice(0, 2), [2, 0]);
  const other = { ...placed[0], set: 1, run: "seed 1", at: { tokens: 2 } };
  const strangers = [{ at: { tokens: 4 } }, { prompt: 1 }, { length: 1 }].map((change) => ({ ...other, sample: 9, ...change }));
  const report = { traces: [placed[2], ...strangers, other, placed[0]], columns };
  assert.deepEqual(updatesOf(report, 5), [0, 5, 4]); // its own updates, then the other run's
  assert.deepEqual(updatesOf(report, 4), [4, 0, 5]);
});

test("the report opens on the widest weights, before all of what went wrong in a group with both rewards", async () => {
  const report = await goldenReport();
  const facts = (index, changes) => (report.traces[index] = { ...report.traces[index], ...changes });
  const spreads = () => [0, 1, 2, 3].map((index) => weightSpread(openTrace(report, index)));
  const widest = spreads().indexOf(Math.max(...spreads()));
  for (const index of [0, 1, 2, 3]) facts(index, { group: index, advantage: 1, sign: 1 });
  assert.equal(openingTrace(report), widest);
  facts(widest, { advantage: 0, sign: 0 });
  assert.notEqual(openingTrace(report), widest);
  facts(widest, { advantage: 1, sign: 1 });
  const [lower, other] = [0, 1, 2, 3].filter((index) => index !== widest && spreads()[index] > 0.001);
  facts(lower, { group: 9, reward: 1, sample: 90 });
  facts(other, { group: 9, reward: 0, sample: 91 });
  assert.ok([lower, other].includes(openingTrace(report)));
  for (const wrong of [lower, other]) {
    facts(wrong, { advantage: -1, sign: -1 });
    assert.equal(openingTrace(report), wrong, "where it went wrong is what a reader looks for");
    facts(wrong, { advantage: 1, sign: 1 });
  }
  const last = [0, 1, 2, 3].find((index) => ![widest, lower, other].includes(index)) ?? 0;
  facts(widest, { group: 8, reward: 0, sample: 80 });
  facts(last, { group: 8, reward: 0.25, sample: 81 });
  assert.ok([lower, other].includes(openingTrace(report)), "a quarter of a reward teaches less than a whole one");
  for (const index of [0, 1, 2, 3]) facts(index, { advantage: 0, sign: 0 });
  assert.equal(openingTrace(report), 0);
});

test("a step leads to its rollout and back", async () => {
  assert.deepEqual([stepOf(8, 0), stepOf(8, 2), stepOf(8, 2, 3), stepOf(8, 2, -1)], [1, 17, 20, 17]);
  for (const step of [1, 8, 9, 16, 17]) assert.equal(rolloutOf(8, stepOf(8, rolloutOf(8, step), (step - 1) % 8)), rolloutOf(8, step));
  assert.deepEqual([stepOf(0, 5), stepOf(0, 5, 3), rolloutOf(0, 5)], [5, 5, 5]); // verl's metrics have one step a rollout
  const report = await goldenReport();
  assert.equal(traceAt(report, [], 5), null); // nobody knows the updates a rollout
  for (const set of report.sets) set.updates = 4;
  report.traces = report.traces.map((facts, index) => ({ ...facts, rollout: 8 * index, update: 1 }));
  assert.deepEqual(stepsOf(report), [1, 33, 65, 97]);
  assert.deepEqual([0, 30, 34, 80, 1e6].map((step) => traceAt(report, [], step)), [0, 1, 1, 2, 3]);
  for (const set of report.sets) set.updates = 0;
  assert.deepEqual(stepsOf(report), [0, 8, 16, 24]);
  assert.deepEqual([0, 7, 17, 100].map((step) => traceAt(report, [], step)), [0, 1, 2, 3]);
});

test("the list by reward, spread and length", async () => {
  const report = await goldenReport();
  const rewards = [null, 0.5, -1, 0.5];
  report.traces = report.traces.map((facts, index) => ({ ...facts, reward: rewards[index] }));
  assert.deepEqual(sortTraces(report, [0, 1, 2, 3], ""), [0, 1, 2, 3]);
  assert.deepEqual(sortTraces(report, [0, 1, 2, 3], "reward"), [1, 3, 2, 0]);
  const by = (key) => (a, b) => key(b) - key(a) || a - b;
  const spread = (index) => weightSpread(openTrace(report, index));
  assert.deepEqual(sortTraces(report, [0, 1, 2, 3], "spread"), [0, 1, 2, 3].sort(by(spread)));
  assert.deepEqual(sortTraces(report, [1, 2, 3], "length"), [1, 2, 3].sort(by((index) => report.traces[index].length)));
});
