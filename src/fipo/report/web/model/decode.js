// From the bytes of tokens to what a person sees. A character may span tokens; what is no plain character becomes a box.

import { formatCount, formatHex } from "../format.js";

/** @import { Piece } from "../types.js" */

/**
 * @typedef {{ t: number, byte: number, silent?: boolean }} Pending a byte of an unfinished character, and its token
 * @typedef {{ pieces: Piece[][], pending: Pending[], expected: number, point: number }} Decoder
 */

const SHOWN_BYTES = 256; // of one token; a longer one is cut and its length stated
const NOT_PLAIN = /[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}]/u;
const COMBINING = /^\p{M}/u;

/** @type {(count: number) => Decoder} */
const newDecoder = (count) => ({ pieces: Array.from({ length: count }, () => []), pending: [], expected: 0, point: 0 });

/** The pieces of every token. @type {(count: number, bytesOf: (t: number) => Uint8Array) => Piece[][]} */
export function decodeTokens(count, bytesOf) {
  const decoder = newDecoder(count);
  for (let t = 0; t < count; t++) {
    const bytes = bytesOf(t);
    if (bytes.length <= SHOWN_BYTES) {
      for (const byte of bytes) takeByte(decoder, t, byte);
      continue;
    }
    for (let i = 0; i < SHOWN_BYTES; i++) takeByte(decoder, t, bytes[i]);
    giveUp(decoder, "part");
    addPiece(decoder, t, `… ${formatCount(bytes.length)} bytes`, "cut");
    skipToTail(decoder, bytes);
  }
  giveUp(decoder, "bad");
  return decoder.pieces;
}

/**
 * The end of a cut token is not shown, but a character may start there and end in the next token.
 * @type {(decoder: Decoder, bytes: Uint8Array) => void}
 */
function skipToTail(decoder, bytes) {
  const silent = newDecoder(1);
  for (const byte of bytes.subarray(-8)) takeByte(silent, 0, byte);
  decoder.pending = silent.pending.map((entry) => ({ ...entry, silent: true }));
  decoder.expected = silent.expected;
  decoder.point = silent.point;
}

/** @type {(decoder: Decoder, t: number, byte: number) => void} */
function takeByte(decoder, t, byte) {
  if (decoder.expected > 0) {
    if (continues(decoder, byte)) {
      decoder.pending.push({ t, byte });
      decoder.point = decoder.point * 64 + (byte & 63);
      decoder.expected -= 1;
      if (decoder.expected === 0) finish(decoder, t);
      return;
    }
    giveUp(decoder, "bad");
  }
  if (byte < 0x80) addCharacter(decoder, t, byte);
  else if (byte >= 0xc2 && byte <= 0xf4) startCharacter(decoder, t, byte);
  else addPiece(decoder, t, formatHex(byte, 2), "bad");
}

/** @type {(decoder: Decoder, t: number, byte: number) => void} */
function startCharacter(decoder, t, byte) {
  decoder.pending = [{ t, byte }];
  decoder.expected = byte >= 0xf0 ? 3 : byte >= 0xe0 ? 2 : 1;
  decoder.point = byte & (0x3f >> decoder.expected);
}

/**
 * Overlong forms and what lies beyond U+10FFFF are no characters. Surrogates pass: they are named in a box.
 * @type {(decoder: Decoder, byte: number) => boolean}
 */
function continues(decoder, byte) {
  if (byte < 0x80 || byte > 0xbf) return false;
  if (decoder.pending.length > 1) return true;
  const lead = decoder.pending[0].byte;
  return !((lead === 0xe0 && byte < 0xa0) || (lead === 0xf0 && byte < 0x90) || (lead === 0xf4 && byte > 0x8f));
}

/**
 * The token that completes a character shows it; the others show their bytes.
 * @type {(decoder: Decoder, t: number) => void}
 */
function finish(decoder, t) {
  const earlier = decoder.pending.filter((entry) => entry.t !== t && !entry.silent);
  for (const entry of earlier) addPiece(decoder, entry.t, formatHex(entry.byte, 2), "part");
  decoder.pending = [];
  addCharacter(decoder, t, decoder.point);
}

/** @type {(decoder: Decoder, kind: string) => void} */
function giveUp(decoder, kind) {
  for (const entry of decoder.pending) if (!entry.silent) addPiece(decoder, entry.t, formatHex(entry.byte, 2), kind);
  decoder.pending = [];
  decoder.expected = 0;
}

/** @type {(decoder: Decoder, t: number, point: number) => void} */
function addCharacter(decoder, t, point) {
  const [text, box] = display(point);
  addPiece(decoder, t, text, box);
}

/**
 * A character's text, and its kind of box if any. White space is made visible; the zero-width space after the dot lets
 * lines break there.
 * @type {(point: number) => [string, string?]}
 */
function display(point) {
  if (point === 0x20) return ["·\u200b"];
  if (point === 0x0a) return ["⏎\n"];
  if (point === 0x09) return ["⇥\t"];
  if (point >= 0xd800 && point <= 0xdfff) return [`U+${formatHex(point, 4)}`, "code"];
  const text = String.fromCodePoint(point);
  return NOT_PLAIN.test(text) ? [`U+${formatHex(point, 4)}`, "code"] : [text];
}

/** @type {(decoder: Decoder, t: number, text: string, box?: string) => void} */
function addPiece(decoder, t, text, box) {
  const pieces = decoder.pieces[t];
  const last = pieces[pieces.length - 1];
  if (!box && last && !last.box) last.text += text;
  else if (!box && COMBINING.test(text)) pieces.push({ text: "◌" + text }); // it must not land on the token before
  else pieces.push({ text, box });
}

/** A string, such as a prompt or a name, as pieces. @type {(string: string, limit?: number) => Piece[]} */
export function decodeString(string, limit = 4000) {
  const decoder = newDecoder(1);
  let count = 0;
  for (const character of string) {
    if (count++ >= limit) {
      addPiece(decoder, 0, `… ${formatCount(string.length)} characters`, "cut");
      break;
    }
    const point = character.codePointAt(0) ?? 0;
    if (point === 0x20) addPiece(decoder, 0, " ");
    else addCharacter(decoder, 0, point);
  }
  return decoder.pieces[0];
}

/** Pieces as one text, boxes between brackets. @type {(pieces: Piece[]) => string} */
export const plainText = (pieces) => pieces.map((piece) => (piece.box ? `[${piece.text}]` : piece.text)).join("");

/** A name on one line, as plain text. @type {(string: string) => string} */
export const plainName = (string) => plainText(decodeString(string, 80));
