// The metrics' charts, drawn by plotly when their tab is first seen.

const darkScheme = matchMedia("(prefers-color-scheme: dark)");
let curvesDrawn = false;

function chartColours() {
  const style = getComputedStyle(document.documentElement);
  const [ink, rule] = ["--ink", "--rule"].map((name) => style.getPropertyValue(name).trim());
  const axis = { gridcolor: rule, linecolor: rule, zerolinecolor: rule, tickcolor: rule };
  return { paper_bgcolor: "transparent", plot_bgcolor: "transparent", font: { color: ink, family: "system-ui, sans-serif", size: 12 }, axis };
}

function layoutOf(figure) {
  const { axis, ...colours } = chartColours();
  return {
    ...figure.layout, ...colours, autosize: true, height: 280, margin: { l: 58, r: 12, t: 10, b: 44 },
    xaxis: { ...figure.layout.xaxis, ...axis }, yaxis: { ...figure.layout.yaxis, ...axis },
    legend: { orientation: "h", y: -0.22, yanchor: "top" }, hovermode: "x unified",
    hoverlabel: { bgcolor: getComputedStyle(document.documentElement).getPropertyValue("--surface").trim() },
  };
}

function drawCurves() {
  if (curvesDrawn || !page.charts) return;
  curvesDrawn = true;
  const host = document.getElementById("charts");
  for (const { title, figure } of page.charts) {
    const plot = document.createElement("div");
    plot.className = "plot";
    host.append(card(title, plot));
    plot.figure = figure;
    Plotly.newPlot(plot, figure.data, layoutOf(figure), { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"] });
  }
  darkScheme.addEventListener("change", recolourCurves);
}

function recolourCurves() {
  for (const plot of document.querySelectorAll(".plot")) Plotly.react(plot, plot.figure.data, layoutOf(plot.figure));
}
