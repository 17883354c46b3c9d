// Traces as a table for spreadsheets, a line a token.

import { formatHex } from "../format.js";
import { CHANNELS, valuesOf } from "./channels.js";
import { flagsOf } from "./credit.js";
import { plainText } from "./decode.js";
import { advantageAt, piecesOf, tokenBytes } from "./traces.js";

/** @import { Moved, Trace } from "../types.js" */

const COLUMNS = [
  "run", "rollout", "update", "group", "sample", "reward", "position", "token_id", "bytes", "text", "trained", "log_ratio",
  "ratio", "future_kl", "weight", "advantage", "advantage_weight", "entropy", "true_advantage", "mismatch", "flags",
];

/** @type {(traces: Trace[], moved: Moved) => string} */
export function tracesAsCsv(traces, moved) {
  const lines = [COLUMNS.join(","), ...traces.flatMap((trace) => csvLines(trace, moved))];
  return `${lines.join("\r\n")}\r\n`;
}

/** @type {(trace: Trace, moved: Moved) => string[]} */
function csvLines(trace, moved) {
  const { facts } = trace;
  const value = Object.fromEntries(CHANNELS.map(({ id }) => [id, valuesOf(trace, id, moved)]));
  /** @type {(value: number) => number | string} */
  const known = (value) => (Number.isNaN(value) ? "" : value);
  const first = [quoted(facts.run), facts.rollout, facts.update, facts.group, facts.sample, facts.reward ?? ""];
  return Array.from(trace.tokens, (entry, t) => {
    const digits = Array.from(tokenBytes(trace.vocabulary, entry), (byte) => formatHex(byte, 2)).join("");
    return [
      ...first, t, trace.vocabulary.ids[entry], digits, quoted(plainText(piecesOf(trace)[t])), trace.trained[t] ? 1 : 0,
      known(value.log_ratio(t)), known(value.ratio(t)), known(value.future_kl(t)), known(value.weight(t)),
      known(advantageAt(trace, t)), known(value.advantage_weight(t)), known(value.entropy(t)), known(value.true_advantage(t)), known(value.mismatch(t)),
      flagsOf(trace, t, moved).join(" "),
    ].join(",");
  });
}

/** Between quotation marks of its own, so that no spreadsheet takes a text for a formula. @type {(text: string) => string} */
const quoted = (text) => `"${JSON.stringify(text).replaceAll("\u200b", "").replaceAll('"', '""')}"`;
