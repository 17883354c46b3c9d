// State, address, keyboard, start.

const START = { tab: null, at: 0, mode: "one", channel: "weight", selected: null, active: null, filters: NO_FILTERS, knobs: {} };
const state = { ...START };
const TABS = ["curves", "credit", "summary"];
const MODES = ["one", "group", "updates"];
const TURNED = ["decay_rate", "clip_ratio_low", "clip_ratio_high", "safety_thresh", "clip_high_only", "distance"];

// A knob's value from a text; undefined where FIPOParams would refuse it. The ranges are those of fipo.params.
function readKnob(name, text) {
  const knob = page.about.knobs[name];
  if (knob.choices.length > 0) return knob.choices.includes(text) ? text : undefined;
  if (typeof knob.default === "boolean") return { true: true, false: false }[text];
  const value = text.trim() === "" ? NaN : Number(text);
  const [low, high] = [parseEnd(knob.low), parseEnd(knob.high)];
  const above = knob.lowOpen ? value > low : value >= low;
  return above && (knob.highOpen ? value < high : value <= high) ? value : undefined;
}

const parseEnd = (end) => (end === "inf" ? Infinity : end); // JSON has no infinity

// Every change of what is shown goes through here.
function change(changes) {
  const before = { ...state };
  Object.assign(state, changes);
  draw(before);
  writeHash();
}

function draw(before) {
  const changed = (...names) => names.some((name) => before[name] !== state[name]);
  if (changed("tab")) drawTabs();
  if (page.traces.length > 0) drawTraces(changed);
  if (state.tab === "curves") drawCurves().catch(showFailure);
}

function drawTraces(changed) {
  if (changed("filters") || (changed("knobs") && LIVE_FLAGS.includes(state.filters.flag))) applyFilters();
  if (state.tab === "summary") drawSummary();
  if (state.tab !== "credit") return;
  const stale = changed("mode", "tab") || (changed("at") && !(state.mode !== "one" && openPanes.has(state.at)));
  if (stale) drawStage();
  else if (changed("channel", "selected", "active", "knobs", "filters", "at")) repaint();
  if (changed("at", "tab")) {
    hovered = null;
    revealRow(state.at);
    drawRows();
    drawPrompt();
    drawModes();
  }
  drawChannels();
  drawKnobs();
  drawDetails();
  if (stale && state.active !== null) openPanes.get(state.at).reveal(state.active);
}

function drawTabs() {
  for (const name of TABS) {
    const button = document.getElementById(`tab-${name}`);
    const chosen = name === state.tab;
    button.setAttribute("aria-selected", chosen);
    button.tabIndex = chosen ? 0 : -1;
    document.getElementById(name).hidden = !chosen;
  }
  document.getElementById("filters").hidden = state.tab === "curves";
}

// The address names the view: whoever opens it sees the same.
function hashOf() {
  const parts = new URLSearchParams();
  for (const name of ["tab", "at", "mode", "channel", "selected", "active"]) {
    if (state[name] !== START[name] && state[name] !== null) parts.set(name, state[name]);
  }
  for (const [name, value] of Object.entries(state.filters)) if (value !== "") parts.set(`filter.${name}`, value);
  for (const [name, value] of Object.entries(state.knobs)) parts.set(`knob.${name}`, value);
  return parts.toString();
}

const writeHash = () => history.replaceState(null, "", `#${hashOf()}`);

function readHash() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const found = { ...START, filters: { ...NO_FILTERS }, knobs: {} };
  const tabs = availableTabs();
  found.tab = tabs.includes(parts.get("tab")) ? parts.get("tab") : tabs[0];
  found.at = wholeNumber(parts.get("at"), page.traces.length) ?? START.at;
  if (MODES.includes(parts.get("mode"))) found.mode = parts.get("mode");
  found.channel = channelById(parts.get("channel")).id;
  const length = page.traces[found.at]?.length ?? 0;
  for (const name of ["selected", "active"]) found[name] = wholeNumber(parts.get(name), length);
  for (const [key, value] of parts) {
    const [kind, name] = key.split(".");
    if (kind === "filter" && Object.hasOwn(NO_FILTERS, name)) found.filters[name] = value;
    const turned = kind === "knob" && TURNED.includes(name) ? readKnob(name, value) : undefined;
    if (turned !== undefined) found.knobs[name] = turned;
  }
  return found;
}

function wholeNumber(text, end) {
  const value = Number(text);
  return text !== null && text !== "" && Number.isInteger(value) && value >= 0 && value < end ? value : null;
}

const availableTabs = () => TABS.filter((name) => (name === "curves" ? page.charts : page.traces.length > 0));

