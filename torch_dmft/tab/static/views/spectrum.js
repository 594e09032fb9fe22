// Spectrum: eigenvalues of the NTK over training, what of the task each holds, and how far the edge of stability is.

import { css, empty, h, panel, savePng, short } from "../dom.js";
import { range } from "../draw/colors.js";
import { heatmap } from "../draw/heatmap.js";
import { lineChart } from "../draw/lines.js";
import { EDGE, latest } from "../run.js";

const LINES = 6;
const DIRECTIONS = 12;

export function spectrum(context) {
  const { run, state } = context;
  const members = [run.network, run.predictions[state.against]].filter((member) => member?.eigenvalues.length);
  const watchers = [];
  const node = h("div", { class: "view" });
  if (members.length) node.append(eigenvalues(context, members, watchers), shares(context, members, watchers));
  else {
    node.append(
      empty(
        "No spectrum",
        run.network.about.ntk === false
          ? "The NTK was not recorded. Recorder(...) without ntk=False records it, with per_output=False averaged over outputs."
          : "It is written for probes of at most 1024 training rows times outputs, with every record or every few; of more " +
              "outputs, Recorder(..., per_output=False) records an NTK with one row for each sample.",
      ),
    );
  }
  node.append(edge(context, watchers));
  return { node, update: (step) => watchers.forEach((watch) => watch(step)) };
}

function eigenvalues({ goTo }, members, watchers) {
  const lines = members.flatMap((member) =>
    member.eigenvalues.slice(0, LINES).map((values, rank) => ({
      label: `${member.origin}, ${rank ? `number ${rank + 1}` : "largest"}`,
      quiet: rank > 0,
      x: member.steps,
      y: values,
      color:
        css(member.color) +
        Math.round(255 * (1 - (0.7 * rank) / LINES))
          .toString(16)
          .padStart(2, "0"),
      dash: member.kind === "network" ? [] : [6, 3],
    })),
  );
  const chart = lineChart({ lines, log: true, height: 300, onClick: goTo });
  watchers.push((step) => chart.mark(step));
  return panel(
    "Eigenvalues of the NTK on the training rows",
    `The ${LINES} largest, fainter with rank. Solid: the network. Dashed: the prediction. ` +
      "Along each, the error falls at this rate.",
    chart.node,
    { PNG: () => chart.savePng("eigenvalues", "Eigenvalues of the NTK"), CSV: () => chart.saveCsv("eigenvalues") },
  );
}

function shares({ run, goTo }, members, watchers) {
  const readout = h("p", { class: "readout" }, "\u00a0");
  const known = members.filter((member) => member.shares.some((row) => row.some((value) => !Number.isNaN(value))));
  if (!known.length)
    return panel(
      "What of the task each holds",
      null,
      empty("No targets", "Probe(inputs, targets) tells where the task lies."),
    );
  const grids = known.map((member) => {
    const count = Math.min(DIRECTIONS, member.shares.length);
    // Of large kernels only some records have a spectrum: those are the columns.
    const kept = member.steps.map((_, at) => at).filter((at) => !Number.isNaN(member.shares[0][at]));
    const steps = kept.map((at) => member.steps[at]);
    const values = new Float32Array(count * kept.length);
    for (let row = 0; row < count; row++)
      kept.forEach((at, column) => (values[row * kept.length + column] = member.shares[row][at]));
    const map = heatmap({
      rows: count,
      columns: kept.length,
      height: 20 * count,
      label: `share of the task along eigenvectors of ${member.origin}`,
      onHover: (row, column) => {
        readout.textContent =
          row === null
            ? "\u00a0"
            : `${member.origin}, eigenvector ${row + 1}, step ${steps[column]}: ` +
              `${short(100 * values[row * kept.length + column])} % of the task`;
      },
      onClick: (_, column) => goTo(steps[column]),
    });
    watchers.push((step) => map.draw({ values, low: 0, high: 1, map: "viridis", column: latest(steps, step) }));
    const ticks = Array.from({ length: count }, (_, at) => h("span", {}, String(at + 1)));
    return {
      map,
      node: h(
        "figure",
        {},
        h("figcaption", {}, member.origin),
        h("div", { class: "labelled" }, h("div", { class: "ticks", style: `height:${20 * count}px` }, ticks), map.node),
      ),
    };
  });
  return panel(
    "What of the task each holds",
    "Share of the targets along each eigenvector, the largest eigenvalue at the top, steps from left to right.",
    h(
      "div",
      {},
      h(
        "div",
        { class: "two" },
        grids.map((grid) => grid.node),
      ),
      readout,
    ),
    {
      PNG: () =>
        savePng(
          "task-shares.png",
          "Share of the targets along eigenvectors of the NTK",
          grids.map((grid) => grid.map.canvas),
        ),
    },
  );
}

function edge({ run, state, goTo }, watchers) {
  const members = [run.network, run.predictions[state.against]].filter((member) => member?.column(EDGE));
  if (!members.length) {
    return panel(
      "Edge of stability",
      null,
      h("p", { class: "caption" }, "Written by comparison.write_tensorboard(logdir), for SGD on a probe with targets."),
    );
  }
  const lines = members.map((member) => ({
    label: member.origin,
    x: member.steps,
    y: member.columns.get(EDGE),
    color: css(member.color),
    dash: member.dash,
  }));
  const chart = lineChart({
    lines,
    onClick: goTo,
    height: 220,
    limits: [0, 1.1 * Math.max(1, range(lines.map((line) => line.y))[1])],
    marks: [
      { y: 1, label: "edge of stability" },
      { y: 0.8, label: "small differences grow from here" },
    ],
  });
  watchers.push((step) => chart.mark(step));
  return panel(
    "Margin to the edge of stability",
    "The learning rate in units of the largest stable one: beyond 1, descent oscillates.",
    chart.node,
    { PNG: () => chart.savePng("edge", "Margin to the edge of stability"), CSV: () => chart.saveCsv("edge") },
  );
}
