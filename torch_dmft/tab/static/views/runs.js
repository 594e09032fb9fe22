// Runs: one quantity for several runs, over training and against the one setting in which they differ.

import { choice, css, empty, h, panel, toggle } from "../dom.js";
import { PALETTE } from "../draw/colors.js";
import { lineChart } from "../draw/lines.js";

const IGNORED = new Set(["seconds", "centered"]);

export function runs(context) {
  const { listed, state, set, load } = context;
  const node = h("div", { class: "view" });
  if (listed.length < 2) {
    node.append(
      empty(
        "One run",
        "Write another run into a folder beside this one, such as runs/width=128, and start TensorBoard on runs.",
        "In a file: torch-dmft report runs -o report.html takes all runs below a folder.",
      ),
    );
    return { node, update() {} };
  }
  const chosen = state.chosen ?? listed.slice(0, PALETTE.length).map((one) => one.name);
  const boxes = listed.map((one) => {
    const at = chosen.indexOf(one.name);
    const box = h("input", {
      type: "checkbox",
      checked: at >= 0,
      onchange: () => set({ chosen: at >= 0 ? chosen.filter((name) => name !== one.name) : [...chosen, one.name] }),
    });
    const key = at >= 0 ? h("i", { class: "key", style: `background:${color(at)}` }) : null;
    return h("label", { class: "check" }, box, key, one.label);
  });
  const body = h("div", { class: "view" }, h("p", { class: "caption" }, "Loading …"));
  node.append(panel("Runs", "Dashed, in one colour: the theory of each.", h("div", { class: "checks" }, boxes)), body);
  let watchers = [];
  let now = state.step;
  Promise.allSettled(chosen.map(load)).then((results) => {
    const loaded = results
      .map((result, at) => ({ run: result.value, color: color(at) }))
      .filter((one) => one.run?.network);
    watchers = [];
    body.replaceChildren(
      ...(loaded.length ? shown(context, loaded, watchers) : [empty("No run is chosen", "Choose some above.")]),
    );
    watchers.forEach((watch) => watch(now));
  });
  return {
    node,
    update(step) {
      now = step;
      watchers.forEach((watch) => watch(step));
    },
  };
}

function color(at) {
  return PALETTE[at % PALETTE.length];
}

function shown({ state, set, goTo }, loaded, watchers) {
  const names = quantities(loaded);
  const quantity = names.includes(state.quantity) ? state.quantity : names[0];
  if (!quantity) return [empty("No numbers", "These runs hold no records yet.")];
  const own = (run) => run.members.find((member) => member.column(quantity));
  const lines = loaded
    .filter(({ run }) => own(run))
    .map(({ run, color: stroke }) => ({
      label: run.label,
      x: own(run).steps,
      y: own(run).columns.get(quantity),
      color: stroke,
    }));
  for (const { run } of loaded) {
    const theory = run.predictions[0];
    if (own(run) === run.network && theory?.column(quantity)) {
      lines.push({
        label: `${run.label}, ${theory.origin}`,
        x: theory.steps,
        y: theory.columns.get(quantity),
        color: css("--theory"),
        dash: [6, 4],
        width: 1.4,
      });
    }
  }
  const chart = lineChart({ lines, log: state.logRuns, onClick: goTo, height: 280 });
  watchers.push((step) => chart.mark(step));
  const controls = h(
    "div",
    { class: "controls" },
    choice(
      "Quantity",
      names.map((name) => [name, name]),
      quantity,
      (value) => set({ quantity: value }),
    ),
    toggle(
      [
        [true, "log"],
        [false, "linear"],
      ],
      state.logRuns,
      (value) => set({ logRuns: value }),
    ),
  );
  return [
    panel("Over training", null, h("div", {}, controls, chart.node), {
      PNG: () => chart.savePng("runs", quantity),
      CSV: () => chart.saveCsv("runs"),
    }),
    against(loaded, quantity, own, state),
  ];
}

/** Quantities of networks and of how far they are from their first prediction. */
function quantities(loaded) {
  const names = new Set();
  for (const { run } of loaded) {
    for (const member of run.members.slice(0, 2)) {
      for (const name of member.columns.keys()) if (!name.startsWith("band ") && member.column(name)) names.add(name);
    }
  }
  const first = ["loss", "NTK alignment/all", "relative error/all", "NTK relative error/all", "NTK moved/all"];
  return [...first.filter((name) => names.has(name)), ...[...names].filter((name) => !first.includes(name)).sort()];
}

/** The end of each run against the one number among the settings in which they differ. */
function against(loaded, quantity, own, state) {
  const keys = new Set(loaded.flatMap(({ run }) => Object.keys(run.facts)));
  const differing = [...keys].filter(
    (key) => !IGNORED.has(key) && new Set(loaded.map(({ run }) => String(run.facts[key]))).size > 1,
  );
  const title = "Against the setting in which they differ";
  if (differing.length !== 1 || !loaded.every(({ run }) => typeof run.facts[differing[0]] === "number")) {
    const found = differing.length
      ? `These differ in ${differing.join(" and ")}.`
      : "These do not differ in any setting that was recorded.";
    return panel(
      title,
      null,
      h("p", { class: "caption" }, `${found} Choose runs that differ in one number, such as width or gamma0.`),
    );
  }
  const [key] = differing;
  const points = loaded
    .filter(({ run }) => own(run))
    .map(({ run }) => ({ x: run.facts[key], y: own(run).at(quantity, run.last) }))
    .sort((a, b) => a.x - b.x);
  const x = [...new Set(points.map((point) => point.x))];
  const mean = x.map((value) => {
    const same = points.filter((point) => point.x === value).map((point) => point.y);
    return same.reduce((sum, y) => sum + y, 0) / same.length;
  });
  const lines = [{ label: quantity, x, y: mean, color: css("--network"), points: true }];
  const isWidth = key === "width" && quantity.includes("error");
  if (isWidth) {
    const level = Math.exp(mean.reduce((sum, y, at) => sum + Math.log(y * Math.sqrt(x[at])), 0) / x.length);
    lines.push({
      label: "N^(−1/2)",
      x,
      y: x.map((width) => level / Math.sqrt(width)),
      color: css("--theory"),
      dash: [6, 4],
    });
  }
  const positive = mean.every((y) => y > 0);
  const chart = lineChart({
    lines,
    xLabel: key,
    log: positive,
    logX: x.every((value) => value > 0),
    xTicks: x,
    height: 260,
  });
  const note = isWidth
    ? "Dashed: what finite width alone does."
    : "At the last record of each run; runs with equal settings are averaged.";
  return panel(`${title}: ${key}`, note, chart.node, {
    PNG: () => chart.savePng(`against-${key}`, `${quantity} against ${key}`),
    CSV: () => chart.saveCsv(`against-${key}`),
  });
}
