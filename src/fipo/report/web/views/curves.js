// The metrics' charts, drawn by plotly when their tab is first seen.

import { byId, make, makeCard } from "../dom.js";
import { report, state } from "../state.js";

/** @import { Chart } from "../types.js" */

/** @type {Map<Element, Chart["figure"]>} */
const figures = new Map(); // by the element that shows it
/** @type {Map<string, HTMLElement>} */
const plots = new Map(); // by title
/** @type {Chart[] | null} */
let drawn = null;
/** @type {IntersectionObserver | null} */
let observer = null; // once plotly is there
let asked = false; // for plotly

/** @type {() => any} */
const plotly = () => /** @type {any} */ (window).Plotly;

/** @type {(...names: string[]) => string[]} */
const colours = (...names) => names.map((name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim());

/** @type {(figure: Chart["figure"]) => object} */
function layoutOf({ data, layout }) {
  const [ink, rule, surface] = colours("--ink", "--rule", "--surface");
  const lines = data.filter(({ showlegend }) => showlegend ?? layout.showlegend).length;
  const axis = { gridcolor: rule, linecolor: rule, zerolinecolor: rule, tickcolor: rule };
  return {
    ...layout, uirevision: "same", shapes: report.tracedSteps.map(markOf), paper_bgcolor: "transparent", plot_bgcolor: "transparent", hoverlabel: { bgcolor: surface },
    font: { color: ink, family: "system-ui, sans-serif", size: 12 }, xaxis: { ...layout.xaxis, ...axis },
    yaxis: { ...layout.yaxis, ...axis }, autosize: true, height: 270 + 20 * Math.max(0, lines - 2), hovermode: "x unified",
    margin: { l: 58, r: 12, t: layout.showlegend ? 34 : 10, b: 44 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", maxheight: 1, tracegroupgap: 0 },
  };
}

/** A mark on the axis where a rollout has traces. @type {(step: number) => object} */
const markOf = (step) => ({
  type: "line", xref: "x", yref: "paper", x0: step, x1: step, y0: 0, y1: 0.04, line: { width: 2, color: colours("--accent")[0] },
});

/**
 * Plotly needs a moment for every chart, so each waits until it is in sight.
 * @type {(takeText: (name: string) => Promise<string>, open: (runs: string[], step: number) => void) => Promise<void>}
 *   `takeText` gives plotly's script; `open` gets the runs and the step of a point that is clicked
 */
export async function drawCurves(takeText, open) {
  byId("curves-hint").hidden = report.tracedSteps.length === 0;
  if (state.tab !== "curves" || drawn === report.charts || !report.charts) return;
  drawn = report.charts;
  for (const { title, figure } of drawn) showFigure(title, figure);
  if (asked) return;
  asked = true;
  // Plotly is unpacked only now. The report's policy knows it by its hash, and lets no other script run.
  document.head.append(make("script", { textContent: await takeText("plotly") }));
  observer = new IntersectionObserver((entries) => {
    for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
      observer?.unobserve(target);
      setTimeout(() => drawPlot(target, open)); // a frame each: together they would hold up the scrolling
    }
  });
  for (const plot of figures.keys()) observer.observe(plot);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refreshCurves);
}

/** @type {(title: string, figure: Chart["figure"]) => void} */
function showFigure(title, figure) {
  const plot = plots.get(title) ?? make("div", { className: "plot" });
  figures.set(plot, figure);
  if (plot.classList.contains("drawn")) return plotly().react(plot, figure.data, layoutOf(figure));
  if (plots.has(title)) return;
  plots.set(title, plot);
  byId("charts").append(makeCard(title, plot));
  observer?.observe(plot);
}

/** @type {(plot: any, open: (runs: string[], step: number) => void) => void} */
function drawPlot(plot, open) {
  const figure = /** @type {Chart["figure"]} */ (figures.get(plot));
  const options = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
  plot.classList.add("drawn");
  plotly().newPlot(plot, figure.data, layoutOf(figure), options);
  plot.on("plotly_click", (/** @type {any} */ { points }) => open(points[0].data.meta?.runs ?? [], points[0].x));
}

/** Draws again what is drawn, in the present colours and with the present marks. */
export function refreshCurves() {
  byId("curves-hint").hidden = report.tracedSteps.length === 0;
  for (const [plot, figure] of figures) {
    if (plot.classList.contains("drawn")) plotly().react(plot, figure.data, layoutOf(figure));
  }
}
