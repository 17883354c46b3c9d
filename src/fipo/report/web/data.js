// The data blocks of the page, and traces as views into them.

const page = { about: {}, charts: null, traces: [], prompts: [], params: [], controls: [], flags: {}, columns: {} };
const COLUMN_TYPES = {
  tokens: Uint32Array, flags: Uint8Array, log_ratio: Float32Array, advantages: Float32Array, old_logps: Uint16Array,
  entropy: Uint16Array, future_kl: Float32Array, weight: Float32Array, logps: Uint16Array,
  vocabulary_ids: Int32Array, vocabulary_ends: Uint32Array, vocabulary_bytes: Uint8Array,
};
const creditCache = new Map();
const CACHED_CREDITS = 64;
const LIVE_FLAGS = ["outside", "safety_capped"]; // follow the knobs; the others are the recorded ones

async function loadData() {
  const [about, charts, head] = await Promise.all(["about", "charts", "traces"].map(unpackJson));
  Object.assign(page, { about, charts });
  if (!head) return;
  Object.assign(page, { traces: head.traces, prompts: head.prompts, flags: head.flags, trainedBit: head.trained });
  page.params = head.params.map(withInfinities);
  page.controls = head.controls;
  const names = Object.keys(COLUMN_TYPES);
  const arrays = await Promise.all(names.map(unpackArray));
  names.forEach((name, i) => { page.columns[name] = arrays[i]; });
}

const withInfinities = (knobs) =>
  Object.fromEntries(Object.entries(knobs).map(([name, value]) => [name, value === "inf" ? Infinity : value]));

