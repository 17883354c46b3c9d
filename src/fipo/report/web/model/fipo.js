// The credit of every token, recomputed in float64 exactly as fipo.core.credit defines it.

/** @import { Knobs, Numbers } from "../types.js" */

export const LOG_RATIO_LIMIT = 20;
const SAFE_WEIGHT_LOW = 0.8;
const SAFE_WEIGHT_HIGH = 1;

/** @type {(value: number, low: number, high: number) => number} */
export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
/** @type {(knobs: Knobs) => number} */
export const gammaOf = (knobs) => 2 ** (-1 / knobs.decay_rate);
/** @type {(knobs: Knobs) => number} */
export const weightLow = (knobs) => (knobs.clip_high_only ? 1 : 1 - knobs.clip_ratio_low);
/** @type {(knobs: Knobs) => number} */
export const weightHigh = (knobs) => 1 + knobs.clip_ratio_high;

/** @type {(logRatio: number) => number} */
const limited = (logRatio) => clamp(logRatio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT);

/**
 * M. `!(a > b)` and not `a <= b`: a NaN at a trained token stays in, so that it is seen.
 * @type {(logRatio: number, trained: boolean, knobs: Knobs) => boolean}
 */
export function participates(logRatio, trained, knobs) {
  return trained && !(logRatio > Math.log(knobs.dual_clip_c));
}

/**
 * future_kl_t = M_t · log_ratio_t + γ^step · future_kl_{t+1}, from the last token to the first. With distance "trained"
 * an untrained token is no step: it takes the value of the next trained one.
 * @type {(logRatios: Numbers, trained: Numbers, knobs: Knobs) => Float64Array}
 */
export function futureKl(logRatios, trained, knobs) {
  const gamma = gammaOf(knobs);
  const countsAll = knobs.distance !== "trained";
  const result = new Float64Array(logRatios.length);
  let carry = 0;
  for (let t = logRatios.length - 1; t >= 0; t--) {
    const logRatio = limited(logRatios[t]);
    const summand = participates(logRatio, Boolean(trained[t]), knobs) ? logRatio : 0;
    if (countsAll || trained[t]) carry = summand + gamma * carry;
    result[t] = carry;
  }
  return result;
}

/**
 * By how much future_kl is off on average where log-ratios are off by `error`, as fipo.core.rounding expects it.
 * @type {(trained: Numbers, knobs: Knobs, error: number) => Float64Array}
 */
export function futureKlErrors(trained, knobs, error) {
  const ofSquares = { ...knobs, decay_rate: knobs.decay_rate / 2, dual_clip_c: Infinity };
  return futureKl(Float64Array.from(trained, (bit) => Number(bit !== 0)), trained, ofSquares).map((sum) => error * Math.sqrt(sum));
}

/**
 * exp(future_kl) between the bounds: the weight before the safety rule.
 * @type {(credit: number, knobs: Knobs) => number}
 */
export const clippedWeight = (credit, knobs) => clamp(Math.exp(credit), weightLow(knobs), weightHigh(knobs));

/**
 * The weight that the loss uses at a trained token.
 * @type {(credit: number, logRatio: number, advantage: number, knobs: Knobs) => number}
 */
function influenceWeight(credit, logRatio, advantage, knobs) {
  const weight = clippedWeight(credit, knobs);
  return isRisky(logRatio, advantage, knobs) ? clamp(weight, SAFE_WEIGHT_LOW, SAFE_WEIGHT_HIGH) : weight;
}

/** @type {(logRatio: number, advantage: number, knobs: Knobs) => boolean} */
export function isRisky(logRatio, advantage, knobs) {
  return advantage < 0 && Math.exp(limited(logRatio)) > knobs.safety_thresh;
}

/**
 * The columns that depend on the knobs. `advantageOf(t)` may give NaN where nobody knows.
 * @type {(logRatios: Numbers, trained: Numbers, advantageOf: (t: number) => number, knobs: Knobs) =>
 *   { futureKl: Float64Array, weight: Float64Array }}
 */
export function recompute(logRatios, trained, advantageOf, knobs) {
  const credit = futureKl(logRatios, trained, knobs);
  const weight = new Float64Array(credit.length).fill(1);
  for (let t = 0; t < credit.length; t++) {
    if (trained[t]) weight[t] = influenceWeight(credit[t], logRatios[t], advantageOf(t), knobs);
  }
  return { futureKl: credit, weight };
}

/**
 * What each token k ≥ t adds to future_kl_t: γ^d(t,k) · M_k · log_ratio_k.
 * @type {(logRatios: Numbers, trained: Numbers, knobs: Knobs, t: number) => Float64Array}
 */
export function contributions(logRatios, trained, knobs, t) {
  const gamma = gammaOf(knobs);
  const result = new Float64Array(logRatios.length);
  let factor = 1;
  // With distance "trained" the first trained token from t on is at distance 0, wherever it is.
  let started = knobs.distance !== "trained";
  for (let k = t; k < logRatios.length; k++) {
    const counts = knobs.distance !== "trained" || Boolean(trained[k]);
    if (counts && started && k > t) factor *= gamma;
    if (counts) started = true;
    const logRatio = limited(logRatios[k]);
    if (participates(logRatio, Boolean(trained[k]), knobs)) result[k] = factor * logRatio;
  }
  return result;
}
