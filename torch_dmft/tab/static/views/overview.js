// Overview: what the comparison says, the loss, and where network and theory agree, layer by layer and step by step.

import { choice, csv, css, empty, h, panel, savePng, saveText, short, table, toggle } from "../dom.js";
import { range } from "../draw/colors.js";
import { heatmap } from "../draw/heatmap.js";
import { lineChart } from "../draw/lines.js";
import { EDGE, KINDS, latest } from "../run.js";

/** What the heatmaps can show: the name of the numbers, whose they are, and their colours. */
const UNITS = {
  alignment: {
    text: "alignment",
    name: "alignment",
    map: "viridis",
    top: 1,
    floor: 0.9,
    note: "1: same shape at any size. Dark is far off, 0.9 or less.",
  },
  width: {
    text: "what the width explains",
    name: "deviation",
    map: "far",
    bottom: 0,
    ceiling: 3,
    note: "Relative error in units of a typical network's of this width: 1 is typical. Dark is far off, 3 or more.",
  },
  root: {
    text: "error × √N",
    name: "error, root N",
    map: "far",
    bottom: 0,
    ceiling: 10,
    note: "Relative error × √N, N the narrowest width averaged over: a few for any network. Dark is far off, 10 or more.",
  },
  error: {
    text: "relative error",
    name: "relative error",
    map: "far",
    bottom: 0,
    note: "|measured − predicted| / |predicted|.",
  },
  moved: {
    text: "movement",
    name: "moved",
    map: "viridis",
    bottom: 0,
    own: true,
    note: "|K(t) − K(0)| / |K(0)| of the network: 0 if nothing is learned.",
  },
};

const LINE = 14; // pixels that a name needs

export function overview(context) {
  const { run, state, set } = context;
  const watchers = [];
  const node = h(
    "div",
    { class: "view" },
    verdict(run),
    tiles(context, watchers),
    lossPanel(context, watchers),
    alignmentPanel(context, watchers),
    h("div", { class: "sides" }, factsPanel(run), run.network.about.plan.length ? planPanel(run) : null),
  );
  return { node, update: (step) => watchers.forEach((watch) => watch(step)) };
}

function verdict(run) {
  const sentences = run.network.about.verdict.length ? run.network.about.verdict : live(run);
  const [first, ...others] = sentences;
  return h(
    "section",
    { class: "verdict" },
    h("p", { class: "headline" }, first),
    others.length
      ? h(
          "details",
          { open: others.length < 4 },
          h("summary", {}, "More"),
          others.map((s) => h("p", {}, s)),
        )
      : null,
  );
}

/** What can be said while the network trains. */
function live(run) {
  const theory = run.predictions[0];
  const name = run.network.origin;
  const losses = run.network.column("loss") ?? [];
  const broken = losses.findIndex((loss) => !Number.isFinite(loss));
  if (broken >= 0) return [`${name} diverged: its loss is not finite at step ${run.steps[broken]}.`];
  if (!theory) {
    return [
      `${name} at step ${run.last}, without a prediction beside it.`,
      "A prediction comes with comparison.write_tensorboard(logdir) after training, " +
        "or with LiveComparison(logdir, recorder, theory) during it.",
    ];
  }
  let worst = null;
  for (const kind of ["Phi", "G"]) {
    run.weights.forEach((weight, l) => {
      const error = theory.at(`${kind} relative error/${l}`, run.last);
      if (run.isPredicted(kind, l) && error > (worst?.error ?? -1)) worst = { kind, l, weight, error };
    });
  }
  if (!worst) return [`${name} at step ${run.last}: ${theory.origin} has no common step with it yet.`];
  const path = /\p{L}/u.test(worst.weight) ? worst.weight : `module ${worst.weight}`;
  const where = `${KINDS[worst.kind]} of weight ${worst.l} (${path})`;
  return [
    `So far, at step ${run.last}, ${name} is farthest from ${theory.origin} in ${where}: ` +
      `relative error ${short(worst.error, 2)}.`,
    "The verdict comes with comparison.write_tensorboard(logdir), after training.",
  ];
}

function tiles({ run, state }, watchers) {
  const box = h("div", { class: "tiles" });
  const theory = run.predictions[state.against];
  const shown = [
    ["loss", run.network, "loss"],
    ...(theory ? [[`loss, ${theory.origin}`, theory, "loss"]] : []),
    ...(theory
      ? [
          ["NTK alignment", theory, "NTK alignment/all", 5],
          ["relative error of Φ and G", theory, "relative error/all"],
        ]
      : []),
    ["NTK has moved", run.network, "NTK moved/all"],
    ["learning rate, 1 at the edge of stability", run.network, EDGE],
  ].filter(([, member, name]) => member.column(name));
  const values = shown.map(() => h("strong", {}));
  box.append(...shown.map(([text], at) => h("div", { class: "tile" }, values[at], h("span", {}, text))));
  watchers.push((step) =>
    shown.forEach(([, member, name, digits], at) => {
      const value = name === EDGE ? member.known(name, step) : member.at(name, step);
      values[at].textContent = short(value, digits);
    }),
  );
  return box;
}

