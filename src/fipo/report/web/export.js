// The view as a table and as a picture.

const PICTURE = { width: 1000, column: 460, line: 22, margin: 16, tallest: 12000, font: "14px ui-monospace, monospace", markFont: "9px ui-monospace, monospace", markWidth: 6 };

function download(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const COLUMNS_OF_CSV = [
  "run", "rollout", "update", "group", "sample", "reward", "position", "token_id", "bytes", "text", "trained", "log_ratio",
  "ratio", "future_kl", "weight", "advantage", "advantage_weight", "entropy", "flags",
];

function viewAsCsv() {
  const lines = [COLUMNS_OF_CSV.join(",")];
  for (const index of staged()) lines.push(...csvLines(openTrace(index)));
  return `${lines.join("\r\n")}\r\n`;
}

function csvLines(trace) {
  const { facts } = trace;
  const value = Object.fromEntries(CHANNELS.map(({ id }) => [id, valuesOf(trace, id)]));
  const plain = (number) => (Number.isNaN(number) ? "" : number);
  const first = [quoted(facts.run), facts.rollout, facts.update, facts.group, facts.sample, facts.reward ?? ""];
  return Array.from(trace.tokens, (entry, t) => {
    const bytes = tokenBytes(entry);
    const digits = Array.from(bytes, (byte) => hex(byte, 2)).join("");
    return [
      ...first, t, page.columns.vocabulary_ids[entry], digits, quoted(plainText(piecesOf(trace)[t])), trace.trained[t] ? 1 : 0,
      plain(value.log_ratio(t)), plain(value.ratio(t)), plain(value.future_kl(t)), plain(value.weight(t)),
      plain(advantageAt(trace, t)), plain(value.advantage_weight(t)), plain(value.entropy(t)), flagsOf(trace, t).join(" "),
    ].join(",");
  });
}

// Between quotation marks of its own, so that no spreadsheet takes a text for a formula.
const quoted = (text) => `"${JSON.stringify(text).replaceAll("\u200b", "").replaceAll('"', '""')}"`;

const exportCsv = () => download("fipo-view.csv", new Blob([viewAsCsv()], { type: "text/csv" }));

async function exportPng() {
  const canvas = drawPicture();
  const blob = await new Promise((resolve) => canvas.toBlob(resolve));
  download("fipo-view.png", blob);
}

// Lays out first, to know the height, and paints then.
function drawPicture() {
  const traces = staged().map(openTrace);
  const width = traces.length > 1 ? PICTURE.column : PICTURE.width;
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
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

function pictureColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["--surface", "--ink", "--faint", "--low", "--high", "--seq"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(name).trim()]));
}

function layOut(trace, width, context) {
  context.font = PICTURE.font;
  const words = [];
  let [x, y] = [0, 0];
  piecesOf(trace).forEach((pieces, t) => {
    const text = plainText(pieces).replaceAll("\u200b", "").replaceAll("\t", "");
    let marks = marksOf(trace, t);
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

const marksOf = (trace, t) => flagsOf(trace, t).map((name) => MARKS[name] ?? "?").join("");

// A text in parts that fit a column.
function partsOf(text, width, context) {
  const fitting = Math.max(1, Math.floor(width / context.measureText("m").width));
  const characters = [...text];
  if (characters.length <= fitting) return [text];
  const starts = Array.from({ length: Math.ceil(characters.length / fitting) }, (_, i) => i * fitting);
  return starts.map((start) => characters.slice(start, start + fitting).join(""));
}

function paintColumn(context, layout, left, colours) {
  const { trace } = layout;
  const { facts } = trace;
  const brush = openPanes.get(trace.index).brush();
  context.font = PICTURE.font;
  context.fillStyle = colours["--ink"];
  const top = 3 * PICTURE.line;
  context.fillText(`${visible(facts.run)} · rollout ${facts.rollout} · update ${facts.update} · sample ${facts.sample}`, left, PICTURE.line);
  const [least, greatest] = [brush.channel.neutral === null ? 0 : -1, 1].map((end) => number(valueAt(brush.channel, end), 3));
  context.fillText(`${brush.channel.label}, from ${least} to ${greatest} · ${rewardText(facts)}`, left, 2 * PICTURE.line);
  for (const word of layout.words) {
    if (word.y > PICTURE.tallest) {
      context.fillText(`… from token ${word.t} on left out`, left, top + PICTURE.tallest + PICTURE.line);
      return;
    }
    paintWord(context, word, left + word.x, top + word.y, brush, colours, trace);
  }
}

function paintWord(context, word, x, y, brush, colours, trace) {
  const position = positionOf(brush.channel, brush.value(word.t));
  if (position) {
    context.globalAlpha = Math.abs(position);
    context.fillStyle = colours[colourName(brush.channel, position)];
    context.fillRect(x, y, word.size, PICTURE.line - 3);
    context.globalAlpha = 1;
  }
  context.fillStyle = colours["--ink"];
  context.fillText(word.text, x, y + PICTURE.line - 8);
  if (word.marks) {
    context.font = PICTURE.markFont;
    context.fillText(word.marks, x - word.x + word.marksAt, y + 8);
    context.font = PICTURE.font;
  }
  if (!trace.trained[word.t]) context.fillRect(x, y + PICTURE.line - 5, word.size, 1);
}

function setUpExport() {
  document.getElementById("export-csv").addEventListener("click", exportCsv);
  document.getElementById("export-png").addEventListener("click", exportPng);
}
