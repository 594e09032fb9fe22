// Line charts, by uPlot: lines of different steps on one axis, bands, and a mark at the step that is looked at.

import uPlot from "../vendor/uPlot.esm.js";
import { csv, css, h, savePng, saveText, short } from "../dom.js";

/**
 * A chart of lines.
 *
 * @param {object} options
 *   lines: [{label, x, y, color, dash, width, fill, stepped, points, quiet, band: [lower, upper]}], quiet ones
 *   without a place in the legend; xLabel; log: whether y is logarithmic; logX; height; onClick(x);
 *   limits: [low, high] of y;
 *   marks: [{y, label}]; xTicks: where the x axis has numbers; legend: whether there is one.
 */
export function lineChart({
  lines,
  xLabel = "step",
  log = false,
  logX = false,
  height = 240,
  onClick,
  limits,
  marks = [],
  xTicks,
  legend = true,
}) {
  const tables = lines.map((line) => [line.x, clean(line.y, log), ...(line.band ?? []).map((end) => clean(end, log))]);
  const data = uPlot.join(tables);
  const series = [{ label: xLabel, value: (_, value) => (value === null ? "–" : short(value, 6)) }];
  const bands = [];
  for (const line of lines) {
    series.push({
      label: line.label,
      stroke: line.color,
      width: line.width ?? 1.8,
      dash: line.dash,
      fill: line.fill,
      spanGaps: true,
      points: { show: line.points ?? line.x.length < 2, size: 6 },
      paths: line.stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
      value: (_, value) => short(value, 4),
      class: line.quiet ? "quiet" : undefined,
    });
    if (line.band) {
      bands.push({ series: [series.length + 1, series.length], fill: faded(line.color) });
      const hidden = { spanGaps: true, width: 0, points: { show: false }, value: () => "", class: "quiet" };
      series.push({ ...hidden, label: `${line.label}, lower` }, { ...hidden, label: `${line.label}, upper` });
    }
  }
  const node = h("div", { class: "chart" });
  const line = h("div", { class: "mark", style: "display: none" });
  let mark = null;
  const axis = { stroke: css("--muted"), grid: { stroke: css("--grid"), width: 1 }, ticks: { stroke: css("--grid") } };
  const decimal = {
    filter: decades,
    grid: { ...axis.grid, filter: decades },
    ticks: { ...axis.ticks, filter: decades },
  };
  const tick = (_, values) => values.map((value) => (value === null ? "" : short(value)));
  const whole = (_, values) => values.map((value) => short(value, 12));
  let chart = null;

  function make() {
    chart = new uPlot(
      {
        width: Math.max(200, node.clientWidth),
        height,
        scales: {
          x: { time: false, distr: logX ? 3 : 1, range: logX ? roomy : undefined },
          y: { distr: log ? 3 : 1, range: limits ? () => limits : log ? roomy : undefined },
        },
        axes: [
          {
            ...axis,
            label: xLabel,
            labelSize: 20,
            size: 34,
            values: tick,
            ...(xTicks ? { splits: () => xTicks, filter: () => xTicks, values: whole } : {}),
            ...(xLabel === "step" ? { incrs: WHOLE } : {}),
          },
          { ...axis, size: 62, values: tick, ...(log ? decimal : {}) },
        ],
        series,
        bands,
        cursor: { drag: { x: true, y: false }, points: { size: 6 } },
        legend: { show: legend },
        hooks: { draw: [drawMarks], setScale: [place], ready: [place, tell] },
      },
      data,
      node,
    );
    chart.over.append(line);
    let pressed = 0;
    chart.over.addEventListener("pointerdown", (event) => (pressed = event.clientX));
    chart.over.addEventListener("click", (event) => {
      if (onClick && Math.abs(event.clientX - pressed) < 3) onClick(chart.posToVal(chart.cursor.left, "x"));
    });
    chart.over.addEventListener("pointerleave", () => setTimeout(tell));
  }

  /** Put the line where the mark is; it is no part of the drawing, so that moving it is cheap. */
  function place() {
    if (!chart || mark === null) return;
    const at = chart.valToPos(mark, "x");
    line.style.display = at >= 0 && at <= chart.over.clientWidth ? "" : "none";
    line.style.left = `${at}px`;
  }

  /** Let the legend tell the numbers at the mark, as long as the pointer asks for none. */
  function tell() {
    if (!chart || mark === null || chart.over.matches(":hover")) return;
    const isKnown = (y, at) => y !== null && y !== undefined && data[0][at] <= mark;
    chart.setLegend({ idxs: data.map((column) => column.findLastIndex(isKnown)) });
  }

  function drawMarks(u) {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.lineWidth = window.devicePixelRatio || 1;
    ctx.strokeStyle = css("--muted");
    ctx.setLineDash([6, 4]);
    ctx.fillStyle = css("--muted");
    ctx.textAlign = "left";
    ctx.textBaseline = "bottom";
    ctx.font = `${11 * (window.devicePixelRatio || 1)}px sans-serif`;
    for (const { y, label } of marks) {
      if (y < u.scales.y.min || y > u.scales.y.max) continue;
      const at = u.valToPos(y, "y", true);
      stroke(ctx, bbox.left, at, bbox.left + bbox.width, at);
      ctx.fillText(label, bbox.left + 6, at - 2);
    }
    ctx.restore();
  }

  new ResizeObserver(() => {
    if (!node.clientWidth) return;
    if (!chart) make();
    else if (Math.abs(chart.width - node.clientWidth) > 1) chart.setSize({ width: node.clientWidth, height });
  }).observe(node);

  return {
    node,
    /** Move the mark to a step. */
    mark(step) {
      mark = step;
      place();
      tell();
    },
    canvas: () => chart.ctx.canvas,
    savePng: (name, title) => savePng(`${name}.png`, title, [chart.ctx.canvas]),
    saveCsv: (name) => {
      const rows = data[0].map((x, at) => [x, ...data.slice(1).map((column) => column[at])]);
      saveText(
        `${name}.csv`,
        csv(
          series.map((one) => one.label),
          rows,
        ),
      );
    },
  };
}

/** The ends of a logarithmic axis: those of the data, and a little more. */
function roomy(u, low, high) {
  return low > 0 ? [low / 1.3, high * 1.3] : [0.1, 1];
}

const MOST_DECADES = 8; // labels on a logarithmic axis

/** Distances of ticks between steps: 1, 2, 5, 10, ... */
const WHOLE = Array.from({ length: 30 }, (_, at) => [1, 2, 5][at % 3] * 10 ** Math.floor(at / 3));

/** What a chart can draw: numbers that are not finite, or have no logarithm, are gaps. */
function clean(values, log) {
  return Array.from(values, (value) => (Number.isFinite(value) && (!log || value > 0) ? value : null));
}

/** Of the places on a logarithmic axis powers of ten, not more than fit; if there are few, those with one digit. */
function decades(u, places) {
  const power = (value) => Math.round(Math.log10(value));
  const isPower = (value) => Math.abs(value / 10 ** power(value) - 1) < 1e-9;
  const isShort = (value) => Math.abs(Number(value.toPrecision(1)) / value - 1) < 1e-9;
  const count = places.filter(isPower).length;
  const every = Math.ceil(count / MOST_DECADES);
  const isShown = count > 1 ? (value) => isPower(value) && power(value) % every === 0 : isShort;
  return places.map((value) => (isShown(value) ? value : null));
}

function faded(color) {
  return `${color}30`; // two more hexadecimal digits: how opaque
}

function stroke(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}
