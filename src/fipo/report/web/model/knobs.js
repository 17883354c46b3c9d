// What a knob may be: its range, as fipo.params.KNOBS has it.

/** @import { KnobRange } from "../types.js" */

/**
 * A knob's value from a text; undefined where fipo would refuse it.
 * @type {(range: KnobRange, text: string) => number | string | boolean | undefined}
 */
export function readKnob(range, text) {
  if (typeof range.default === "boolean") return new Map([["true", true], ["false", false]]).get(text);
  if (typeof range.default === "string") return range.choices.includes(text) ? text : undefined;
  return text.trim() !== "" && inRange(range, Number(text)) ? Number(text) : undefined;
}

/** @type {(range: KnobRange, value: number) => boolean} */
const inRange = ({ low, high, low_open, high_open }, value) =>
  (low_open ? value > low : value >= low) && (high_open ? value < high : value <= high);

/**
 * The ends of a slider: those wanted, as far as the range allows them.
 * @type {(range: KnobRange, wanted: { min: number, max: number, step: number }) => { min: number, max: number }}
 */
export function sliderEnds(range, { min, max, step }) {
  const least = range.low_open ? range.low + step : range.low;
  const greatest = range.high_open ? range.high - step : range.high;
  return { min: Math.max(min, least), max: Math.min(max, greatest) };
}
