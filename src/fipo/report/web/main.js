// Loads the report, sets the views up, and draws them whenever the view changes.

import { byId, make, showString } from "./dom.js";
import { formatCount } from "./format.js";
import { unpackText } from "./model/blocks.js";
import { shownCredit } from "./model/credit.js";
import { openingTrace } from "./model/groups.js";
import { loadReport } from "./model/report.js";
import { traceAt } from "./model/steps.js";
import { openTrace } from "./model/traces.js";
import { change, onChange, redraw, report, state, tabsOf, viewOf } from "./state.js";
import { drawCredit, focusTokens, setUpCredit } from "./views/credit.js";
import { drawCurves, refreshCurves } from "./views/curves.js";
import { setUpKeyboard } from "./views/keyboard.js";
import { drawKnobs, setUpKnobs } from "./views/knobs.js";
import { follow, openRollout, showChosen } from "./views/live.js";
import { drawSamples, setUpSamples } from "./views/samples.js";
import { drawSummary } from "./views/summary.js";
import { drawTabs, setUpTabs } from "./views/tabs.js";

/** @import { Changed, Chart, Facts, Report } from "./types.js" */

async function start() {
  Object.assign(report, await loadReport(takeBlock));
  showAbout();
  setUpTabs();
  setUpKeyboard();
  onChange(draw);
  if (report.about.live) return startLive();
  const opening = openingTrace(report);
  if (report.traces.length > 0) setUpTraces();
  const follow = () => change(viewOf(location.hash.slice(1), report, opening));
  addEventListener("hashchange", follow);
  follow();
  document.body.dataset.ready = performance.now().toFixed(0);
}

function setUpTraces() {
  for (const setUp of [setUpCredit, setUpSamples, setUpKnobs]) setUp();
}

/** Data come later, again and again; the place in them stays. */
function startLive() {
  const asked = location.hash.slice(1);
  Object.assign(state, viewOf(asked, report, 0));
  let begun = false;
  const show = {
    /** @type {(charts: Chart[]) => void} */
    charts: (charts) => {
      report.charts = charts.length > 0 ? charts : null;
      if (!state.tab) return redraw({ tab: tabsOf(report)[0] });
      drawTabs();
      drawCurvesNow();
    },
    marks: refreshCurves,
    /** @type {(fresh: Report) => void} */
    traces: (fresh) => {
      const before = report.traces[state.at];
      const { traces } = fresh;
      Object.assign(report, fresh, { about: report.about, charts: report.charts, tracedSteps: report.tracedSteps });
      if (!begun) setUpTraces();
      showProblems(fresh.about.problems);
      showSize();
      const same = before ? traces.findIndex((facts) => isSame(facts, before)) : -1;
      const opening = same >= 0 ? same : openingTrace(report);
      const view = begun ? { at: opening, ...(same >= 0 ? {} : { selected: null, active: null }) } : viewOf(asked, report, opening);
      begun = true;
      const putBack = same >= 0 && before?.rollout === traces[same].rollout ? keepPlace() : () => {};
      redraw({ tab: state.tab || tabsOf(report)[0], ...view, watched: state.watched });
      putBack();
    },
  };
  onChange((changed) => {
    if (changed("watched")) showChosen(show).catch(() => {}); // the next look tells
  });
  document.body.dataset.ready = performance.now().toFixed(0);
  return follow(show);
}

/** Remembers where the reader is; what it returns goes back there. @type {() => () => void} */
function keepPlace() {
  const places = [byId("stage"), byId("samples")].map((element) => ({ element, top: element.scrollTop, left: element.scrollLeft }));
  const onTokens = byId("stage").contains(document.activeElement);
  return () => {
    for (const { element, top, left } of places) element.scrollTo({ top, left });
    if (onTokens) focusTokens();
  };
}

/** Whether two lines of the list are one trace. @type {(a: Facts, b: Facts) => boolean} */
const isSame = (a, b) => a.run === b.run && a.rollout === b.rollout && a.sample === b.sample && a.update === b.update;

/** A data block's text, once: it is the larger half of the memory. @type {(name: string) => string | null} */
function takeBlock(name) {
  const element = document.getElementById(`data-${name}`);
  element?.remove();
  return element && element.textContent;
}

/** @type {(changed: Changed) => void} */
function draw(changed) {
  drawTabs();
  if (report.traces.length > 0) drawSamples(changed);
  drawSummary();
  if (state.tab === "credit" && report.traces.length > 0) {
    drawCredit(changed);
    drawKnobs();
  }
  drawCurvesNow();
}

const drawCurvesNow = () => void drawCurves((name) => unpackText(takeBlock(name) ?? ""), openStep).catch(showFailure);

/** From a point of a curve to the traces that lie nearest. @type {(runs: string[], step: number) => void} */
function openStep(runs, step) {
  if (report.about.live) return openRollout(runs, step);
  const at = traceAt(report, runs, step);
  if (at !== null) change({ at, tab: "credit", selected: null, active: null });
}

function showAbout() {
  showString(byId("title"), report.about.title);
  showProblems(report.about.problems);
  showSize();
  byId("help-open").addEventListener("click", () => byId("help", HTMLDialogElement).showModal());
}

/** @type {(problems: string[]) => void} */
function showProblems(problems) {
  byId("problems").replaceChildren(...problems.map((sentence) => showString(make("li"), sentence)));
  byId("problems-box").hidden = problems.length === 0;
}

function showSize() {
  const tokens = report.traces.reduce((sum, facts) => sum + facts.length, 0);
  const size = tokens ? `${formatCount(report.traces.length)} traces, ${formatCount(tokens)} tokens · ` : "";
  byId("about").textContent = `${size}fipo ${report.about.version}`;
}

/** @type {(error: Error) => never} */
function showFailure(error) {
  byId("failure").hidden = false;
  byId("failure").textContent = `This report could not be shown: ${error.message}. It needs a browser of 2023 or later.`;
  throw error;
}

// For tests and the curious: the numbers behind the colours.
Object.assign(window, {
  fipo: {
    state, page: report, change,
    /** @type {(index: number) => { futureKl: number[], weight: number[] }} */
    columns: (index) => {
      const { futureKl, weight } = shownCredit(openTrace(report, index), state.knobs);
      return { futureKl: Array.from(futureKl ?? []), weight: Array.from(weight ?? []) };
    },
  },
});

start().catch(showFailure);
