// Kernels: network, prediction and their difference side by side at one step, and kernels between two times.

import { choice, csv, css, empty, h, panel, savePng, saveText, short, toggle } from "../dom.js";
import { PALETTE, colorAt, range } from "../draw/colors.js";
import { heatmap } from "../draw/heatmap.js";
import { lineChart } from "../draw/lines.js";
import { KINDS } from "../run.js";

const NOTES = {
  Phi: "Φ: how alike a weight's inputs are on two samples.",
  G: "G: how alike the gradients at a weight's output are.",
  NTK: "NTK: how a step on one sample moves the output on another.",
};

export function kernels(given) {
  const { run, set } = given;
  const isKnown = run.kinds.some(([kind]) => kind === given.state.kind);
  const state = isKnown ? given.state : { ...given.state, kind: "Phi" };
  const context = { ...given, state };
  const weight = validWeight(run, state);
  const name = `${state.kind}/${weight}`;
  const watchers = [];
  const weights = run.weights.map((_, l) => [String(l), run.weightLabel(l)]);
  if (state.kind === "NTK") weights.push(["all", "all weights"]);
  const controls = h(
    "div",
    { class: "controls" },
    toggle(run.kinds, state.kind, (kind) => set({ kind })),
    choice("Weight", weights, weight, (value) => set({ weight: value })),
    choice(
      "Colours",
      [
        ["shared", "one scale"],
        ["own", "a scale each"],
      ],
      state.scale,
      (scale) => set({ scale }),
    ),
  );
  const node = h(
    "div",
    { class: "view" },
    matrices(context, name, controls, watchers),
    course(context, weight, watchers),
    twoTimes(context, name),
  );
  return { node, update: (step) => watchers.forEach((watch) => watch(step)) };
}

function validWeight(run, state) {
  if (state.weight === "all") return state.kind === "NTK" ? "all" : "0";
  return Number(state.weight) < run.weights.length ? state.weight : "0";
}

function matrices({ run, state, set, problem }, name, controls, watchers) {
  const { rows, labels, train, samples } = run.network.about;
  const size = rows.length;
  const theory = run.predictions[state.against] ?? null;
  const marks = classMarks(labels);
  const readout = h("p", { class: "readout" }, "\u00a0");
  const caption = h("p", { class: "caption" });
  let shown = null;
  const maps = [];
  const hover = (row, column) => {
    for (const map of maps) map.point(row, column);
    readout.textContent = row === null || !shown ? "\u00a0" : words(row, column);
  };
  const words = (row, column) => {
    const sample = (at) => {
      const facts = [labels.length ? short(labels[at]) : "", train[at] === false ? "not trained on" : ""].filter(
        Boolean,
      );
      return `sample ${rows[at]}${facts.length ? ` (${facts.join(", ")})` : ""}`;
    };
    const at = row * size + column;
    const parts = shown.map(({ title, values }) => `${title} ${values ? short(values[at], 4) : "not kept"}`);
    return `${sample(row)} × ${sample(column)}: ${parts.join(", ")}`;
  };
  const kept = run.kernelSteps(theory);
  const hasPairs = run.members.some((member) => member.about.pairs);
  const choose = (row, column) => hasPairs && set({ pair: [row, column], over: "pair" }); // for the view of two times
  const titles = [run.network.origin, ...(theory ? [theory.origin, "difference"] : [])];
  const figures = titles.map((title, at) => {
    const map = heatmap({
      rows: size,
      columns: size,
      marks,
      onHover: hover,
      onClick: choose,
      label: `${name} of ${title}`,
    });
    maps.push(map);
    const color = at === 0 ? run.network.color : at === 1 ? theory.color : null;
    const key = color ? h("i", { class: "key", style: `background:${css(color)}` }) : null;
    return h("figure", { class: "matrix" }, h("figcaption", {}, key, title), map.node);
  });
  let wanted = 0;
  watchers.push(async (step) => {
    const number = ++wanted;
    let answer;
    try {
      answer = await run.kernel(name, step, kept);
    } catch (error) {
      problem(error.message);
      return;
    }
    if (number !== wanted) return; // the slider has moved on
    if (!answer) {
      caption.textContent = "No kernels were kept of this run.";
      return;
    }
    const ours = answer.matrices[0];
    const theirs = theory ? answer.matrices[run.members.indexOf(theory)] : null;
    const off = ours && theirs ? ours.map((value, at) => value - theirs[at]) : null;
    shown = [ours, theirs, off].slice(0, titles.length).map((values, at) => ({ title: titles[at], values }));
    const both = range([ours, theirs]);
    const bound = Math.max(...range([off]).map(Math.abs));
    const missing = new Float32Array(size * size).fill(NaN);
    maps.forEach((map, at) => {
      const values = shown[at].values;
      const [low, high] = state.scale === "shared" ? both : range([values]);
      if (at === 2) map.draw({ values: values ?? missing, low: -bound, high: bound, map: "balance" });
      else map.draw({ values: values ?? missing, low, high, map: "viridis" });
    });
    const numbers = theory
      ? ["alignment", "relative error"]
          .map((word) => [word, theory.at(`${name.split("/")[0]} ${word}/${name.split("/")[1]}`, answer.step)])
          .filter(([, value]) => !Number.isNaN(value))
          .map(([word, value]) => `${word} ${short(value, 4)}`)
      : [];
    const order = labels.length ? "sorted by label, which the margins show" : "in the probe's order";
    const some = size < samples ? `${size} of ${samples} samples` : `${size} samples`;
    caption.textContent = [`Step ${answer.step}`, ...numbers, `${some}, ${order}`].join(" · ");
  });
  if (size === 0) {
    return panel(
      "Kernels",
      null,
      h("div", {}, controls, empty("No kernels", "This run has curves only: see below, and Overview.")),
    );
  }
  const title = `${KINDS[name.split("/")[0]]} of weight ${name.split("/")[1]}`;
  const table = () =>
    rows.flatMap((a, i) => rows.map((b, j) => [a, b, ...shown.map(({ values }) => values?.[i * size + j])]));
  return panel(
    theory ? "Network, prediction, difference" : "The network",
    NOTES[name.split("/")[0]],
    h(
      "div",
      {},
      controls,
      caption,
      h("div", { class: `matrices of-${titles.length}` }, figures),
      readout,
      theory ? null : h("p", { class: "caption" }, "No prediction stands beside this network: see Overview."),
    ),
    {
      PNG: () =>
        savePng(
          `kernel-${name.replace("/", "-")}.png`,
          `${title} · ${caption.textContent}`,
          maps.map((map) => map.canvas),
        ),
      CSV: () =>
        shown && saveText(`kernel-${name.replace("/", "-")}.csv`, csv(["sample", "sample", ...titles], table())),
    },
  );
}

