// The credit view: one completion, a group's completions, or one completion across updates.

let hovered = null; // { trace, t }, while the pointer is on a token

function setUpCredit() {
  const channels = document.getElementById("channels");
  CHANNELS.forEach((channel, i) => {
    const button = document.createElement("button");
    button.dataset.channel = channel.id;
    button.textContent = channel.label;
    button.title = `key ${i + 1}`;
    button.addEventListener("click", () => change({ channel: channel.id }));
    channels.append(button);
  });
  for (const button of document.querySelectorAll("#modes button")) {
    button.addEventListener("click", () => change({ mode: button.dataset.mode }));
  }
  const stage = document.getElementById("stage");
  stage.addEventListener("pointerover", onPointer);
  stage.addEventListener("pointerleave", () => point(null));
  stage.addEventListener("click", onTokenClick);
  drawMarksLegend();
}

function tokenAt(event) {
  const element = event.target.closest?.(".token");
  const pane = element?.closest("[data-trace]");
  return pane ? { trace: openTrace(Number(pane.dataset.trace)), t: Number(element.dataset.t) } : null;
}

function onPointer(event) {
  point(tokenAt(event));
}

function point(found) {
  hovered = found;
  drawDetails();
}

function onTokenClick(event) {
  const found = tokenAt(event);
  if (!found) return;
  const again = found.trace.index === state.at && found.t === state.selected;
  change({ at: found.trace.index, active: found.t, selected: again ? null : found.t });
}

function drawMarksLegend() {
  const legend = document.getElementById("marks");
  const add = (className, marks, label) => {
    const item = document.createElement("span");
    const sample = document.createElement("span");
    sample.className = `token ${className}`;
    sample.textContent = "ab";
    if (marks) sample.dataset.marks = marks;
    item.append(sample, ` ${label}`);
    legend.append(item);
  };
  for (const name of Object.keys(page.flags)) add("", MARKS[name] ?? "?", name);
  add("untrained", "", "untrained");
}

// What is shown: indices of traces, the present one among them.
function staged() {
  if (state.mode === "group") return groupOf(state.at);
  if (state.mode === "updates") return updatesOf(state.at);
  return [state.at];
}

function drawStage() {
  closePanes();
  const stage = document.getElementById("stage");
  const indices = staged();
  stage.className = indices.length > 1 ? "columns" : "";
  stage.replaceChildren(...indices.map((index) => makeColumn(openTrace(index), stage)));
  stage.scrollTop = 0;
  drawPrompt();
  drawModes();
  if (indices.length > 1) openPanes.get(state.at).element.parentElement.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function makeColumn(trace, scroller) {
  const column = document.createElement("article");
  column.dataset.trace = trace.index;
  column.append(makeHead(trace));
  const pane = new TokenPane(trace, scroller);
  pane.element.setAttribute("role", "listbox");
  pane.element.setAttribute("aria-label", `completion of sample ${trace.facts.sample}, one option a token`);
  pane.element.tabIndex = 0;
  pane.element.addEventListener("focus", () => state.at === trace.index && state.active === null && activate(0));
  column.append(pane.element);
  if (trace.length === 0) pane.element.textContent = "This completion is empty.";
  return column;
}

function makeHead(trace) {
  const { facts } = trace;
  const head = document.createElement("header");
  const title = document.createElement("h3");
  showString(title, `${facts.run} · rollout ${facts.rollout} · update ${facts.update} · group ${facts.group} · sample ${facts.sample}`);
  const line = document.createElement("p");
  line.className = "faint";
  const parts = Object.entries(facts.rewards).map(([name, value]) => `${name} ${number(value, 3)}`);
  const ending = [facts.stop_reason && `ended: ${facts.stop_reason}`, facts.truncated && "truncated", facts.dropped && "dropped"];
  const outcome = `${rewardText(facts)}${parts.length ? ` (${parts.join(", ")})` : ""}`;
  showString(line, [outcome, `${trace.length.toLocaleString("en")} tokens`, ...ending].filter(Boolean).join(" · "));
  head.append(title, line);
  if (!trace.logRatio) head.append(notice("This trace has no log-ratio, so its credit cannot be recovered; what its source recorded is shown."));
  else if (!page.params[facts.set].known) head.append(notice("The knobs of this run are not recorded; fipo's defaults are shown."));
  return head;
}

function notice(sentence) {
  const element = document.createElement("p");
  element.className = "notice";
  element.textContent = sentence;
  return element;
}

function drawPrompt() {
  showString(document.getElementById("prompt"), page.prompts[page.traces[state.at].prompt] || "(no prompt recorded)");
}

function drawModes() {
  const counts = { one: 1, group: groupOf(state.at).length, updates: updatesOf(state.at).length };
  for (const button of document.querySelectorAll("#modes button")) {
    const { mode } = button.dataset;
    button.setAttribute("aria-pressed", mode === state.mode);
    button.disabled = mode !== "one" && counts[mode] < 2 && mode !== state.mode;
    if (mode !== "one") button.textContent = `${button.dataset.label} (${counts[mode]})`;
  }
}

function drawChannels() {
  for (const button of document.querySelectorAll("#channels button")) {
    button.setAttribute("aria-pressed", button.dataset.channel === state.channel);
  }
  const trace = openTrace(state.at);
  const channel = shownChannel(trace);
  const legend = document.getElementById("legend");
  drawLegend(legend, channel);
  const unknown = (channel.id === "entropy" && !trace.entropy) || Number.isNaN(valuesOf(trace, state.channel)(0));
  if (unknown && trace.length) legend.append(" unknown for this trace");
  if (channel.id === "contribution") legend.append(` to future_kl of token ${state.selected}; Esc goes back`);
}

function drawDetails() {
  if (hovered) showArithmetic(hovered.trace, hovered.t);
  else showArithmetic(openTrace(state.at), state.active);
}

// Moves the keyboard's token.
function activate(t) {
  const pane = openPanes.get(state.at);
  const before = state.active;
  if (!pane || pane.trace.length === 0) return;
  hovered = null;
  state.active = clamp(t, 0, pane.trace.length - 1);
  pane.reveal(state.active);
  if (before !== null) pane.repaintToken(before);
  pane.repaintToken(state.active);
  pane.element.setAttribute("aria-activedescendant", `token-${state.at}-${state.active}`);
  drawDetails();
  writeHash();
}

// The token on the next or previous line that lies nearest, or a step of ten where there is none in sight.
function tokenOnLine(direction) {
  const pane = openPanes.get(state.at);
  const here = pane.tokenElement(state.active).getBoundingClientRect();
  let best = null;
  for (let t = state.active + direction; t >= 0 && t < pane.trace.length; t += direction) {
    const there = pane.tokenElement(t)?.getBoundingClientRect();
    if (!there) break;
    const lines = ((there.top - here.top) * direction) / LINE_HEIGHT;
    if (lines > 1.6 && best) break;
    if (lines < 0.6) continue;
    const distance = Math.abs(there.left - here.left);
    if (!best || distance < best.distance) best = { t, distance };
  }
  return best ? best.t : state.active + 10 * direction;
}
