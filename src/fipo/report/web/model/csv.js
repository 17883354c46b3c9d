// Traces as a table for spreadsheets, a line a token.

import { formatHex } from "../format.js";
import { valuesOf } from "./channels.js";
import { flagsOf } from "./credit.js";
import { plainText } from "./decode.js";
import { advantageAt, openTrace, piecesOf, tokenBytes } from "./traces.js";

/** @import { Moved, Report, Trace } from "../types.js" */

const PLACE = ["run", "rollout", "update", "group", "sample", "reward"];
const TOKEN = ["position", "token_id", "bytes", "text", "trained", "advantage"];

/** @type {(report: Report, indices: number[], moved: Moved) => string} */
export function tracesAsCsv(report, indices, moved) {
  const names = report.channels.map(({ name }) => name);
  const lines = indices.flatMap((index) => csvLines(openTrace(report, index), names, moved));
  return `${[[...PLACE, ...TOKEN, ...names, "flags"].join(","), ...lines].join("\r\n")}\r\n`;
}

/** @type {(trace: Trace, names: string[], moved: Moved) => string[]} */
function csvLines(trace, names, moved) {
  const { run, rollout, update, group, sample, reward } = trace.facts;
  const values = names.map((name) => valuesOf(trace, name, moved));
  /** @type {(value: number) => number | string} */
  const known = (value) => (Number.isNaN(value) ? "" : value);
  return Array.from(trace.tokens, (entry, t) => {
    const digits = Array.from(tokenBytes(trace.vocabulary, entry), (byte) => formatHex(byte, 2)).join("");
    return [
      quoted(run), rollout, update, group, sample, reward ?? "", t, trace.vocabulary.ids[entry], digits,
      quoted(plainText(piecesOf(trace)[t])), trace.trained[t] ? 1 : 0, known(advantageAt(trace, t)), ...values.map((value) => known(value(t))),
      flagsOf(trace, t, moved).join(" "),
    ].join(",");
  });
}

/** Between quotation marks of its own, so that no spreadsheet takes a text for a formula. @type {(text: string) => string} */
const quoted = (text) => `"${JSON.stringify(text).replaceAll("\u200b", "").replaceAll('"', '""')}"`;
