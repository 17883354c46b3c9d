// Numbers and names as a reader sees them.

/** @import { Facts } from "./types.js" */

/**
 * Six significant digits unless told otherwise, with a true minus sign.
 * @type {(value: number | null | undefined, digits?: number) => string}
 */
export function formatNumber(value, digits = 6) {
  if (value === null || value === undefined || Number.isNaN(value)) return "unknown";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const text = value === 0 ? "0" : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

/** @type {(value: number) => string} */
export const formatCount = (value) => value.toLocaleString("en");

/** @type {(share: number) => string} */
export const formatPercent = (share) => (Number.isFinite(share) ? `${(100 * share).toFixed(1)} %` : "–");

/** @type {(value: number, digits: number) => string} */
export const formatHex = (value, digits) => value.toString(16).toUpperCase().padStart(digits, "0");

const SIGNS = new Map([[-1, "negative"], [0, "zero"], [1, "positive"]]);

/** @type {(facts: Facts) => string} */
export function formatReward({ reward, advantage, sign }) {
  const known = advantage === null ? SIGNS.get(sign ?? NaN) ?? "unknown" : formatNumber(advantage, 3);
  return `reward ${formatNumber(reward, 3)} · A ${known}`;
}