async function unpack(name) {
  const element = document.getElementById(`data-${name}`);
  if (!element) return null;
  const bytes = fromBase64(element.textContent);
  element.remove(); // its text is the larger half of the memory
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function unpackText(name) {
  const bytes = await unpack(name);
  return bytes && new TextDecoder().decode(bytes);
}

async function unpackJson(name) {
  const text = await unpackText(name);
  return text && JSON.parse(text);
}

async function unpackArray(name) {
  const planes = await unpack(name);
  const Type = COLUMN_TYPES[name];
  if (!planes) return new Type(0);
  const width = Type.BYTES_PER_ELEMENT;
  return width === 1 ? planes : new Type(joinPlanes(planes, width).buffer);
}

// The inverse of pack_array: all first bytes, all second bytes, … → entries.
function joinPlanes(planes, width) {
  const count = planes.length / width;
  const bytes = new Uint8Array(planes.length);
  for (let plane = 0; plane < width; plane++) {
    const offset = plane * count;
    for (let i = 0, at = plane; i < count; i++, at += width) bytes[at] = planes[offset + i];
  }
  return bytes;
}

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

function fromHalf(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const sign = bits & 0x8000 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -24 * fraction;
}

// One trace: its facts, and its columns as views. A column that nobody recorded is null.
function openTrace(index) {
  const facts = page.traces[index];
  if (facts.opened) return facts.opened;
  const view = (name) => {
    const start = facts.at[name];
    return start === undefined ? null : page.columns[name].subarray(start, start + facts.length);
  };
  const flags = view("flags");
  const trace = {
    index, facts, length: facts.length, tokens: view("tokens"), flags, trained: flags.map((bits) => bits & page.trainedBit),
    logRatio: view("log_ratio"), advantages: view("advantages"), oldLogps: view("old_logps"), logps: view("logps"),
    entropy: view("entropy"), recordedFutureKl: view("future_kl"), recordedWeight: view("weight"),
  };
  facts.opened = trace;
  return trace;
}

function advantageAt(trace, t) {
  if (trace.advantages) return trace.advantages[t];
  return trace.facts.advantage === null ? NaN : trace.facts.advantage;
}

function tokenBytes(entry) {
  const { vocabulary_ends: ends, vocabulary_bytes: bytes } = page.columns;
  return bytes.subarray(entry ? ends[entry - 1] : 0, ends[entry]);
}

function piecesOf(trace) {
  trace.pieces ??= decodeTokens(trace.length, (t) => tokenBytes(trace.tokens[t]));
  return trace.pieces;
}

// The completion as one string, for searching; lower case, so that case does not matter.
function searchText(trace) {
  if (trace.search !== undefined) return trace.search;
  let size = 0;
  for (const entry of trace.tokens) size += tokenBytes(entry).length;
  const joined = new Uint8Array(size);
  let at = 0;
  for (const entry of trace.tokens) {
    const bytes = tokenBytes(entry);
    joined.set(bytes, at);
    at += bytes.length;
  }
  trace.search = new TextDecoder().decode(joined).toLowerCase();
  return trace.search;
}

// The tokens that hold a match.
function matchingTokens(trace, needle) {
  const found = new Set();
  if (!needle) return found;
  const decoder = new TextDecoder();
  let text = "";
  const ends = Array.from(trace.tokens, (entry) => {
    text += decoder.decode(tokenBytes(entry), { stream: true }).toLowerCase();
    return text.length;
  });
  let t = 0;
  for (let at = text.indexOf(needle); at >= 0; at = text.indexOf(needle, at + needle.length)) {
    while (ends[t] <= at) t++;
    for (let k = t; k < ends.length && (k === t || ends[k - 1] < at + needle.length); k++) found.add(k);
  }
  return found;
}

function knobsOf(trace) {
  return { ...page.params[trace.facts.set], ...state.knobs };
}

// future_kl and weight under the present knobs, or as recorded where no log-ratio is known.
function creditOf(trace) {
  if (!trace.logRatio) return { futureKl: trace.recordedFutureKl, weight: trace.recordedWeight };
  const knobs = knobsOf(trace);
  const key = JSON.stringify([trace.index, Object.entries(state.knobs).map(String)]);
  let credit = creditCache.get(key);
  if (!credit) {
    credit = computeCredit(trace, knobs);
    creditCache.set(key, credit);
    if (creditCache.size > CACHED_CREDITS) creditCache.delete(creditCache.keys().next().value);
  }
  return credit;
}

// `fipo` is FIPO's weight; `weight` what the loss used, which differs where a fipo_control replaced it.
function computeCredit(trace, knobs) {
  const { futureKl, weight: fipo } = recompute(trace.logRatio, trace.trained, (t) => advantageAt(trace, t), knobs);
  return { futureKl, fipo, weight: isControlled(trace) ? trace.recordedWeight : fipo };
}

// Under other knobs nobody knows what a control would have made of the weights: FIPO's are shown then.
const isControlled = (trace) => Boolean(page.controls[trace.facts.set]) && Object.keys(state.knobs).length === 0;

// Names of a token's flags.
function flagsOf(trace, t) {
  const names = Object.keys(page.flags).filter((name) => trace.flags[t] & page.flags[name]);
  if (!trace.logRatio) return names;
  const live = names.filter((name) => !LIVE_FLAGS.includes(name));
  if (!trace.trained[t]) return live;
  const knobs = knobsOf(trace);
  if (isCapped(trace, t, knobs)) live.unshift("safety_capped");
  if (!participates(trace.logRatio[t], true, knobs)) live.unshift("outside");
  return live;
}

function isCapped(trace, t, knobs) {
  if (!isRisky(trace.logRatio[t], advantageAt(trace, t), knobs)) return false;
  const { futureKl: credit, fipo } = creditOf(trace);
  return fipo[t] !== clamp(Math.exp(credit[t]), weightLow(knobs), weightHigh(knobs));
}

const sameGroup = (a, b) =>
  a.set === b.set && a.run === b.run && a.rollout === b.rollout && a.group === b.group;
const sameCompletion = (a, b) =>
  a.set === b.set && a.run === b.run && a.rollout === b.rollout && a.sample === b.sample;

function indicesWhere(test) {
  return page.traces.flatMap((facts, index) => (test(facts) ? [index] : []));
}

// One trace a completion: a rollout's updates share its completions out, so a group's may lie in different ones.
function groupOf(index) {
  const looked = page.traces[index];
  const bySample = new Map();
  for (const other of indicesWhere((facts) => sameGroup(facts, looked))) {
    const { sample, update } = page.traces[other];
    if (!bySample.has(sample) || update === looked.update) bySample.set(sample, other);
  }
  const reward = (at) => page.traces[at].reward ?? -Infinity;
  return [...bySample.values()].sort((a, b) => reward(b) - reward(a) || a - b);
}

const updatesOf = (index) =>
  indicesWhere((facts) => sameCompletion(facts, page.traces[index])).sort(
    (a, b) => page.traces[a].update - page.traces[b].update,
  );
