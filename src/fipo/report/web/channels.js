// What colours tokens: six channels, each with a scale that is the same for every sample.

const CHANNELS = [
  { id: "log_ratio", label: "log_ratio", neutral: 0 },
  { id: "future_kl", label: "future_kl", neutral: 0 },
  { id: "weight", label: "weight", neutral: 1 },
  { id: "advantage_weight", label: "advantage × weight", neutral: 0 },
  { id: "entropy", label: "entropy", neutral: null },
  { id: "ratio", label: "ratio", neutral: 1 },
];
const CONTRIBUTION = { id: "contribution", label: "contribution", neutral: 0 };
const spans = { log_ratio: 1, future_kl: 1, advantage_weight: 1, entropy: 1 };
const SAMPLED_TRACES = 48;

const channelById = (id) => CHANNELS.find((channel) => channel.id === id) ?? CHANNELS[2];

// The value of a channel at every token as a function of t; NaN where nobody knows.
function valuesOf(trace, id) {
  const { futureKl: credit, weight } = creditOf(trace);
  const unknown = () => NaN;
  const by = {
    log_ratio: trace.logRatio ? (t) => trace.logRatio[t] : unknown,
    ratio: trace.logRatio ? (t) => Math.exp(trace.logRatio[t]) : unknown,
    future_kl: credit ? (t) => credit[t] : unknown,
    weight: weight ? (t) => weight[t] : unknown,
    advantage_weight: weight ? (t) => (trace.trained[t] ? advantageAt(trace, t) * weight[t] : 0) : unknown,
    entropy: trace.entropy ? (t) => fromHalf(trace.entropy[t]) : unknown,
  };
  return by[id];
}

// Scales are set once, from traces spread over all, so that a colour means the same everywhere and under every knob.
function measureSpans() {
  const step = Math.max(1, Math.floor(page.traces.length / SAMPLED_TRACES));
  for (const id of Object.keys(spans)) {
    const sizes = [];
    for (let index = 0; index < page.traces.length; index += step) collectSizes(openTrace(index), id, sizes);
    sizes.sort((a, b) => a - b);
    spans[id] = roundUp(sizes[Math.floor(sizes.length * 0.99)] || 0);
  }
}

function collectSizes(trace, id, sizes) {
  const value = valuesOf(trace, id);
  const stride = Math.max(1, Math.floor(trace.length / 200));
  for (let t = 0; t < trace.length; t += stride) {
    const size = Math.abs(value(t));
    if (size > 0 && size < Infinity) sizes.push(size);
  }
}

function roundUp(value) {
  if (!(value > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * [1, 2, 5, 10].find((factor) => factor * unit >= value * 0.999);
}

function spanOf(channel) {
  if (channel.id === "weight") return weightSpan();
  if (channel.id === "ratio") return spans.log_ratio;
  if (channel.id === "contribution") return channel.span;
  return spans[channel.id];
}

function weightSpan() {
  const each = page.params.map((known) => ({ ...known, ...state.knobs }));
  return Math.max(0.05, ...each.flatMap((knobs) => [1 - weightLow(knobs), weightHigh(knobs) - 1]));
}

// Where a value lies on its scale: −1 … 1, or 0 … 1 for entropy; ratios on a logarithmic axis.
function positionOf(channel, value) {
  if (Number.isNaN(value)) return NaN;
  const distance = channel.id === "ratio" ? Math.log(value) : value - (channel.neutral ?? 0);
  return clamp(distance / spanOf(channel), -1, 1);
}

// The value at a position: the inverse of positionOf.
function valueAt(channel, position) {
  const distance = position * spanOf(channel);
  return channel.id === "ratio" ? Math.exp(distance) : (channel.neutral ?? 0) + distance;
}

const colourName = (channel, position) => (channel.neutral === null ? "--seq" : position < 0 ? "--low" : "--high");

function background(channel, value) {
  const position = positionOf(channel, value);
  if (Number.isNaN(position) || Math.abs(position) < 0.005) return "";
  return `color-mix(in srgb, var(${colourName(channel, position)}) ${(Math.abs(position) * 100).toFixed(1)}%, transparent)`;
}

function shownChannel(trace) {
  if (state.selected === null || trace.index !== state.at || !trace.logRatio) return channelById(state.channel);
  return { ...CONTRIBUTION, span: contributionSpan(trace) };
}

function contributionSpan(trace) {
  const values = selectedContributions(trace);
  return values.reduce((most, value) => (Math.abs(value) > most ? Math.abs(value) : most), 0) || 1;
}

function selectedContributions(trace) {
  return contributions(trace.logRatio, trace.trained, knobsOf(trace), state.selected);
}

// Six digits, a true minus sign.
function number(value, digits = 6) {
  if (value === null || value === undefined || Number.isNaN(value)) return "unknown";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const text = value === 0 ? "0" : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

function drawLegend(element, channel) {
  const positions = channel.neutral === null ? [0, 0.25, 0.5, 0.75, 1] : [-1, -0.5, 0, 0.5, 1];
  element.replaceChildren(`${channel.label} `);
  positions.forEach((position, i) => {
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    const edge = Math.abs(position) === 1 ? (position < 0 ? "≤ " : "≥ ") : "";
    swatch.textContent = edge + number(valueAt(channel, position), 3);
    swatch.style.background = background(channel, valueAt(channel, position));
    element.append(swatch);
  });
}
