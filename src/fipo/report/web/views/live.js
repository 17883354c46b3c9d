// A report of runs that are under way: asks `fipo watch` how they stand, and for what is new or looked at.

import { byId, make, showString } from "../dom.js";
import { loadReport } from "../model/report.js";
import { nearest, rolloutOf, stepOf } from "../model/steps.js";
import { change, report, state } from "../state.js";

/** @import { Chart, LiveRun, LiveState, Report } from "../types.js" */

/** @typedef {{ charts: (charts: Chart[]) => void, marks: () => void, traces: (fresh: Report) => void }} Show what shows new data */

const PAUSE = 2000; // ms between two questions
const DESCRIPTIONS = new Map([
  ["running", "is running"], ["finished", "has finished"], ["stopped", "was stopped, and can be resumed"],
  ["failed", "ended with an error"], ["killed", "was killed, and can be resumed"], ["deleted", "has been deleted"],
  ["not started", "has not started"], ["unknown", "is another trainer's, which does not say whether it is running"],
]);
/** @type {LiveState} */
let latest = { charts: 0, runs: [] };
let charts = 0; // the version that is drawn
/** @type {Set<string>} */
const unreadable = new Set(); // rollouts, with their versions
let shown = ""; // rollout and version of the traces on the page

/** Follows the runs as long as the page is open. @type {(show: Show) => Promise<never>} */
export async function follow(show) {
  byId("live").hidden = false;
  byId("rollout").addEventListener("change", () => change({ watched: chooser().value }));
  for (;;) {
    await look(show).then(() => tellTrouble(""), (error) => tellTrouble(`${error.message} It is asked again.`));
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
  }
}

const chooser = () => byId("rollout", HTMLSelectElement);

/** @type {(show: Show) => Promise<void>} */
async function look(show) {
  latest = await ask("state");
  chosen();
  drawRuns();
  drawChoices();
  const steps = latest.runs.flatMap(({ updates, rollouts }) => (updates === null ? [] : rollouts.map(([number]) => stepOf(updates, number))));
  if (steps.join() !== report.tracedSteps.join()) {
    report.tracedSteps = steps;
    show.marks();
  }
  if (latest.charts !== charts) {
    const version = latest.charts;
    show.charts(await ask("charts"));
    charts = version;
  }
  await showChosen(show);
}

/** The traces of the rollout that was chosen, once, and again when it has more; at first the newest. @type {(show: Show) => Promise<void>} */
export async function showChosen(show) {
  const [run, rollout] = chosen();
  const version = versionOf(run, rollout);
  const wanted = keyOf(run, rollout, version);
  if (version === undefined || shown === wanted) return;
  shown = wanted;
  try {
    const { blocks, problems } = await ask("traces", { run, rollout });
    const fresh = await loadReport((name) => blocks[name] ?? null);
    if (shown !== wanted) return; // another was chosen meanwhile
    fresh.about.problems = problems;
    show.traces(fresh);
  } catch (error) {
    shown = "";
    unreadable.add(wanted);
    throw error;
  }
}

/**
 * Run and rollout that were chosen. As long as nothing is shown, and the chosen one is not there or cannot be read, it is the
 * newest that can.
 * @type {() => [number, number]}
 */
function chosen() {
  const [run, rollout] = state.watched.split(".").map(Number);
  const version = versionOf(run, rollout);
  if (report.traces.length > 0 || (version !== undefined && !unreadable.has(keyOf(run, rollout, version)))) return [run, rollout];
  for (const [number, { rollouts }] of latest.runs.entries()) {
    const newest = [...rollouts].reverse().find(([rollout, version]) => !unreadable.has(keyOf(number, rollout, version)));
    if (!newest) continue;
    state.watched = `${number}.${newest[0]}`;
    return [number, newest[0]];
  }
  return [NaN, NaN];
}

/** Names a rollout's traces as they are now. @type {(run: number, rollout: number, version?: string) => string} */
const keyOf = (run, rollout, version) => `${run}.${rollout}@${version}`;

/** @type {(run: number, rollout: number) => string | undefined} */
const versionOf = (run, rollout) => latest.runs[run]?.rollouts.find(([number]) => number === rollout)?.[1];

/** To the traces that lie nearest to a point of a curve. @type {(runs: string[], step: number) => void} */
export function openRollout(runs, step) {
  const traced = latest.runs.findIndex(({ label, updates, rollouts }) => runs.includes(label) && updates !== null && rollouts.length > 0);
  if (traced < 0) return;
  const { updates, rollouts } = latest.runs[traced];
  const rollout = nearest(rollouts.map(([number]) => number), rolloutOf(updates ?? 1, step));
  change({ watched: `${traced}.${rollout}`, tab: "credit" });
}

/** @type {(path: string, parameters?: Record<string, any>) => Promise<any>} */
async function ask(path, parameters = {}) {
  const token = new URLSearchParams(location.search).get("token") ?? "";
  const query = new URLSearchParams({ ...parameters, token });
  const answer = await fetch(`${path}?${query}`, { cache: "no-store" }).catch(() => null);
  if (!answer) throw new Error("fipo watch does not answer: it has ended, or the connection to it is lost.");
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function drawRuns() {
  const lines = latest.runs.map((run) => {
    const line = showString(make("li", { className: `status ${run.status.replace(" ", "-")}` }), run.label);
    line.append(` ${DESCRIPTIONS.get(run.status) ?? run.status}${tracesOf(run)}`);
    return line;
  });
  byId("live-runs").replaceChildren(...lines);
}

/** @type {(run: LiveRun) => string} */
function tracesOf({ rollouts, age }) {
  if (rollouts.length === 0) return "";
  const count = rollouts.length === 1 ? "1 traced rollout" : `${rollouts.length} traced rollouts`;
  return `; ${count}, the last is ${rollouts[rollouts.length - 1][0]}${age === null ? "" : `, written ${formatAge(age)} ago`}`;
}

/** @type {(seconds: number) => string} */
function formatAge(seconds) {
  if (seconds < 90) return `${seconds} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

function drawChoices() {
  const several = latest.runs.length > 1;
  const options = latest.runs.flatMap(({ label, rollouts }, run) =>
    rollouts.map(([number]) => ({ value: `${run}.${number}`, text: several ? `${label} · ${number}` : String(number) })));
  const select = chooser();
  byId("rollout-box").hidden = options.length === 0;
  const known = Array.from(select.options, (option) => option.value);
  if (known.join() !== options.map(({ value }) => value).join()) {
    select.replaceChildren(...options.map(({ value, text }) => new Option(text, value)));
  }
  if (state.watched !== "") select.value = state.watched;
}

/** @type {(sentence: string) => void} */
function tellTrouble(sentence) {
  byId("live-trouble").hidden = sentence === "";
  byId("live-trouble").textContent = sentence;
}
