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
    ...figure.layout, ...colours, autosize: true, height: 280, margin: { l: 58, r: 12, t: figure.layout.showlegend ? 50 : 10, b: 44 },
    xaxis: { ...figure.layout.xaxis, ...axis }, yaxis: { ...figure.layout.yaxis, ...axis },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, hovermode: "x unified",
    hoverlabel: { bgcolor: getComputedStyle(document.documentElement).getPropertyValue("--surface").trim() },
  };
}

// Plotly's own script is unpacked only now. The page's policy knows it by its hash, and lets no other run.
async function loadPlotly() {
  const script = document.createElement("script");
  script.textContent = await unpackText("plotly");
  document.head.append(script);
}

// Plotly needs a moment for every chart, so each waits until it is in sight.
async function drawCurves() {
  if (curvesDrawn || !page.charts) return;
  curvesDrawn = true;
  const host = document.getElementById("charts");
  const observer = new IntersectionObserver((entries) => {
    for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
      observer.unobserve(target);
      drawPlot(target);
    }
  });
  for (const { title, figure } of page.charts) {
    const plot = document.createElement("div");
    plot.className = "plot";
    plot.figure = figure;
    host.append(card(title, plot));
  }
  await loadPlotly();
  for (const plot of host.querySelectorAll(".plot")) observer.observe(plot);
  darkScheme.addEventListener("change", recolourCurves);
}

function drawPlot(plot) {
  const options = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
  plot.classList.add("drawn");
  Plotly.newPlot(plot, plot.figure.data, layoutOf(plot.figure), options);
}

function recolourCurves() {
  for (const plot of document.querySelectorAll(".plot.drawn")) Plotly.react(plot, plot.figure.data, layoutOf(plot.figure));
}
