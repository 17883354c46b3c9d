// The what-if panel: an input for every knob that can be moved. What is not moved stays as the run had it.

import { byId, inputById, make, setAria } from "../dom.js";
import { formatNumber } from "../format.js";
import { knobsOf } from "../model/credit.js";
import { sliderEnds } from "../model/knobs.js";
import { openTrace } from "../model/traces.js";
import { change, MOVABLE_KNOBS, report, state } from "../state.js";

/** @import { KnobRange, Moved, Trace } from "../types.js" */

/** @typedef {{ min: number, max: number, step: number }} Slider where it ends, if the knob may go so far */

const DECAY_RATE = "decay_rate"; // its slider has ten steps a doubling, and after the last one no decay
const STEPS_A_DOUBLING = 10;
/** @type {Record<string, Slider>} */
const SLIDERS = {
  decay_rate: { min: 1, max: 512, step: 1 },
  clip_ratio_low: { min: 0, max: 1, step: 0.01 },
  clip_ratio_high: { min: 0, max: 3, step: 0.01 },
  safety_thresh: { min: 1, max: 20, step: 0.1 },
};
/** @type {(name: string) => { min: number, max: number }} */
const endsOf = (name) => sliderEnds(report.about.knobs[name], SLIDERS[name]);
/** @type {(decay: number) => number} */
const decayPlace = (decay) => Math.round(STEPS_A_DOUBLING * Math.log2(decay));
const endlessPlace = () => decayPlace(endsOf(DECAY_RATE).max) + 1;

export function setUpKnobs() {
  byId("knobs").append(...MOVABLE_KNOBS.map((name) => makeKnob(name, report.about.knobs[name])));
  byId("knobs-reset").addEventListener("click", () => change({ knobs: {} }));
}

/** @type {(name: string, range: KnobRange) => HTMLElement} */
function makeKnob(name, range) {
  const about = { className: "knob", title: range.help };
  if (typeof range.default === "boolean") return make("label", about, makeSwitch(name), ` ${name}`);
  if (typeof range.default === "string") return make("label", about, `${name} `, makeChoice(name, range.choices));
  return make("label", about, `${name} `, make("output", { id: `value-${name}` }), makeSlider(name));
}

/** @type {(name: string) => HTMLElement} */
function makeSwitch(name) {
  const input = make("input", { id: `knob-${name}`, type: "checkbox" });
  input.addEventListener("change", () => move({ [name]: input.checked }));
  return input;
}

/** @type {(name: string, choices: string[]) => HTMLElement} */
function makeChoice(name, choices) {
  const select = make("select", { id: `knob-${name}` }, ...choices.map((choice) => new Option(choice)));
  select.addEventListener("change", () => move({ [name]: select.value }));
  return select;
}

/** @type {(name: string) => HTMLElement} */
function makeSlider(name) {
  const { min, max } = endsOf(name);
  const [first, last] = name === DECAY_RATE ? [decayPlace(min), endlessPlace()] : [min, max];
  const input = make("input", {
    id: `knob-${name}`, type: "range", min: String(first), max: String(last), step: String(SLIDERS[name].step),
  });
  input.addEventListener("input", () => move({ [name]: valueOf(name, Number(input.value)) }));
  return input;
}

/** @type {(name: string, place: number) => number} */
function valueOf(name, place) {
  if (name !== DECAY_RATE) return place;
  return place < endlessPlace() ? 2 ** (place / STEPS_A_DOUBLING) : Infinity;
}

/** The inverse of valueOf. @type {(name: string, value: number) => number} */
function placeOf(name, value) {
  if (name !== DECAY_RATE) return value;
  return value === Infinity ? endlessPlace() : Math.min(decayPlace(value), endlessPlace() - 1);
}

/** @type {(knobs: Moved) => void} */
const move = (knobs) => change({ knobs: { ...state.knobs, ...knobs } });

export function drawKnobs() {
  const trace = openTrace(report, state.at);
  const knobs = knobsOf(trace, state.knobs);
  for (const name of /** @type {const} */ (["decay_rate", "clip_ratio_low", "clip_ratio_high", "safety_thresh"])) {
    const label = name === DECAY_RATE ? `${formatNumber(knobs[name], 4)} tokens` : formatNumber(knobs[name], 4);
    const input = inputById(`knob-${name}`);
    input.value = String(placeOf(name, knobs[name]));
    setAria(input, { valuetext: label });
    byId(`value-${name}`).textContent = label;
  }
  inputById("knob-clip_high_only").checked = knobs.clip_high_only;
  inputById("knob-clip_ratio_low").disabled = knobs.clip_high_only;
  byId("knob-distance", HTMLSelectElement).value = knobs.distance;
  byId("knobs-reset", HTMLButtonElement).disabled = Object.keys(state.knobs).length === 0;
  byId("knobs-note").textContent = knobsNote(trace);
}

/** @type {(trace: Trace) => string} */
function knobsNote(trace) {
  if (!trace.logRatio) return "This trace has no log-ratio: its credit cannot be recomputed.";
  const moved = Object.keys(state.knobs);
  const said = moved.length ? `Not what the run used: ${moved.join(", ")}.` : "As the run had them.";
  const { control } = trace.made;
  return control === null ? said : `${said} Moving one recomputes FIPO's own weights, not the recorded ones of ${control}.`;
}
