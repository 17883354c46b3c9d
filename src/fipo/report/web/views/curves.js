// The metrics' charts, drawn by plotly when their tab is first seen.

import { byId, make, makeCard } from "../dom.js";
import { report, state } from "../state.js";

/** @import { Chart } from "../types.js" */

/** @type {Map<Element, Chart["figure"]>} */
const figures = new Map(); // by the element that shows it
let begun = false;

/** @type {() => any} */
const plotly = () => /** @type {any} */ (window).Plotly;

/** @type {(...names: string[]) => string[]} */
const colours = (...names) => names.map((name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim());

/** @type {(figure: Chart["figure"]) => object} */
function layoutOf({ layout }) {
  const [ink, rule, surface] = colours("--ink", "--rule", "--surface");
  const axis = { gridcolor: rule, linecolor: rule, zerolinecolor: rule, tickcolor: rule };
  return {
    ...layout, paper_bgcolor: "transparent", plot_bgcolor: "transparent", hoverlabel: { bgcolor: surface },
    font: { color: ink, family: "system-ui, sans-serif", size: 12 }, xaxis: { ...layout.xaxis, ...axis },
    yaxis: { ...layout.yaxis, ...axis }, autosize: true, height: 280, hovermode: "x unified",
    margin: { l: 58, r: 12, t: layout.showlegend ? 34 : 10, b: 44 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
  };
}

/**
 * Plotly needs a moment for every chart, so each waits until it is in sight.
 * @type {(takeText: (name: string) => Promise<string>) => Promise<void>} `takeText` gives plotly's script
 */
export async function drawCurves(takeText) {
  if (state.tab !== "curves" || begun || !report.charts) return;
  begun = true;
  for (const { title, figure } of report.charts) {
    const plot = make("div", { className: "plot" });
    figures.set(plot, figure);
    byId("charts").append(makeCard(title, plot));
  }
  // Plotly is unpacked only now. The report's policy knows it by its hash, and lets no other script run.
  document.head.append(make("script", { textContent: await takeText("plotly") }));
  const observer = new IntersectionObserver((entries) => {
    for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
      observer.unobserve(target);
      drawPlot(target);
    }
  });
  for (const plot of figures.keys()) observer.observe(plot);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolourCurves);
}

/** @type {(plot: Element) => void} */
function drawPlot(plot) {
  const figure = /** @type {Chart["figure"]} */ (figures.get(plot));
  const options = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
  plot.classList.add("drawn");
  plotly().newPlot(plot, figure.data, layoutOf(figure), options);
}

function recolourCurves() {
  for (const [plot, figure] of figures) {
    if (plot.classList.contains("drawn")) plotly().react(plot, figure.data, layoutOf(figure));
  }
}
