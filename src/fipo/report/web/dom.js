// Elements: found, made and filled. Data reach the document only as text nodes and attributes, never as HTML.

import { decodeString } from "./model/decode.js";

/** @import { Piece } from "./types.js" */

/**
 * The element of template.html with this id, which must be of the kind given.
 * @template {HTMLElement} [E=HTMLElement]
 * @param {string} id
 * @param {new () => E} [Kind]
 * @returns {E}
 */
export function byId(id, Kind) {
  const element = document.getElementById(id);
  if (!(element instanceof (Kind ?? HTMLElement))) throw new Error(`#${id} is no ${Kind?.name ?? "HTML element"}`);
  return /** @type {E} */ (element);
}

/** @type {(id: string) => HTMLInputElement} */
export const inputById = (id) => byId(id, HTMLInputElement);

/**
 * A new element with properties and children.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Partial<HTMLElementTagNameMap[K]>} [properties]
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Sets aria-… attributes. @type {(element: Element, values: Record<string, string | number | boolean>) => void} */
export function setAria(element, values) {
  for (const [name, value] of Object.entries(values)) element.setAttribute(`aria-${name}`, String(value));
}

/**
 * Appends pieces.
 * @template {HTMLElement} E
 * @param {E} element
 * @param {Piece[]} pieces
 * @returns {E}
 */
export function showPieces(element, pieces) {
  element.append(...pieces.map(({ text, box }) => (box ? make("span", { className: `box box-${box}` }, text) : text)));
  return element;
}

/**
 * Replaces what an element holds by a string.
 * @template {HTMLElement} E
 * @param {E} element
 * @param {string} string
 * @returns {E}
 */
export function showString(element, string) {
  element.replaceChildren();
  return showPieces(element, decodeString(string));
}

/** @type {(title: string, content: Element) => HTMLElement} */
export const makeCard = (title, content) => make("section", { className: "card" }, make("h3", {}, title), content);

/** @type {(sentence: string) => HTMLElement} */
export const makeNotice = (sentence) => make("p", { className: "notice" }, sentence);

/** @type {(names: string[], rows: (string | Piece[])[][]) => HTMLTableElement} */
export function makeTable(names, rows) {
  const head = make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)));
  const lines = rows.map((row) => make("tr", {}, ...row.map((content) => fill(make("td"), content))));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines));
}

/**
 * Fills an empty element with a text or with pieces.
 * @template {HTMLElement} E
 * @param {E} element
 * @param {string | Piece[]} content
 * @returns {E}
 */
export const fill = (element, content) => showPieces(element, typeof content === "string" ? [{ text: content }] : content);

/** @type {(name: string, attributes: Record<string, string | number>, text?: string) => SVGElement} */
export function makeSvg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  if (text !== undefined) element.textContent = text;
  return /** @type {SVGElement} */ (element);
}

/** Saves a file. @type {(name: string, blob: Blob) => void} */
export function download(name, blob) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
