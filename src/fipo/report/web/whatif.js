// The credit of every token, recomputed in float64 exactly as fipo.core.loss defines it.

const LOG_RATIO_LIMIT = 20;
const SAFE_WEIGHT_LOW = 0.8;
const SAFE_WEIGHT_HIGH = 1;

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const gammaOf = (knobs) => 2 ** (-1 / knobs.decay_rate);
const weightLow = (knobs) => (knobs.clip_high_only ? 1 : 1 - knobs.clip_ratio_low);
const weightHigh = (knobs) => 1 + knobs.clip_ratio_high;

// M. `!(a > b)` and not `a <= b`: a NaN at a trained token stays in, so that it is seen.
function participates(logRatio, trained, knobs) {
  return trained && !(logRatio > Math.log(knobs.dual_clip_c));
}

// future_kl_t = M_t · log_ratio_t + γ^step · future_kl_{t+1}, from the last token to the first. With distance "trained"
// an untrained token is no step: it takes the value of the next trained one.
function futureKl(logRatios, trained, knobs) {
  const gamma = gammaOf(knobs);
  const countsAll = knobs.distance !== "trained";
  const result = new Float64Array(logRatios.length);
  let carry = 0;
  for (let t = logRatios.length - 1; t >= 0; t--) {
    const logRatio = clamp(logRatios[t], -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT);
    const summand = participates(logRatio, trained[t], knobs) ? logRatio : 0;
    if (countsAll || trained[t]) carry = summand + gamma * carry;
    result[t] = carry;
  }
  return result;
}

// The weight that the loss uses at a trained token.
function influenceWeight(futureKl, logRatio, advantage, knobs) {
  const weight = clamp(Math.exp(futureKl), weightLow(knobs), weightHigh(knobs));
  return isRisky(logRatio, advantage, knobs) ? clamp(weight, SAFE_WEIGHT_LOW, SAFE_WEIGHT_HIGH) : weight;
}

function isRisky(logRatio, advantage, knobs) {
  return advantage < 0 && Math.exp(clamp(logRatio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)) > knobs.safety_thresh;
}

// All columns that depend on the knobs. `advantageAt(t)` may give NaN where nobody knows.
function recompute(logRatios, trained, advantageAt, knobs) {
  const credit = futureKl(logRatios, trained, knobs);
  const weights = new Float64Array(credit.length).fill(1);
  for (let t = 0; t < credit.length; t++) {
    if (trained[t]) weights[t] = influenceWeight(credit[t], logRatios[t], advantageAt(t), knobs);
  }
  return { futureKl: credit, weight: weights };
}

// What each token k ≥ t adds to future_kl_t: γ^d(t,k) · M_k · log_ratio_k.
function contributions(logRatios, trained, knobs, t) {
  const gamma = gammaOf(knobs);
  const result = new Float64Array(logRatios.length);
  let factor = 1;
  // With distance "trained" the first trained token from t on is at distance 0, wherever it is.
  let started = knobs.distance !== "trained";
  for (let k = t; k < logRatios.length; k++) {
    const counts = knobs.distance !== "trained" || trained[k];
    if (counts && started && k > t) factor *= gamma;
    if (counts) started = true;
    const logRatio = clamp(logRatios[k], -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT);
    if (participates(logRatio, trained[k], knobs)) result[k] = factor * logRatio;
  }
  return result;
}
