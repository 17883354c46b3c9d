// What the credit does over all traces that pass the filters, under the present knobs.

const POSITION_BINS = 24;
const SHOWN_TOKENS = 15;
const LEAST_OCCURRENCES = 5;
const TOKEN_CLASSES = [
  ["reflection words", /^(wait|however|but|let|check|hmm|alternatively|actually|verify|recheck|mistake|maybe|instead)$/],
  ["digits", /^\p{N}+$/u],
  ["operators", /^[+\-−*/=×÷·^<>≤≥≠≈±%]+$/u],
  ["punctuation", /^[\p{P}\p{S}]+$/u],
  ["white space", /^$/],
];
const CLASS_NAMES = [...TOKEN_CLASSES.map(([name]) => name), "other"];
let summaryKey = "";
let tokenClasses = null; // vocabulary entry → place in CLASS_NAMES

function classifyVocabulary() {
  const decoder = new TextDecoder();
  const count = page.columns.vocabulary_ends.length;
  return Uint8Array.from({ length: count }, (_, entry) => {
    const text = decoder.decode(tokenBytes(entry).subarray(0, 64)).trim().toLowerCase();
    const place = TOKEN_CLASSES.findIndex(([, pattern]) => pattern.test(text));
    return place < 0 ? TOKEN_CLASSES.length : place;
  });
}

const emptyTally = () => ({ count: 0, sum: 0, low: 0, high: 0, up: 0, down: 0, safety: 0, outside: 0 });

// One pass over the tokens of the traces given.
function tallyTraces(indices) {
  tokenClasses ??= classifyVocabulary();
  const size = page.columns.vocabulary_ends.length;
  const tally = {
    runs: new Map(), traces: 0, unknown: 0,
    positions: Array.from({ length: POSITION_BINS }, emptyTally), classes: CLASS_NAMES.map(emptyTally),
    count: new Uint32Array(size), sum: new Float64Array(size), up: new Uint32Array(size), down: new Uint32Array(size),
  };
  for (const index of indices) {
    const trace = openTrace(index);
    if (trace.logRatio) tallyTrace(trace, tally);
    else tally.unknown += 1;
  }
  return tally;
}

function tallyTrace(trace, tally) {
  const knobs = knobsOf(trace);
  const low = weightLow(knobs);
  const high = weightHigh(knobs);
  const { futureKl: credit, fipo, weight } = computeCredit(trace, knobs);
  const { run } = trace.facts;
  if (!tally.runs.has(run)) tally.runs.set(run, emptyTally());
  const own = tally.runs.get(run);
  tally.traces += 1;
  for (let t = 0; t < trace.length; t++) {
    if (!trace.trained[t] || Number.isNaN(weight[t])) continue;
    const entry = trace.tokens[t];
    const raw = Math.exp(credit[t]);
    for (const place of [own, tally.positions[Math.floor((t * POSITION_BINS) / trace.length)], tally.classes[tokenClasses[entry]]]) {
      addWeight(place, weight[t], raw < low, raw > high);
    }
    own.safety += fipo[t] !== clamp(raw, low, high);
    own.outside += !participates(trace.logRatio[t], true, knobs);
    tally.count[entry] += 1;
    tally.sum[entry] += weight[t];
    if (weight[t] > 1) tally.up[entry] += 1;
    else if (weight[t] < 1) tally.down[entry] += 1;
  }
}

function addWeight(place, weight, atLow, atHigh) {
  place.count += 1;
  place.sum += weight;
  place.low += atLow;
  place.high += atHigh;
  place.up += weight > 1;
  place.down += weight < 1;
}

// The lower end of a 95 % interval of a share (Wilson's), so that rare tokens do not lead the tables.
function lowerShare(hits, count) {
  const z = 1.96;
  const share = hits / count;
  const spread = z * Math.sqrt((share * (1 - share)) / count + (z * z) / (4 * count * count));
  return (share + (z * z) / (2 * count) - spread) / (1 + (z * z) / count);
}

function leadingTokens(tally, hits) {
  const entries = [];
  for (let entry = 0; entry < hits.length; entry++) {
    if (tally.count[entry] >= LEAST_OCCURRENCES && hits[entry] > 0) entries.push([lowerShare(hits[entry], tally.count[entry]), entry]);
  }
  return entries.sort((a, b) => b[0] - a[0]).slice(0, SHOWN_TOKENS).map(([, entry]) => entry);
}

const percent = (share) => (Number.isFinite(share) ? `${(100 * share).toFixed(1)} %` : "–");
const mean = (place) => (place.count ? number(place.sum / place.count, 4) : "–");

