// From the report's data blocks, base64 of gzip, to text and typed arrays: the inverse of fipo.report.pack.

/** @import { Column } from "../types.js" */

/** @type {Record<string, any>} by NumPy's names */
const TYPES = { u1: Uint8Array, "<u4": Uint32Array, "<i4": Int32Array, "<f4": Float32Array, "<f2": Uint16Array };

/** @type {(block: string) => Promise<Uint8Array<ArrayBuffer>>} */
async function unpackBytes(block) {
  const stream = new Blob([fromBase64(block)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** @type {(block: string) => Promise<string>} */
export const unpackText = async (block) => new TextDecoder().decode(await unpackBytes(block));

/** A JSON value; null where there is no block. @type {(block: string | null) => Promise<any>} */
export const unpackJson = async (block) => block && JSON.parse(await unpackText(block));

/**
 * A column; one that no trace has is no block, and has no entries. What is float16 becomes float32.
 * @type {(block: string | null, dtype: string) => Promise<Column>}
 */
export async function unpackColumn(block, dtype) {
  const Type = TYPES[dtype];
  if (block === null) return new Type(0);
  const entries = new Type(joinPlanes(await unpackBytes(block), Type.BYTES_PER_ELEMENT).buffer);
  return dtype === "<f2" ? fromHalves(entries) : entries;
}

/** @type {(halves: Uint16Array) => Float32Array} */
function fromHalves(halves) {
  const values = Float32Array.from({ length: 2 ** 16 }, (_, bits) => fromHalf(bits));
  const result = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) result[i] = values[halves[i]];
  return result;
}

/**
 * All first bytes, all second bytes, … → entries of `width` bytes.
 * @type {(planes: Uint8Array<ArrayBuffer>, width: number) => Uint8Array<ArrayBuffer>}
 */
function joinPlanes(planes, width) {
  if (width === 1) return planes;
  const count = planes.length / width;
  const bytes = new Uint8Array(planes.length);
  for (let plane = 0; plane < width; plane++) {
    const offset = plane * count;
    for (let i = 0, at = plane; i < count; i++, at += width) bytes[at] = planes[offset + i];
  }
  return bytes;
}

/** @type {(text: string) => Uint8Array<ArrayBuffer>} */
function fromBase64(text) {
  const fast = /** @type {any} */ (Uint8Array).fromBase64; // browsers of 2025 and later
  if (fast) return fast(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** A float16's value. @type {(bits: number) => number} */
export function fromHalf(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const sign = bits & 0x8000 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -24 * fraction;
}