function lossPanel({ run, state, set, goTo }, watchers) {
  const lines = run.members
    .filter((member) => member.column("loss"))
    .map((member) => ({
      label: member.origin,
      x: member.steps,
      y: member.columns.get("loss"),
      color: css(member.color),
      dash: member.dash,
      width: member.kind === "network" ? 2.4 : 1.8,
      band: member.kind === "network" ? undefined : band(member),
    }));
  if (!lines.length) {
    return panel("Loss", null, empty("No loss", "The probe has no targets: Probe(inputs, targets) records the loss."));
  }
  const chart = lineChart({ lines, log: state.logLoss, onClick: goTo });
  watchers.push((step) => chart.mark(step));
  const scale = toggle(
    [
      [true, "log"],
      [false, "linear"],
    ],
    state.logLoss,
    (value) => set({ logLoss: value }),
  );
  return panel(
    "Loss on the training rows",
    lines.some((line) => line.band) ? "Shaded: two standard errors of the prediction." : null,
    h("div", {}, h("div", { class: "controls" }, scale), chart.node),
    { PNG: () => chart.savePng("loss", "Loss on the training rows"), CSV: () => chart.saveCsv("loss") },
  );
}

function band(member) {
  const ends = ["lower", "upper"].map((end) => member.column(`band ${end}/loss`));
  return ends[0] && ends[1] ? ends : undefined;
}

function alignmentPanel(context, watchers) {
  const { run, state, set } = context;
  const offered = Object.keys(UNITS).filter((unit) => source(run, state, UNITS[unit]));
  const unit = offered.includes(state.unit) ? state.unit : offered[0];
  if (!unit) return null;
  const what = UNITS[unit];
  const member = source(run, state, what);
  const readout = h("p", { class: "readout" }, "\u00a0");
  const grids = run.kinds.map(([kind]) => grid(context, member, what, kind, readout));
  const all = range(grids.map((one) => one.values));
  const [low, high] = [what.bottom ?? Math.min(all[0], what.floor), what.top ?? Math.max(all[1], what.ceiling ?? 0)];
  for (const one of grids) {
    watchers.push((step) =>
      one.map.draw({ values: one.values, low, high, map: what.map, column: latest(member.steps, step) }),
    );
  }
  const title = what.own ? "What the network learned" : `Network and ${member.origin}`;
  const save = () =>
    savePng(
      `${unit}.png`,
      `${title}: ${what.text}`,
      grids.map((one) => one.map.canvas),
    );
  const rows = () =>
    member.steps.map((step, at) => [
      step,
      ...grids.flatMap((one) => one.names.map((name) => member.columns.get(name)?.[at])),
    ]);
  return panel(
    title,
    `Weights from the input (top) to the readout, steps from left to right. ${what.note}`,
    h(
      "div",
      {},
      h(
        "div",
        { class: "controls" },
        choice(
          "In units of",
          offered.map((id) => [id, UNITS[id].text]),
          unit,
          (value) => set({ unit: value }),
        ),
      ),
      h(
        "div",
        { class: "three" },
        grids.map((one) => one.node),
      ),
      readout,
    ),
    { PNG: save, CSV: () => saveText(`${unit}.csv`, csv(["step", ...grids.flatMap((one) => one.names)], rows())) },
  );
}

/** The member that has a unit's numbers: the chosen prediction, or the first that has them. */
function source(run, state, what) {
  const names = [`NTK ${what.name}/all`, `NTK ${what.name}/0`, `Phi ${what.name}/1`, `G ${what.name}/0`];
  const has = (member) => names.some((name) => member?.column(name));
  if (what.own) return has(run.network) ? run.network : null;
  return [run.predictions[state.against], ...run.predictions].find(has) ?? null;
}

function grid({ run, goTo, set }, member, what, kind, readout) {
  const names = run.weights.map((_, l) => `${kind} ${what.name}/${l}`);
  const labels = run.weights.map((_, l) => run.weightLabel(l));
  if (kind === "NTK" && member.column(`NTK ${what.name}/all`)) {
    names.push(`NTK ${what.name}/all`);
    labels.push("all");
  }
  const count = member.steps.length;
  const values = new Float32Array(names.length * count).fill(NaN);
  names.forEach((name, row) => {
    const column = member.columns.get(name);
    if (column && (row >= run.weights.length || run.isPredicted(kind, row))) values.set(column, row * count);
  });
  const height = Math.max(80, Math.min(24 * names.length, 320));
  const map = heatmap({
    rows: names.length,
    columns: count,
    height,
    label: `${KINDS[kind]} ${what.text} by weight and step`,
    onHover: (row, column) => {
      readout.textContent =
        row === null
          ? "\u00a0"
          : `${KINDS[kind]}, weight ${labels[row]}, step ${member.steps[column]}: ` +
            (Number.isNaN(values[row * count + column])
              ? "given, not predicted"
              : short(values[row * count + column], 4));
    },
    onClick: (row, column) => {
      goTo(member.steps[column]);
      set({ kind, weight: row < run.weights.length ? String(row) : "all" }, { quiet: true });
    },
  });
  const every = Math.ceil((LINE * labels.length) / height); // of many weights, only some have room for their name
  const ticks = labels.map((label, row) => h("span", { title: label }, row % every === 0 ? label : ""));
  const node = h(
    "figure",
    {},
    h("figcaption", {}, kind === "NTK" ? "NTK" : kind === "Phi" ? "Φ, forward" : "G, backward"),
    h("div", { class: "labelled" }, h("div", { class: "ticks", style: `height:${height}px` }, ticks), map.node),
  );
  return { node, map, values, names };
}

function planPanel(run) {
  return panel("The plan", "How each parameter of the network is scaled.", table(run.network.about.plan));
}

function factsPanel(run) {
  const known = Object.entries(run.facts).filter(([, value]) => value !== null);
  if (!known.length) return null;
  const text = (value) => (typeof value === "number" ? short(value, 4) : String(value));
  return panel(
    "The run",
    null,
    h(
      "dl",
      { class: "facts" },
      known.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, text(value))]),
    ),
  );
}
