// Line charts, by uPlot: lines of different steps on one axis, bands, and a mark at the step that is looked at.

import uPlot from "../vendor/uPlot.esm.js";
import { csv, css, h, savePng, saveText, short } from "../dom.js";
import { range } from "./colors.js";

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
  const floor = range(lines.map((line) => line.y.filter((value) => value > 0)))[0]; // of bands that reach below zero
  const tables = lines.map((line) => [
    line.x,
    clean(line.y, log),
    ...(line.band ?? []).map((end) => clean(log ? end.map((value) => (value <= 0 ? floor : value)) : end, log)),
  ]);
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
            ...(xTicks ? { splits: () => xTicks, filter: all, values: whole } : {}),
            ...(xLabel === "step" ? { incrs: WHOLE } : {}),
          },
          {
            ...axis,
            size: 62,
            values: tick,
            ...(log ? { splits: (_, at, low, high) => logTicks(low, high), filter: all } : {}),
          },
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

const MOST_TICKS = 8; // on a logarithmic axis

const all = (_, places) => places;

/** Where a logarithmic axis has numbers: powers of ten; within few of these 1, 2 and 5 times; within less even distances. */
export function logTicks(low, high) {
  const decades = Math.log10(high / low);
  const from = Math.floor(Math.log10(low));
  const powers = Array.from({ length: Math.ceil(decades) + 2 }, (_, at) => from + at);
  const within = (value) => value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9);
  if (decades < 0.8) {
    const aim = (high - low) / 4;
    const unit = 10 ** Math.floor(Math.log10(aim));
    const step = unit * [1, 2, 5, 10].find((times) => times * unit >= aim);
    const first = Math.ceil(low / step);
    const count = Math.floor(high / step) - first + 1;
    return Array.from({ length: count }, (_, at) => Number(((first + at) * step).toPrecision(12)));
  }
  const mantissas = decades < 2.5 ? [1, 2, 5] : [1];
  const every = Math.ceil(decades / MOST_TICKS);
  return powers
    .filter((power) => power % every === 0)
    .flatMap((power) => mantissas.map((times) => Number(`${times}e${power}`)))
    .filter(within);
}

/** Distances of ticks between steps: 1, 2, 5, 10, ... */
const WHOLE = Array.from({ length: 30 }, (_, at) => [1, 2, 5][at % 3] * 10 ** Math.floor(at / 3));

/** What a chart can draw: numbers that are not finite, or have no logarithm, are gaps. */
function clean(values, log) {
  return Array.from(values, (value) => (Number.isFinite(value) && (!log || value > 0) ? value : null));
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
