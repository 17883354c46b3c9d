// The what-if panel: sliders for the knobs. What is not moved stays as the run had it.

const DECAY_STEPS = 90; // ten a doubling, from 1 to 512; one more means no decay
const SLIDERS = {
  decay_rate: { from: (place) => (place > DECAY_STEPS ? Infinity : 2 ** (place / 10)), to: decayPlace },
  clip_ratio_low: { from: Number, to: Number },
  clip_ratio_high: { from: Number, to: Number },
  safety_thresh: { from: Number, to: Number },
};

function decayPlace(decay) {
  return decay === Infinity ? DECAY_STEPS + 1 : clamp(Math.round(10 * Math.log2(decay)), 0, DECAY_STEPS);
}

function setUpKnobs() {
  for (const name of TURNED) document.getElementById(`knob-${name}`).closest("label").title = page.about.knobs[name].help;
  for (const [name, { from }] of Object.entries(SLIDERS)) {
    const input = document.getElementById(`knob-${name}`);
    input.addEventListener("input", () => turn({ [name]: from(Number(input.value)) }));
  }
  const highOnly = document.getElementById("knob-clip_high_only");
  highOnly.addEventListener("change", () => turn({ clip_high_only: highOnly.checked }));
  const distance = document.getElementById("knob-distance");
  distance.addEventListener("change", () => turn({ distance: distance.value }));
  document.getElementById("knobs-reset").addEventListener("click", () => change({ knobs: {} }));
}

const turn = (knobs) => change({ knobs: { ...state.knobs, ...knobs } });

function drawKnobs() {
  const trace = openTrace(state.at);
  const knobs = knobsOf(trace);
  for (const [name, { to }] of Object.entries(SLIDERS)) {
    const input = document.getElementById(`knob-${name}`);
    const label = name === "decay_rate" ? `${number(knobs[name], 4)} tokens` : number(knobs[name], 4);
    input.value = to(knobs[name]);
    input.setAttribute("aria-valuetext", label);
    document.getElementById(`value-${name}`).textContent = label;
  }
  document.getElementById("knob-clip_high_only").checked = knobs.clip_high_only;
  document.getElementById("knob-clip_ratio_low").disabled = knobs.clip_high_only;
  document.getElementById("knob-distance").value = knobs.distance;
  document.getElementById("knobs-reset").disabled = Object.keys(state.knobs).length === 0;
  document.getElementById("knobs-note").textContent = knobsNote(trace);
}

function knobsNote(trace) {
  if (!trace.logRatio) return "This trace has no log-ratio: its credit cannot be recomputed.";
  const moved = Object.keys(state.knobs);
  return moved.length ? `Not what the run used: ${moved.join(", ")}.` : "As the run had them.";
}
