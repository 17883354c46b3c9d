// Loads the report, sets the views up, and draws them whenever the view changes.

import { byId, make, showString } from "./dom.js";
import { formatCount } from "./format.js";
import { unpackText } from "./model/blocks.js";
import { shownCredit } from "./model/credit.js";
import { openingTrace } from "./model/groups.js";
import { loadReport } from "./model/report.js";
import { tallyTraces } from "./model/tally.js";
import { openTrace } from "./model/traces.js";
import { change, onChange, report, state, viewOf } from "./state.js";
import { drawCredit, setUpCredit } from "./views/credit.js";
import { drawCurves } from "./views/curves.js";
import { setUpExport, viewAsCsv } from "./views/export.js";
import { setUpKeyboard } from "./views/keyboard.js";
import { drawKnobs, setUpKnobs } from "./views/knobs.js";
import { drawSamples, passingTraces, setUpSamples } from "./views/samples.js";
import { drawSummary } from "./views/summary.js";
import { drawTabs, setUpTabs } from "./views/tabs.js";

/** @import { Changed } from "./types.js" */

async function start() {
  Object.assign(report, await loadReport(takeBlock));
  const opening = openingTrace(report);
  showAbout();
  setUpTabs();
  if (report.traces.length > 0) for (const setUp of [setUpCredit, setUpSamples, setUpKnobs, setUpExport]) setUp();
  setUpKeyboard();
  onChange(draw);
  const follow = () => change(viewOf(location.hash.slice(1), report, opening));
  addEventListener("hashchange", follow);
  follow();
  document.body.dataset.ready = performance.now().toFixed(0);
}

/** A data block's text, once: it is the larger half of the memory. @type {(name: string) => string | null} */
function takeBlock(name) {
  const element = document.getElementById(`data-${name}`);
  element?.remove();
  return element && element.textContent;
}

/** @type {(changed: Changed) => void} */
function draw(changed) {
  if (changed("tab")) drawTabs();
  if (report.traces.length > 0) drawSamples(changed);
  drawSummary();
  if (state.tab === "credit") {
    drawCredit(changed);
    drawKnobs();
  }
  drawCurves((name) => unpackText(takeBlock(name) ?? "")).catch(showFailure);
}

function showAbout() {
  const { title, problems, version } = report.about;
  showString(byId("title"), title);
  byId("problems").append(...problems.map((sentence) => showString(make("li"), sentence)));
  byId("problems-box").hidden = problems.length === 0;
  const tokens = report.traces.reduce((sum, facts) => sum + facts.length, 0);
  const size = tokens ? `${formatCount(report.traces.length)} traces, ${formatCount(tokens)} tokens · ` : "";
  byId("about").textContent = `${size}fipo ${version}`;
  byId("help-open").addEventListener("click", () => byId("help", HTMLDialogElement).showModal());
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
    state, page: report, change, viewAsCsv,
    /** @type {(index: number) => { futureKl: number[], weight: number[] }} */
    columns: (index) => {
      const { futureKl, weight } = shownCredit(openTrace(report, index), state.knobs);
      return { futureKl: Array.from(futureKl ?? []), weight: Array.from(weight ?? []) };
    },
    summary: () => tallyTraces(report, passingTraces(), state.knobs),
  },
});

start().catch(showFailure);