/** A colour for every sample: of its class, or along a scale if labels are many numbers. */
function classMarks(labels) {
  if (!labels.length) return null;
  const kinds = [...new Set(labels)].sort((a, b) => a - b);
  if (kinds.length <= 12) {
    const colors = [
      "#0072B2",
      "#E69F00",
      ...PALETTE.filter((color) => color !== "#E69F00"),
      "#56B4E9",
      "#D55E00",
      "#F0E442",
      "#444444",
      "#BBBBBB",
    ];
    return labels.map((label) => colors[kinds.indexOf(label) % colors.length]);
  }
  const [low, high] = range([labels]);
  return labels.map((label) => colorAt("balance", (label - low) / (high - low || 1)));
}

/** The chosen kernel over all steps: how far it is from the prediction, and how far it has moved. */
function course({ run, state, goTo }, weight, watchers) {
  const theory = run.predictions[state.against] ?? null;
  const moved = `${state.kind} moved/${weight}`;
  const lines = [run.network, ...(theory ? [theory] : [])]
    .filter((member) => member.column(moved))
    .map((member) => ({
      label: `moved, ${member.origin}`,
      x: member.steps,
      y: member.columns.get(moved),
      color: css(member.color),
      dash: member.dash,
    }));
  const error = `${state.kind} relative error/${weight}`;
  if (theory?.column(error)) {
    lines.push({
      label: "relative error",
      x: theory.steps,
      y: theory.columns.get(error),
      color: css("--difference"),
      dash: [4, 4],
    });
  }
  if (!lines.length) return null;
  const chart = lineChart({ lines, onClick: goTo, height: 200 });
  watchers.push((step) => chart.mark(step));
  return panel(
    "Over training",
    "Moved: |K(t) − K(0)| / |K(0)|. A click on the chart takes the slider there.",
    chart.node,
    {
      PNG: () => chart.savePng("kernel-course", `${KINDS[state.kind]} of weight ${weight}`),
      CSV: () => chart.saveCsv("kernel-course"),
    },
  );
}

function twoTimes({ run, state, set, problem }, name) {
  const holder = run.members.find((member) => member.about.times.length);
  if (!holder || state.kind === "NTK") {
    return panel(
      "Between two times",
      null,
      h(
        "p",
        { class: "caption" },
        state.kind === "NTK"
          ? "The NTK is recorded at equal times. Φ and G can be recorded between two times."
          : "Not here. Recorder(..., two_time=True) records Φ and G between times, and write_tensorboard shows them.",
      ),
    );
  }
  const { rows, pairs } = holder.about;
  const [first, second] = state.pair;
  const valid = pairs && first < rows.length && second < rows.length;
  const samples = state.over === "pair" && valid ? `${first},${second}` : "trace";
  const pick = (at) =>
    choice(
      at ? "and" : "samples",
      rows.map((row, i) => [String(i), `${row}`]),
      state.pair[at],
      (value) => set({ pair: state.pair.map((old, i) => (i === at ? Number(value) : old)) }),
    );
  const readout = h("p", { class: "readout" }, "\u00a0");
  const body = h("div", { class: `matrices of-3` });
  run.pair(name, samples).then(
    ({ times, matrices }) => {
      const kept = run.members
        .map((member, at) => ({ member, times: times[at], values: matrices[at] }))
        .filter((one) => one.values);
      const [low, high] = range(kept.map((one) => one.values));
      for (const { member, times: steps, values } of kept) {
        const map = heatmap({
          rows: steps.length,
          columns: steps.length,
          label: `${name} between two times of ${member.origin}`,
          onHover: (row, column) => {
            readout.textContent =
              row === null
                ? "\u00a0"
                : `${member.origin}, steps ${steps[row]} and ${steps[column]}: ` +
                  short(values[row * steps.length + column], 4);
          },
        });
        body.append(h("figure", { class: "matrix" }, h("figcaption", {}, member.origin), map.node));
        map.draw({ values, low, high, map: "viridis" });
      }
    },
    (error) => problem(error.message),
  );
  return panel(
    "Between two times",
    "K(t, s): steps t downwards and s to the right. A click on a kernel above chooses its pair of samples.",
    h(
      "div",
      {},
      h(
        "div",
        { class: "controls" },
        toggle(
          [["trace", "mean over samples"], ...(pairs ? [["pair", "a pair of samples"]] : [])],
          state.over,
          (over) => set({ over }),
        ),
        samples === "trace" ? null : [pick(0), pick(1)],
      ),
      body,
      readout,
    ),
  );
}
