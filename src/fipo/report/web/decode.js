// From the bytes of tokens to what a person sees. A character may span tokens; what is no plain character becomes a box.

const SHOWN_BYTES = 256; // of one token; a longer one is cut and its length stated
const NOT_PLAIN = /[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}]/u;
const COMBINING = /^\p{M}/u;
const hex = (value, digits) => value.toString(16).toUpperCase().padStart(digits, "0");

// The pieces of every token: { text } for plain text, { text, box: kind } for a box. `bytesOf(t)` gives a Uint8Array.
function decodeTokens(count, bytesOf) {
  const decoder = { pieces: Array.from({ length: count }, () => []), pending: [], expected: 0, point: 0 };
  for (let t = 0; t < count; t++) {
    const bytes = bytesOf(t);
    if (bytes.length <= SHOWN_BYTES) {
      for (const byte of bytes) takeByte(decoder, t, byte);
      continue;
    }
    for (let i = 0; i < SHOWN_BYTES; i++) takeByte(decoder, t, bytes[i]);
    giveUp(decoder, "part");
    addPiece(decoder, t, `… ${bytes.length.toLocaleString("en")} bytes`, "cut");
    skipToTail(decoder, bytes);
  }
  giveUp(decoder, "bad");
  return decoder.pieces;
}

// The end of a cut token is not shown, but a character may start there and end in the next token.
function skipToTail(decoder, bytes) {
  const silent = { pieces: [[]], pending: [], expected: 0, point: 0 };
  for (const byte of bytes.subarray(-8)) takeByte(silent, 0, byte);
  decoder.pending = silent.pending.map((entry) => ({ ...entry, silent: true }));
  decoder.expected = silent.expected;
  decoder.point = silent.point;
}

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
  else addPiece(decoder, t, hex(byte, 2), "bad");
}

function startCharacter(decoder, t, byte) {
  decoder.pending = [{ t, byte }];
  decoder.expected = byte >= 0xf0 ? 3 : byte >= 0xe0 ? 2 : 1;
  decoder.point = byte & (0x3f >> decoder.expected);
}

// Overlong forms and what lies beyond U+10FFFF are no characters. Surrogates pass: they are named in a box.
function continues(decoder, byte) {
  if (byte < 0x80 || byte > 0xbf) return false;
  if (decoder.pending.length > 1) return true;
  const lead = decoder.pending[0].byte;
  return !((lead === 0xe0 && byte < 0xa0) || (lead === 0xf0 && byte < 0x90) || (lead === 0xf4 && byte > 0x8f));
}

// The token that completes a character shows it; the others show their bytes.
function finish(decoder, t) {
  const earlier = decoder.pending.filter((entry) => entry.t !== t && !entry.silent);
  for (const entry of earlier) addPiece(decoder, entry.t, hex(entry.byte, 2), "part");
  decoder.pending = [];
  addCharacter(decoder, t, decoder.point);
}

function giveUp(decoder, kind) {
  for (const entry of decoder.pending) if (!entry.silent) addPiece(decoder, entry.t, hex(entry.byte, 2), kind);
  decoder.pending = [];
  decoder.expected = 0;
}

function addCharacter(decoder, t, point) {
  const [text, box] = display(point);
  addPiece(decoder, t, text, box);
}

// White space is made visible; the zero-width space after the dot lets lines break there.
function display(point) {
  if (point === 0x20) return ["·\u200b"];
  if (point === 0x0a) return ["⏎\n"];
  if (point === 0x09) return ["⇥\t"];
  if (point >= 0xd800 && point <= 0xdfff) return [`U+${hex(point, 4)}`, "code"];
  const text = String.fromCodePoint(point);
  return NOT_PLAIN.test(text) ? [`U+${hex(point, 4)}`, "code"] : [text];
}

function addPiece(decoder, t, text, box) {
  const pieces = decoder.pieces[t];
  const last = pieces[pieces.length - 1];
  if (!box && last && !last.box) last.text += text;
  else if (!box && COMBINING.test(text)) pieces.push({ text: "◌" + text }); // it must not land on the token before
  else pieces.push({ text, box });
}

// A string, such as a prompt or a name, as pieces.
function decodeString(string, limit = 4000) {
  const decoder = { pieces: [[]] };
  let count = 0;
  for (const character of string) {
    if (count++ >= limit) {
      addPiece(decoder, 0, `… ${string.length.toLocaleString("en")} characters`, "cut");
      break;
    }
    const point = character.codePointAt(0);
    if (point === 0x20) addPiece(decoder, 0, " ");
    else addCharacter(decoder, 0, point);
  }
  return decoder.pieces[0];
}

// Fills an element with pieces; only ever with text nodes.
function showPieces(element, pieces) {
  for (const piece of pieces) {
    if (!piece.box) {
      element.append(piece.text);
      continue;
    }
    const box = document.createElement("span");
    box.className = `box box-${piece.box}`;
    box.textContent = piece.text;
    element.append(box);
  }
  return element;
}

const showString = (element, string) => {
  element.replaceChildren();
  return showPieces(element, decodeString(String(string)));
};

const plainText = (pieces) => pieces.map((piece) => (piece.box ? `[${piece.text}]` : piece.text)).join("");