const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  g: () => toggleMode("group"),
  u: () => toggleMode("updates"),
  ArrowRight: () => activate(state.active === null ? 0 : state.active + 1),
  ArrowLeft: () => activate(state.active === null ? 0 : state.active - 1),
  ArrowDown: () => activate(state.active === null ? 0 : tokenOnLine(1)),
  ArrowUp: () => activate(state.active === null ? 0 : tokenOnLine(-1)),
  Home: () => activate(0),
  End: () => activate(Infinity),
  Enter: () => state.active !== null && change({ selected: state.selected === state.active ? null : state.active }),
  Escape: () => change({ selected: null }),
};

// On the list of samples the keys for moving choose samples, as in any list.
const LIST_KEYS = {
  ArrowDown: () => step(1),
  ArrowUp: () => step(-1),
  Home: () => step(-Infinity),
  End: () => step(Infinity),
};

const toggleMode = (mode) => change({ mode: state.mode === mode ? "one" : mode });

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches?.("input, select, textarea");
  if (typing && event.key === "Escape") event.target.blur();
  if (typing || document.getElementById("help").open) return;
  if (event.key === "?") return void document.getElementById("help").showModal();
  if (page.traces.length === 0) return;
  if (event.key === "/") return void (event.preventDefault(), focusSearch());
  if (state.tab !== "credit") return;
  const channel = CHANNELS[Number(event.key) - 1];
  if (channel) return change({ channel: channel.id, selected: null });
  const own = { button: ["Enter"], summary: ["Enter"], "[role=tab]": ["ArrowLeft", "ArrowRight"] };
  if (Object.entries(own).some(([element, keys]) => event.target.matches?.(element) && keys.includes(event.key))) return;
  const keys = event.target.id === "samples" ? { ...KEYS, ...LIST_KEYS } : KEYS;
  if (!Object.hasOwn(keys, event.key)) return;
  event.preventDefault();
  keys[event.key]();
}

function focusSearch() {
  if (state.tab === "curves") change({ tab: "credit" });
  document.getElementById("filters").open = true;
  document.getElementById("filter-text").focus();
}

function setUpTabs() {
  const tabs = availableTabs();
  for (const name of TABS) {
    const button = document.getElementById(`tab-${name}`);
    button.hidden = !tabs.includes(name);
    button.addEventListener("click", () => change({ tab: name }));
  }
  document.getElementById("tabs").addEventListener("keydown", (event) => {
    const direction = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!direction) return;
    const next = tabs[(tabs.indexOf(state.tab) + direction + tabs.length) % tabs.length];
    change({ tab: next });
    document.getElementById(`tab-${next}`).focus();
  });
}

function drawAbout() {
  showString(document.getElementById("title"), page.about.title);
  const list = document.getElementById("problems");
  for (const sentence of page.about.problems) list.append(showString(document.createElement("li"), sentence));
  document.getElementById("problems-box").hidden = page.about.problems.length === 0;
  const tokens = page.traces.reduce((sum, facts) => sum + facts.length, 0);
  const about = tokens ? `${page.traces.length} traces, ${tokens.toLocaleString("en")} tokens · ` : "";
  document.getElementById("about").textContent = `${about}fipo ${page.about.version}`;
}

// The first completion with something to show: an advantage that is not 0 and, if there is one, weights that vary.
function openingTrace() {
  const credited = indicesWhere((facts) => facts.sign !== 0);
  return credited.find((index) => weightsVary(openTrace(index))) ?? credited[0] ?? 0;
}

function weightsVary(trace) {
  const weights = creditOf(trace).weight?.filter((weight, t) => trace.trained[t] && !Number.isNaN(weight));
  return Boolean(weights?.some((weight) => weight !== weights[0]));
}

async function start() {
  await loadData();
  START.at = openingTrace();
  drawAbout();
  setUpTabs();
  document.getElementById("help-open").addEventListener("click", () => document.getElementById("help").showModal());
  if (page.traces.length > 0) {
    measureSpans();
    setUpCredit();
    setUpFilters();
    setUpKnobs();
    setUpExport();
  }
  addEventListener("keydown", onKey);
  addEventListener("hashchange", () => change(readHash()));
  const first = readHash();
  if (page.traces.length > 0) state.filters = null; // so that the first change draws the list
  change(first);
  document.body.dataset.ready = performance.now().toFixed(0);
}

// For tests and the curious: the numbers behind the colours.
window.fipo = {
  state, page, change, viewAsCsv,
  columns: (index) => {
    const trace = openTrace(index);
    const credit = creditOf(trace);
    return { futureKl: Array.from(credit.futureKl ?? []), weight: Array.from(credit.weight ?? []) };
  },
  summary: () => tallyTraces(shown),
};

function showFailure(error) {
  document.getElementById("failure").hidden = false;
  document.getElementById("failure").textContent = `This page could not be shown: ${error.message}. It needs a browser of 2023 or later.`;
  throw error;
}

start().catch(showFailure);
