// A completion as text. Only blocks near the visible part hold elements; the others keep their height.

import { make, setAria, showPieces } from "../dom.js";
import { background, isContribution, scaledValues, scaleOf } from "../model/channels.js";
import { marksOf } from "../model/credit.js";
import { matchingTokens, piecesOf } from "../model/traces.js";
import { report, state } from "../state.js";

/** @import { Brush, Piece, Trace } from "../types.js" */

/**
 * @typedef {{ start: number, end: number, forced: boolean }} Range tokens; forced: the text has no line break at the end
 * @typedef {Range & { element: HTMLElement, filled: boolean }} TokenBlock
 */

const BLOCK_TOKENS = 240; // a block ends at the first line break from here on,
const BLOCK_LIMIT = 480; // or here, where the report has to break a line that the text does not
const CHARACTERS_A_LINE = 80;
export const LINE_HEIGHT = 27; // pixels; must fit report.css
/** @type {Map<number, TokenPane>} */
export const openPanes = new Map(); // by index of the trace

export class TokenPane {
  /**
   * @param {Trace} trace
   * @param {Element} scroller
   */
  constructor(trace, scroller) {
    this.trace = trace;
    this.pieces = piecesOf(trace);
    this.element = make("div", { className: "tokens", dir: "ltr" });
    this.blocks = blockRanges(this.pieces).map((range) => this.makeBlock(range));
    this.needle = "";
    /** @type {Set<number>} */
    this.matches = new Set();
    this.observer = new IntersectionObserver((entries) => this.onVisible(entries), {
      root: scroller, rootMargin: "800px",
    });
    for (const block of this.blocks) this.observer.observe(block.element);
    openPanes.set(trace.index, this);
  }

  /** @type {(range: Range) => TokenBlock} */
  makeBlock(range) {
    const element = make("div", { className: range.forced ? "block forced" : "block" });
    const characters = this.pieces.slice(range.start, range.end).reduce((sum, pieces) => sum + widthOf(pieces), 0);
    element.style.minHeight = `${Math.ceil(characters / CHARACTERS_A_LINE) * LINE_HEIGHT}px`;
    this.element.append(element);
    return { ...range, element, filled: false };
  }

  /** @type {(entries: IntersectionObserverEntry[]) => void} */
  onVisible(entries) {
    for (const entry of entries) {
      const block = this.blocks.find((candidate) => candidate.element === entry.target);
      if (block && entry.isIntersecting) this.fill(block);
      else if (block) this.empty(block);
    }
  }

  /** @type {(block: TokenBlock) => void} */
  fill(block) {
    if (block.filled) return;
    block.filled = true;
    const brush = this.brush();
    for (let t = block.start; t < block.end; t++) block.element.append(this.makeToken(t, brush));
    block.element.style.minHeight = "";
  }

  /** @type {(block: TokenBlock) => void} */
  empty(block) {
    if (!block.filled || this.holdsFocus(block)) return;
    block.filled = false;
    block.element.style.minHeight = `${block.element.offsetHeight}px`;
    block.element.replaceChildren();
  }

  /** @type {(block: TokenBlock) => boolean} */
  holdsFocus(block) {
    const { at, active } = state;
    return active !== null && at === this.trace.index && block.start <= active && active < block.end;
  }

  /** @type {(t: number, brush: Brush) => HTMLElement} */
  makeToken(t, brush) {
    const element = make("span", { id: `token-${this.trace.index}-${t}`, role: "option" });
    element.dataset.t = String(t);
    showPieces(element, this.pieces[t].length ? this.pieces[t] : [{ text: "∅", box: "cut" }]);
    this.paintToken(element, t, brush);
    return element;
  }

  /** Found once for all tokens. @type {() => Brush} */
  brush() {
    const scale = scaleOf(report, this.trace, state);
    const needle = state.filters.text.toLowerCase();
    if (this.needle !== needle) [this.needle, this.matches] = [needle, matchingTokens(this.trace, needle)];
    return { scale, value: scaledValues(this.trace, scale, state), matches: this.matches };
  }

  /** @type {(element: HTMLElement, t: number, brush: Brush) => void} */
  paintToken(element, t, brush) {
    const marks = marksOf(this.trace, t, state.knobs);
    const own = state.at === this.trace.index;
    const classes = ["token"];
    if (!this.trace.trained[t]) classes.push("untrained");
    if (brush.matches.has(t)) classes.push("match");
    if (own && t === state.selected) classes.push("selected");
    if (own && t === state.active) classes.push("active");
    if (isContribution(brush.scale) && t < (state.selected ?? 0)) classes.push("before");
    element.className = classes.join(" ");
    element.style.background = background(brush.scale, brush.value(t));
    setAria(element, { selected: own && t === state.selected });
    if (marks) element.dataset.marks = marks;
    else delete element.dataset.marks;
  }

  paint() {
    const brush = this.brush();
    for (const { element, filled, start } of this.blocks) {
      if (filled) [...element.children].forEach((child, i) => this.paintToken(/** @type {HTMLElement} */ (child), start + i, brush));
    }
  }

  /** @type {(t: number) => void} */
  repaintToken(t) {
    const element = this.tokenElement(t);
    if (element) this.paintToken(element, t, this.brush());
  }

  /** @type {(t: number) => HTMLElement | null} */
  tokenElement(t) {
    return document.getElementById(`token-${this.trace.index}-${t}`);
  }

  /** Makes sure that a token is there and in sight. @type {(t: number) => void} */
  reveal(t) {
    const block = this.blocks.find((candidate) => t < candidate.end);
    if (!block) return;
    this.fill(block);
    this.tokenElement(t)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  close() {
    this.observer.disconnect();
    openPanes.delete(this.trace.index);
  }
}

/** In characters; a line break counts as half a line. @type {(pieces: Piece[]) => number} */
const widthOf = (pieces) =>
  pieces.reduce((sum, { text }) => sum + (text.endsWith("\n") ? CHARACTERS_A_LINE / 2 : text.length), 0);

/** @type {(pieces: Piece[][]) => Range[]} */
function blockRanges(pieces) {
  const ranges = [];
  let start = 0;
  for (let t = 0; t < pieces.length; t++) {
    const size = t + 1 - start;
    const last = pieces[t].at(-1);
    const breaks = last !== undefined && !last.box && last.text.endsWith("\n");
    if ((size >= BLOCK_TOKENS && breaks) || size >= BLOCK_LIMIT || t === pieces.length - 1) {
      ranges.push({ start, end: t + 1, forced: !breaks && t < pieces.length - 1 });
      start = t + 1;
    }
  }
  return ranges;
}

export function closePanes() {
  for (const pane of [...openPanes.values()]) pane.close();
}

addEventListener("beforeprint", () => {
  for (const pane of openPanes.values()) pane.blocks.forEach((block) => pane.fill(block));
});

export const repaint = () => openPanes.forEach((pane) => pane.paint());