function drawSummary() {
  const key = JSON.stringify([state.filters, Object.entries(state.knobs).map(String)]);
  if (key === summaryKey) return;
  summaryKey = key;
  const tally = tallyTraces(shown);
  const host = document.getElementById("summary-body");
  host.replaceChildren();
  host.append(paragraph(scopeSentence(tally)));
  if (tally.traces === 0) return;
  const saturation = card("Saturation", saturationTable(tally));
  saturation.classList.add("wide"); // seven columns do not fit beside another card
  host.append(saturation);
  host.append(card("Weight by position in the response", positionChart(tally.positions)));
  host.append(card("Weight by kind of token", classTable(tally)));
  host.append(card("Most often amplified", tokenTable(tally, tally.up, "weight above 1")));
  host.append(card("Most often attenuated", tokenTable(tally, tally.down, "weight below 1")));
}

function scopeSentence(tally) {
  const without = tally.unknown ? ` ${tally.unknown} have no log-ratio and are left out.` : "";
  const moved = Object.keys(state.knobs).length ? " The knobs are those of the what-if panel." : "";
  return `Trained tokens of the ${tally.traces.toLocaleString("en")} traces that pass the filters.${without}${moved}`;
}

function paragraph(text) {
  const element = document.createElement("p");
  element.textContent = text;
  return element;
}

function card(title, content) {
  const section = document.createElement("section");
  const heading = document.createElement("h3");
  section.className = "card";
  heading.textContent = title;
  section.append(heading, content);
  return section;
}

function table(names, rows) {
  const element = document.createElement("table");
  const head = element.createTHead().insertRow();
  for (const name of names) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = name;
    head.append(cell);
  }
  const body = element.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const content of row) {
      const cell = line.insertCell();
      if (Array.isArray(content)) showPieces(cell, content);
      else cell.textContent = content;
    }
  }
  return element;
}

function saturationTable(tally) {
  const rows = [...tally.runs].map(([run, own]) => [
    decodeString(run), own.count.toLocaleString("en"), mean(own), percent(own.low / own.count), percent(own.high / own.count),
    percent(own.safety / own.count), percent(own.outside / own.count),
  ]);
  return table(["run", "tokens", "mean weight", "below low bound", "above high bound", "safety_capped", "outside"], rows);
}

function classTable(tally) {
  const rows = CLASS_NAMES.map((name, i) => [name, tally.classes[i]]).filter(([, own]) => own.count > 0);
  return table(
    ["kind", "tokens", "mean weight", "weight above 1", "weight below 1"],
    rows.map(([name, own]) => [name, own.count.toLocaleString("en"), mean(own), percent(own.up / own.count), percent(own.down / own.count)]),
  );
}

function tokenTable(tally, hits, label) {
  const entries = leadingTokens(tally, hits);
  if (entries.length === 0) return paragraph(`No token occurs ${LEAST_OCCURRENCES} times and has a ${label}.`);
  const pieces = (entry) => decodeTokens(1, () => tokenBytes(entry))[0];
  return table(
    ["token", "occurrences", label, "mean weight"],
    entries.map((entry) => [
      pieces(entry), tally.count[entry].toLocaleString("en"), percent(hits[entry] / tally.count[entry]),
      number(tally.sum[entry] / tally.count[entry], 4),
    ]),
  );
}

const SVG = "http://www.w3.org/2000/svg";
const CHART = { width: 560, height: 200, left: 56, bottom: 34, top: 12, right: 10 };

function svg(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Mean weight in each part of the response, as bars from 1.
function positionChart(bins) {
  const { width, height, left, bottom, top, right } = CHART;
  const means = bins.map((bin) => (bin.count ? bin.sum / bin.count : NaN));
  const span = roundUp(Math.max(0.001, ...means.filter((value) => !Number.isNaN(value)).map((value) => Math.abs(value - 1))));
  const y = (value) => top + ((1 + span - value) / (2 * span)) * (height - top - bottom);
  const slot = (width - left - right) / bins.length;
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "mean weight by position", class: "chart" });
  for (const value of [1 - span, 1, 1 + span]) {
    chart.append(svg("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "rule" }));
    chart.append(svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, number(value, 4)));
  }
  means.forEach((value, i) => {
    if (Number.isNaN(value)) return;
    const bar = svg("rect", {
      x: left + i * slot + 1, width: slot - 2, y: Math.min(y(value), y(1)), height: Math.abs(y(value) - y(1)) + 0.5,
      class: value < 1 ? "bar-low" : "bar-high",
    });
    bar.append(svg("title", {}, `${percent(i / bins.length)} to ${percent((i + 1) / bins.length)}: mean weight ${number(value, 5)}, ${bins[i].count} tokens`));
    chart.append(bar);
  });
  chart.append(svg("text", { x: left, y: height - 8 }, "start"));
  chart.append(svg("text", { x: width - right, y: height - 8, "text-anchor": "end" }, "end of the response"));
  return chart;
}
