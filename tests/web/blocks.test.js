import assert from "node:assert/strict";
import { test } from "node:test";

import { fromHalf, unpackColumn, unpackJson } from "../../src/fipo/report/web/model/blocks.js";
import { advantageAt, openTrace, tokenBytes } from "../../src/fipo/report/web/model/traces.js";
import { golden, goldenReport } from "./golden.js";

const listed = (values, change = (value) => value) => values && Array.from(values, change);

test("pack.py's blocks give back every column of every trace", async () => {
  const report = await goldenReport();
  assert.equal(report.traces.length, golden.traces.length);
  golden.traces.forEach((expected, index) => {
    const trace = openTrace(report, index);
    const bytes = Array.from(trace.tokens, (entry) => Buffer.from(tokenBytes(trace.vocabulary, entry)).toString("hex"));
    const found = {
      bytes, ids: Array.from(trace.tokens, (entry) => trace.vocabulary.ids[entry]), trained: listed(trace.trained, (bits) => +(bits > 0)),
      advantages: listed(trace.tokens, (_, t) => advantageAt(trace, t)),
      ...Object.fromEntries(Object.keys(expected.columns).map((name) => [name, listed(trace.columns[name])])),
    };
    // Through JSON, for node tells −0 from 0.
    const { columns, ...others } = expected;
    assert.deepEqual(JSON.parse(JSON.stringify(found)), JSON.parse(JSON.stringify({ ...others, ...columns })));
  });
});

test("an infinite knob travels", async () => {
  const { sets, about } = await goldenReport();
  assert.equal(sets[0].knobs.decay_rate, Infinity);
  assert.ok(sets[0].known);
  assert.equal(about.knobs.decay_rate.high, Infinity);
  assert.equal(about.knobs.clip_ratio_low.high, 1);
});

test("float16 values are NumPy's", () => {
  for (const [bits, text] of golden.halves) assert.equal(fromHalf(bits), text === "-inf" ? -Infinity : Number(text), text);
  assert.ok(Number.isNaN(fromHalf(0x7e00)));
});

test("a block that is not there is an empty column, or no value", async () => {
  assert.deepEqual(await unpackColumn(null, "<f4"), new Float32Array());
  assert.equal(await unpackJson(null), null);
});
