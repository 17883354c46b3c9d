// The view as a table and as a picture.

import { byId, download, make } from "../dom.js";
import { formatNumber, formatReward } from "../format.js";
import { colourName, positionOf, valueAt } from "../model/channels.js";
import { marksOf } from "../model/credit.js";
import { tracesAsCsv } from "../model/csv.js";
import { plainName, plainText } from "../model/decode.js";
import { openTrace, piecesOf } from "../model/traces.js";
import { report, state } from "../state.js";
import { stagedTraces } from "./credit.js";
import { openPanes } from "./tokens.js";

/** @import { Brush, Trace } from "../types.js" */

/**
 * @typedef {{ t: number, x: number, y: number, size: number, text: string, marks: string, marksAt: number }} Word a token's
 *   part on one line; pixels
 * @typedef {{ trace: Trace, words: Word[], height: number }} Layout
 * @typedef {Record<string, string>} Colours by their names in report.css
 */

const PICTURE = { width: 1000, column: 460, line: 22, margin: 16, tallest: 12_000, markWidth: 6 }; // pixels
const FONT = "14px ui-monospace, monospace";
const MARK_FONT = "9px ui-monospace, monospace";

export function setUpExport() {
  byId("export-csv").addEventListener("click", () => download("fipo-view.csv", new Blob([viewAsCsv()], { type: "text/csv" })));
  byId("export-png").addEventListener("click", () => {
    drawPicture().toBlob((blob) => blob && download("fipo-view.png", blob));
  });
}

const shownTraces = () => stagedTraces().map((index) => openTrace(report, index));

export const viewAsCsv = () => tracesAsCsv(shownTraces(), state.knobs);

/** Lays out first, to know the height, and paints then. @type {() => HTMLCanvasElement} */
function drawPicture() {
  const traces = shownTraces();
  const width = traces.length > 1 ? PICTURE.column : PICTURE.width;
  const canvas = make("canvas");
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const layouts = traces.map((trace) => layOut(trace, width - 2 * PICTURE.margin, context));
  const tallest = Math.max(...layouts.map((layout) => layout.height));
  canvas.width = width * traces.length;
  canvas.height = Math.min(tallest, PICTURE.tallest) + 5 * PICTURE.line;
  const colours = pictureColours();
  context.fillStyle = colours["--surface"];
  context.fillRect(0, 0, canvas.width, canvas.height);
  layouts.forEach((layout, i) => paintColumn(context, layout, i * width + PICTURE.margin, colours));
  return canvas;
}

/** @type {() => Colours} */
function pictureColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["--surface", "--ink", "--low", "--high", "--seq"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(name).trim()]));
}

/** @type {(trace: Trace, width: number, context: CanvasRenderingContext2D) => Layout} */
function layOut(trace, width, context) {
  context.font = FONT;
  /** @type {Word[]} */
  const words = [];
  let [x, y] = [0, 0];
  piecesOf(trace).forEach((pieces, t) => {
    const text = plainText(pieces).replaceAll("\u200b", "").replaceAll("\t", "");
    let marks = marksOf(trace, t, state.knobs);
    for (const part of partsOf(text.replaceAll("\n", ""), width, context)) {
      const textSize = context.measureText(part).width;
      const size = textSize + marks.length * PICTURE.markWidth + 1;
      if (x + size > width && x > 0) [x, y] = [0, y + PICTURE.line];
      words.push({ t, x, y, size, text: part, marks, marksAt: x + textSize });
      x += size;
      marks = "";
    }
    const breaks = text.split("\n").length - 1;
    if (breaks) [x, y] = [0, y + breaks * PICTURE.line];
  });
  return { trace, words, height: y + PICTURE.line };
}

/** A text in parts that fit a column. @type {(text: string, width: number, context: CanvasRenderingContext2D) => string[]} */
function partsOf(text, width, context) {
  const fitting = Math.max(1, Math.floor(width / context.measureText("m").width));
  const characters = [...text];
  if (characters.length <= fitting) return [text];
  const starts = Array.from({ length: Math.ceil(characters.length / fitting) }, (_, i) => i * fitting);
  return starts.map((start) => characters.slice(start, start + fitting).join(""));
}

/** @type {(context: CanvasRenderingContext2D, layout: Layout, left: number, colours: Colours) => void} */
function paintColumn(context, { trace, words }, left, colours) {
  const { facts } = trace;
  const brush = /** @type {Brush} */ (openPanes.get(trace.index)?.brush());
  const { scale } = brush;
  context.font = FONT;
  context.fillStyle = colours["--ink"];
  const top = 3 * PICTURE.line;
  const name = `${plainName(facts.run)} · rollout ${facts.rollout} · update ${facts.update} · sample ${facts.sample}`;
  context.fillText(name, left, PICTURE.line);
  const [least, greatest] = [scale.neutral === null ? 0 : -1, 1].map((end) => formatNumber(valueAt(scale, end), 3));
  context.fillText(`${scale.label}, from ${least} to ${greatest} · ${formatReward(facts)}`, left, 2 * PICTURE.line);
  for (const word of words) {
    if (word.y > PICTURE.tallest) {
      context.fillText(`… from token ${word.t} on left out`, left, top + PICTURE.tallest + PICTURE.line);
      return;
    }
    paintWord(context, word, [left, top], brush, colours);
    if (!trace.trained[word.t]) context.fillRect(left + word.x, top + word.y + PICTURE.line - 5, word.size, 1);
  }
}

/** @type {(context: CanvasRenderingContext2D, word: Word, origin: number[], brush: Brush, colours: Colours) => void} */
function paintWord(context, word, [left, top], brush, colours) {
  const [x, y] = [left + word.x, top + word.y];
  const position = positionOf(brush.scale, brush.value(word.t));
  if (position) {
    context.globalAlpha = Math.abs(position);
    context.fillStyle = colours[colourName(brush.scale, position)];
    context.fillRect(x, y, word.size, PICTURE.line - 3);
    context.globalAlpha = 1;
  }
  context.fillStyle = colours["--ink"];
  context.fillText(word.text, x, y + PICTURE.line - 8);
  if (word.marks) {
    context.font = MARK_FONT;
    context.fillText(word.marks, left + word.marksAt, y + 8);
    context.font = FONT;
  }
}
