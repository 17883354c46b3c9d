import assert from "node:assert/strict";
import { test } from "node:test";

import { decodeString, decodeTokens, plainName, plainText } from "../../src/fipo/report/web/model/decode.js";

const encoder = new TextEncoder();
const bytesOf = (token) => (typeof token === "string" ? encoder.encode(token) : Uint8Array.from(token));
const pieces = (...tokens) => decodeTokens(tokens.length, (t) => bytesOf(tokens[t]));
const shown = (...tokens) => pieces(...tokens).map((found) => found.map(({ text, box }) => (box ? `${box}:${text}` : text)));

test("plain text, with white space made visible", () => {
  assert.deepEqual(shown("a b", "\n", "\t", ""), [["a·\u200bb"], ["⏎\n"], ["⇥\t"], []]);
});

test("a character over several tokens belongs to the one that completes it", () => {
  assert.deepEqual(shown([0xe2], [0x82], [0xac, 0x21]), [["part:E2"], ["part:82"], ["€!"]]);
  assert.deepEqual(shown([0xf0, 0x9f], [0x98], [0x80]), [["part:F0", "part:9F"], ["part:98"], ["😀"]]);
});

test("bytes that are no UTF-8 are named, and what follows is read on", () => {
  assert.deepEqual(shown([0xff], [0x80, 0x41]), [["bad:FF"], ["bad:80", "A"]]);
  assert.deepEqual(shown([0xc3], "("), [["bad:C3"], ["("]]);
  assert.deepEqual(shown([0xe2, 0x82]), [["bad:E2", "bad:82"]]); // the end of the response
});

test("overlong forms and points beyond U+10FFFF are bytes, surrogates are named", () => {
  assert.deepEqual(shown([0xc0, 0xaf]), [["bad:C0", "bad:AF"]]);
  assert.deepEqual(shown([0xe0, 0x9f, 0xbf]), [["bad:E0", "bad:9F", "bad:BF"]]);
  assert.deepEqual(shown([0xf0, 0x8f, 0xbf, 0xbf]), [["bad:F0", "bad:8F", "bad:BF", "bad:BF"]]);
  assert.deepEqual(shown([0xf4, 0x90, 0x80, 0x80]), [["bad:F4", "bad:90", "bad:80", "bad:80"]]);
  assert.deepEqual(shown([0xe0, 0xa0, 0x80], [0xf0, 0x90, 0x80, 0x80]), [["ࠀ"], ["𐀀"]]); // the least that are characters
  assert.deepEqual(shown([0xed, 0xa0, 0x80]), [["code:U+D800"]]);
});

test("every character that UTF-8 knows comes back as the platform decodes it", () => {
  for (let point = 0x21; point <= 0x10ffff; point += 61) {
    if (point >= 0xd800 && point <= 0xdfff) continue;
    const [[{ text, box }]] = pieces(String.fromCodePoint(point));
    assert.equal(text.replace("◌", ""), box ? `U+${point.toString(16).toUpperCase().padStart(4, "0")}` : String.fromCodePoint(point));
  }
});

test("what does not show or moves others is boxed; a mark stands on a circle", () => {
  assert.deepEqual(shown("\u202eab", "\u200b", "\u0301"), [["code:U+202E", "ab"], ["code:U+200B"], ["◌\u0301"]]);
});

test("a long token is cut, and a character that starts at its end is completed by the next", () => {
  const [cut, next] = shown([...encoder.encode("x".repeat(999)), 0xe2], [0x82, 0xac]);
  assert.deepEqual(cut, ["x".repeat(256), "cut:… 1,000 bytes"]);
  assert.deepEqual(next, ["€"]);
});

test("names", () => {
  assert.deepEqual(decodeString("a\u202e <b>"), [{ text: "a" }, { text: "U+202E", box: "code" }, { text: " <b>" }].map((piece) => ({ box: undefined, ...piece })));
  assert.equal(plainText(decodeString("x".repeat(5), 3)), "xxx[… 5 characters]");
  assert.equal(plainName("run\u0000"), "run[U+0000]");
});
