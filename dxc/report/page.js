// What moves in the page of a front: the scatter plot, the parallel coordinates, the table's order.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
// plotly's own button would send the data to its server
const config = { responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "" };
const still = { ...config, displayModeBar: false };
const font = { family: "system-ui, sans-serif", size: 13, color: "#1a1a1a" };
const objectives = new Map(data.objectives.map((objective) => [objective.name, objective]));
// not along the diagonal: latency and size, which go together, would line up
const camera = { eye: { x: 1.9, y: -1.2, z: 0.8 }, center: { x: 0, y: 0, z: -0.1 } };
const pick = (values, rows) => rows.map((row) => values[row]);

function axis(name) {
  const { label, log, limits } = objectives.get(name);
  const [minallowed, maxallowed] = limits; // no axis shows what cannot be, such as an accuracy above 1
  const scale = log ? { type: "log", dtick: "D2" } // D2: ticks at 1, 2 and 5 times tens
    : { type: "linear", autorangeoptions: { minallowed, maxallowed } };
  return { title: { text: label }, ...scale, gridcolor: "#ddd", zeroline: false };
}

// names: the objectives of the axes x, y and, for a scatter plot in space, z
function drawScatter(names) {
  const flat = names.length === 2;
  const traces = data.groups.map(({ title, rows, marker, bars }) => {
    const trace = {
      type: flat ? "scattergl" : "scatter3d",
      mode: "markers",
      name: `${title} (${rows.length})`,
      marker: { ...marker, size: marker.size * (flat ? 1.3 : 1) },
      text: pick(data.hover, rows),
      hovertemplate: "%{text}<extra></extra>",
    };
    ["x", "y", "z"].slice(0, names.length).forEach((letter, place) => {
      trace[letter] = pick(objectives.get(names[place]).values, rows);
      if (bars) {
        const array = pick(objectives.get(names[place]).spread, rows);
        trace[`error_${letter}`] = { type: "data", array, color: marker.color, thickness: 1, width: 0 };
      }
    });
    return trace;
  });
  const [xaxis, yaxis, zaxis] = names.map(axis);
  const layout = {
    font,
    showlegend: true,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", itemsizing: "trace" },
    hoverlabel: { align: "left", bgcolor: "#fff", font },
    margin: flat ? { l: 80, r: 20, t: 50, b: 60 } : { l: 0, r: 0, t: 40, b: 0 },
    ...(flat ? { xaxis, yaxis } : { scene: { xaxis, yaxis, zaxis, aspectmode: "cube", camera, uirevision: "kept" } }),
  };
  return Plotly.react("scatter", traces, layout, config);
}

function drawParallel(frontOnly) {
  const rows = frontOnly ? data.front : data.hover.map((_, row) => row);
  const [first] = data.objectives;
  const color = pick(first.values, rows);
  const known = first.values.filter((value) => value !== null);
  const [cmin, cmax] = [known.reduce((a, b) => Math.min(a, b), Infinity), known.reduce((a, b) => Math.max(a, b), -Infinity)];
  const trace = {
    type: "parcoords",
    dimensions: data.dimensions.map((dimension) => ({ ...dimension, values: pick(dimension.values, rows) })),
    line: {
      color,
      colorscale: "Cividis", // from dark to light
      reversescale: first.maximise,
      cmin,
      cmax,
      showscale: cmin < cmax, // of one value, the bar would show what cannot be
      colorbar: { title: { text: first.label, side: "right" }, thickness: 14 },
    },
    labelangle: -25,
    labelfont: { ...font, size: 12 },
    tickfont: { ...font, size: 12 },
    rangefont: { color: "transparent" }, // the ends of the axes would run into the labels
  };
  const longest = Math.max(...(data.dimensions[0].ticktext ?? [""]).map((text) => text.length)); // left of the first axis
  return Plotly.react("parallel", [trace], { font, margin: { l: Math.max(60, 8 * longest + 12), r: 20, t: 90, b: 30 } }, still);
}

// Two axes never show the same objective: the other one takes what this one had.
const selects = ["x", "y", "z"].map((name) => document.querySelector(`#axes select[name=${name}]`)).filter((each) => each);
let shown = data.axes;
for (const [place, select] of selects.entries()) {
  select.addEventListener("change", () => {
    const other = shown.findIndex((name, which) => which !== place && name === select.value);
    if (other >= 0) {
      selects[other].value = shown[place];
      if (selects[other].value !== shown[place]) {
        // it may not be empty
        select.value = shown[place];
        return;
      }
    }
    shown = selects.map((each) => each.value);
    drawScatter(shown.filter((name) => name !== ""));
  });
}

function sortTable(header) {
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  for (const each of header.parentElement.children) each.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const key = (row) => row.cells[header.cellIndex].dataset.sort;
  const body = header.closest("table").tBodies[0];
  const rows = [...body.rows].sort((a, b) => {
    if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === ""); // unknown ones last
    const order = header.dataset.kind === "number" ? key(a) - key(b) : key(a).localeCompare(key(b));
    return ascending ? order : -order;
  });
  body.append(...rows);
}
for (const button of document.querySelectorAll(".front th button")) {
  button.addEventListener("click", () => sortTable(button.parentElement));
}

const frontOnly = document.getElementById("front-only");
frontOnly.addEventListener("change", () => drawParallel(frontOnly.checked));
drawScatter(data.axes.filter((name) => name !== ""));
drawParallel(frontOnly.checked);
