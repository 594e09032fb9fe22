// Neurons: how preactivations and gradients are spread over neurons, beside the theory's density.

import { css, empty, h, panel, savePng, toggle } from "../dom.js";
import { lineChart } from "../draw/lines.js";
import { latest } from "../run.js";

const FIELDS = { preactivation: "preactivations h", gradient: "gradients g" };

export function neurons(context) {
  const { run, state, set } = context;
  const members = [run.network, run.predictions[state.against]].filter(Boolean);
  const offered = Object.keys(FIELDS).filter((field) => run.network.densities.some((one) => one.field === field));
  if (!offered.length) {
    const node = h(
      "div",
      { class: "view" },
      empty(
        "No densities of neurons",
        "comparison.write_tensorboard(logdir) writes them after training, if the recorder kept fields: " +
          "Recorder(..., fields=True), which is the default.",
      ),
    );
    return { node, update() {} };
  }
  const field = offered.includes(state.field) ? state.field : offered[0];
  const steps = [...new Set(run.network.densities.filter((one) => one.field === field).map((one) => one.step))].sort(
    (a, b) => a - b,
  );
  const caption = h("p", { class: "caption" });
  const body = h("div", { class: "small-multiples" });
  let drawn = null;
  let charts = [];
  const update = (step) => {
    const at = steps[Math.max(0, latest(steps, step))];
    if (at === drawn) return;
    drawn = at;
    caption.textContent =
      `Step ${at}, the last of the kept steps ${steps.join(", ")} at the slider. Grey: the network. ` +
      `Line: ${members[1]?.origin ?? "no prediction"}. Dotted: the network at step ${steps[0]}.`;
    charts = run.weights.slice(0, -1).map((_, l) => ({ l, chart: one(members, field, l, at, steps[0]) }));
    body.replaceChildren(
      ...charts.map(({ l, chart }) =>
        h("figure", {}, h("figcaption", {}, `after weight ${run.weightLabel(l)}`), chart.node),
      ),
    );
  };
  const node = h(
    "div",
    { class: "view" },
    panel(
      "Densities over neurons and samples",
      "The theory predicts how neurons are distributed: Gaussian at first, and no longer once features are learned.",
      h(
        "div",
        {},
        h(
          "div",
          { class: "controls" },
          toggle(
            offered.map((id) => [id, FIELDS[id]]),
            field,
            (value) => set({ field: value }),
          ),
        ),
        caption,
        body,
      ),
      {
        CSV: () => charts.forEach(({ l, chart }) => chart.saveCsv(`${field}-${l}-step-${drawn}`)),
        PNG: () =>
          savePng(
            `${field}.png`,
            `${FIELDS[field]} after each weight, step ${drawn}`,
            charts.map(({ chart }) => chart.canvas()),
          ),
      },
    ),
  );
  return { node, update };
}

function one([network, theory], field, weight, step, first) {
  const find = (member, at) => member?.densities.find((d) => d.field === field && d.weight === weight && d.step === at);
  const lines = [];
  const push = (density, look) => {
    if (!density) return;
    const width = (density.high - density.low) / density.heights.length;
    const x = Array.from(density.heights, (_, i) => density.low + (i + 0.5) * width);
    lines.push({ x, y: density.heights, ...look });
  };
  push(find(network, step), {
    label: network.origin,
    color: css("--muted"),
    fill: css("--bars"),
    stepped: true,
    width: 1,
  });
  if (step !== first)
    push(find(network, first), { label: `at step ${first}`, color: css("--muted"), dash: [2, 3], width: 1 });
  push(find(theory, step), { label: theory?.origin, color: css(theory?.color ?? "--theory"), width: 2 });
  return lineChart({ lines, height: 200, legend: false, xLabel: field === "preactivation" ? "h" : "g" });
}
