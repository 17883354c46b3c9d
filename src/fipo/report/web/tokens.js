// A completion as text. Only blocks near the visible part hold elements; the others keep their height.

const BLOCK_TOKENS = 240; // a block ends at the first line break from here on,
const BLOCK_LIMIT = 480; // or here, where the page has to break a line that the text does not
const CHARACTERS_A_LINE = 80;
const LINE_HEIGHT = 27; // pixels; must fit report.css
const MARKS = { outside: "o", safety_capped: "s", clipped_low: "‹", clipped_high: "›", dual_clipped: "d" };
const openPanes = new Map(); // trace index → pane

class TokenPane {
  constructor(trace, scroller) {
    this.trace = trace;
    this.pieces = piecesOf(trace);
    this.element = document.createElement("div");
    this.element.className = "tokens";
    this.element.dir = "ltr";
    this.blocks = blockEnds(this.pieces).map((range) => this.makeBlock(range));
    this.observer = new IntersectionObserver((entries) => this.onVisible(entries), {
      root: scroller, rootMargin: "800px",
    });
    for (const block of this.blocks) this.observer.observe(block.element);
    openPanes.set(trace.index, this);
  }

  makeBlock(range) {
    const element = document.createElement("div");
    element.className = range.forced ? "block forced" : "block";
    const characters = this.pieces.slice(range.start, range.end).reduce((sum, pieces) => sum + widthOf(pieces), 0);
    element.style.minHeight = `${Math.ceil(characters / CHARACTERS_A_LINE) * LINE_HEIGHT}px`;
    this.element.append(element);
    return { ...range, element, filled: false };
  }

  onVisible(entries) {
    for (const entry of entries) {
      const block = this.blocks.find((candidate) => candidate.element === entry.target);
      if (entry.isIntersecting) this.fill(block);
      else this.empty(block);
    }
  }

  fill(block) {
    if (block.filled) return;
    block.filled = true;
    const brush = this.brush();
    for (let t = block.start; t < block.end; t++) block.element.append(this.makeToken(t, brush));
    block.element.style.minHeight = "";
  }

  empty(block) {
    if (!block.filled || this.holdsFocus(block)) return;
    block.filled = false;
    block.element.style.minHeight = `${block.element.offsetHeight}px`;
    block.element.replaceChildren();
  }

  holdsFocus(block) {
    return state.active !== null && state.at === this.trace.index && block.start <= state.active && state.active < block.end;
  }

  makeToken(t, brush) {
    const element = document.createElement("span");
    element.id = `token-${this.trace.index}-${t}`;
    element.setAttribute("role", "option");
    element.dataset.t = t;
    showPieces(element, this.pieces[t]);
    if (this.pieces[t].length === 0) showPieces(element, [{ text: "∅", box: "cut" }]);
    this.paintToken(element, t, brush);
    return element;
  }

  // What painting needs to know, found once for all tokens.
  brush() {
    const channel = shownChannel(this.trace);
    const contributing = channel.id === "contribution" ? selectedContributions(this.trace) : null;
    const value = contributing ? (t) => (t >= state.selected ? contributing[t] : NaN) : valuesOf(this.trace, channel.id);
    const needle = state.filters.text.toLowerCase();
    if (this.needle !== needle) [this.needle, this.matches] = [needle, matchingTokens(this.trace, needle)];
    return { channel, value, matches: this.matches };
  }

  paintToken(element, t, brush) {
    const flags = flagsOf(this.trace, t);
    const own = state.at === this.trace.index;
    const classes = ["token"];
    if (!this.trace.trained[t]) classes.push("untrained");
    if (brush.matches.has(t)) classes.push("match");
    if (own && t === state.selected) classes.push("selected");
    if (own && t === state.active) classes.push("active");
    if (brush.channel.id === "contribution" && t < state.selected) classes.push("before");
    element.className = classes.join(" ");
    element.style.background = background(brush.channel, brush.value(t));
    element.setAttribute("aria-selected", own && t === state.selected);
    if (flags.length) element.dataset.marks = flags.map((name) => MARKS[name] ?? "?").join("");
    else delete element.dataset.marks;
  }

  paint() {
    const brush = this.brush();
    for (const block of this.blocks) {
      if (!block.filled) continue;
      for (const element of block.element.children) this.paintToken(element, Number(element.dataset.t), brush);
    }
  }

  repaintToken(t) {
    const element = this.tokenElement(t);
    if (element) this.paintToken(element, t, this.brush());
  }

  tokenElement(t) {
    return document.getElementById(`token-${this.trace.index}-${t}`);
  }

  // Makes sure that a token is there and in sight.
  reveal(t) {
    const block = this.blocks.find((candidate) => t < candidate.end);
    if (!block) return;
    this.fill(block);
    this.tokenElement(t).scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  close() {
    this.observer.disconnect();
    openPanes.delete(this.trace.index);
  }
}

const widthOf = (pieces) => pieces.reduce((sum, { text }) => sum + (text.endsWith("\n") ? CHARACTERS_A_LINE / 2 : text.length), 0);

function blockEnds(pieces) {
  const ranges = [];
  let start = 0;
  for (let t = 0; t < pieces.length; t++) {
    const size = t + 1 - start;
    const last = pieces[t][pieces[t].length - 1];
    const breaks = last !== undefined && !last.box && last.text.endsWith("\n");
    if ((size >= BLOCK_TOKENS && breaks) || size >= BLOCK_LIMIT || t === pieces.length - 1) {
      ranges.push({ start, end: t + 1, forced: !breaks && t < pieces.length - 1 });
      start = t + 1;
    }
  }
  return ranges;
}

function closePanes() {
  for (const pane of [...openPanes.values()]) pane.close();
}

const repaint = () => openPanes.forEach((pane) => pane.paint());
