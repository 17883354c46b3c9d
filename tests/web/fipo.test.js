import assert from "node:assert/strict";
import { test } from "node:test";

import { contributions, futureKl, futureKlErrors, participates, recompute } from "../../src/fipo/report/web/model/fipo.js";
import { golden, withInfinity } from "./golden.js";

function assertClose(found, expected, name, tolerance = 1e-12) {
  assert.equal(found.length, expected.length);
  expected.forEach((value, t) => {
    assert.ok(Math.abs(found[t] - value) <= tolerance * Math.max(1, Math.abs(value)), `${name} ${t}: ${found[t]}, not ${value}`);
  });
}

for (const { knobs, logRatio, trained, advantages, ...expected } of golden.credit) {
  const named = withInfinity(knobs);
  const about = JSON.stringify(knobs);

  test(`future_kl and weight are fipo's under ${about}`, () => {
    const found = recompute(logRatio, trained, (t) => advantages[t], named);
    assertClose(found.futureKl, expected.futureKl, "future_kl");
    assertClose(found.weight, expected.weight, "weight");
  });

  test(`rounding moves future_kl as fipo expects it under ${about}`, () => {
    assertClose(futureKlErrors(trained.map((bit) => 128 * bit), named, 0.25), expected.futureKlErrors, "error of future_kl", 1e-6); // fipo's are float32
  });

  test(`contributions add up to future_kl under ${about}`, () => {
    const sums = logRatio.map((_, t) => contributions(logRatio, trained, named, t).reduce((sum, term) => sum + term, 0));
    assertClose(sums, expected.futureKl, "sum of contributions");
  });
}

test("a NaN at a trained token is seen, and one at an untrained token changes nothing", () => {
  const knobs = withInfinity(golden.credit[0].knobs);
  assert.deepEqual([...futureKl([0.5, NaN, 0.25], [1, 1, 1], knobs)].map(Number.isNaN), [true, true, false]);
  assert.deepEqual(futureKl([0.5, NaN, 0.25], [1, 0, 1], knobs), futureKl([0.5, 0, 0.25], [1, 0, 1], knobs));
});

test("a token takes part up to the dual-clip bound itself", () => {
  const knobs = { ...withInfinity(golden.credit[0].knobs), dual_clip_c: 2 };
  assert.ok(participates(Math.log(2), true, knobs));
  assert.ok(!participates(Math.log(2) + 1e-15, true, knobs));
  assert.ok(!participates(0, false, knobs));
});
