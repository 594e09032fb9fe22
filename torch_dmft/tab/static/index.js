// The page: one run, one step, one question at a time. Wiring only; what is shown is made in views/.

import { ask, isFile } from "./data.js";
import { choice, empty, h, short } from "./dom.js";
import { Run, labelOf, latest } from "./run.js";
import { followTheme, toggleTheme } from "./theme.js";
import { kernels } from "./views/kernels.js";
import { neurons } from "./views/neurons.js";
import { overview } from "./views/overview.js";
import { runs as runsView } from "./views/runs.js";
import { spectrum } from "./views/spectrum.js";

const VIEWS = { Overview: overview, Kernels: kernels, Neurons: neurons, Spectrum: spectrum, Runs: runsView };
const POLL = 5000; // milliseconds between looks for new records
const FRAME = 150; // milliseconds a step is shown while playing, at least
const PLAYED = 80; // steps that playing stops at, at most

const state = {
  view: "Overview",
  step: 0,
  against: 0,
  kind: "Phi",
  weight: "1",
  scale: "shared",
  unit: "alignment",
  field: "preactivation",
  quantity: "loss",
  logLoss: true,
  logRuns: true,
  over: "trace",
  pair: [0, 1],
  chosen: null,
};
let listed = []; // what the server knows of every run
let run = null; // the one that is looked at
let view = null; // what is mounted: {node, update}
let playing = null;
const loaded = new Map(); // name -> {stamp, run}

const shell = {};

/** Start the page in this document. */
export async function render() {
  document.title ||= "DMFT";
  build();
  const missing = isFile ? [] : await style();
  followTheme(() => mount());
  document.addEventListener("keydown", onKey);
  await refresh(missing);
  if (!isFile) setInterval(() => document.hidden || refresh(missing), POLL);
}

/** The style sheets beside this module, in force when this is done: charts take their colours from them. */
async function style() {
  const sheet = (name) =>
    new Promise((done) => {
      const href = new URL(name, import.meta.url);
      const missing = () => done([`${href.pathname} could not be loaded: colours are missing. Reload the page.`]);
      document.head.append(h("link", { rel: "stylesheet", href, onload: () => done([]), onerror: missing }));
    });
  return (await Promise.all(["./vendor/uPlot.css", "./style.css"].map(sheet))).flat();
}

function build() {
  shell.chooser = h("span", { class: "choosers" });
  shell.tabs = h("nav", { role: "tablist", "aria-label": "views" });
  shell.messages = h("div", { class: "messages", role: "status" });
  shell.content = h("main", {}, h("p", { class: "caption" }, "Loading …"));
  shell.play = h(
    "button",
    { type: "button", class: "play", "aria-label": "play", title: "play (space)", onclick: play },
    "▶",
  );
  shell.slider = h("input", {
    type: "range",
    min: 0,
    max: 0,
    value: 0,
    "aria-label": "step",
    oninput: () => moveTo(Number(shell.slider.value)),
  });
  shell.step = h("output", {});
  const theme =
    isFile || window.parent === window
      ? h("button", { type: "button", class: "save", title: "light or dark", onclick: toggleTheme }, "◐")
      : null;
  const keys = h(
    "span",
    { class: "keys", title: "← → a step · Home End · space plays · 1 to 5 views" },
    "← → · space · 1–5",
  );
  document.body.replaceChildren(
    h("header", { class: "top" }, h("h1", {}, "DMFT"), shell.tabs, shell.chooser, theme),
    shell.messages,
    shell.content,
    h("footer", { class: "time" }, shell.play, shell.slider, shell.step, keys),
  );
}

/** Look for runs and new records, and show them; what the page misses is said beside what they miss. */
async function refresh(missing) {
  let answer;
  try {
    answer = await ask("runs");
  } catch (error) {
    say([error.message]);
    return;
  }
  listed = answer.runs.map((one) => ({ ...one, label: labelOf(one) }));
  listed.sort((a, b) => a.label.localeCompare(b.label, undefined, { numeric: true }));
  const name = listed.some((one) => one.name === run?.name) ? run.name : listed[0]?.name;
  if (name === undefined) {
    run = null;
    shell.content.replaceChildren(
      empty(
        "No records yet",
        "The tab shows what comparison.write_tensorboard(logdir), LiveScalars and LiveComparison write. " +
          "A run that trains appears here after its first record.",
        "From trajectories that were saved: torch-dmft compare network.npz theory.npz --logdir DIR.",
      ),
    );
    say([...missing, ...answer.problems]);
    return;
  }
  const stamp = listed.find((one) => one.name === name).stamp;
  const changed = run?.name !== name || run.stamp !== stamp;
  const busy = document.activeElement?.tagName === "SELECT" || playing;
  if (changed && !(run && busy)) await show(name);
  say([...missing, ...answer.problems, ...(run?.problems ?? [])]);
}

/** A run by its name, with the records it has now. */
async function load(name) {
  const stamp = listed.find((one) => one.name === name)?.stamp;
  const kept = loaded.get(name);
  if (kept?.stamp === stamp) return kept.run;
  const fresh = new Run(await ask("run", { run: name }));
  loaded.set(name, { stamp, run: fresh });
  return fresh;
}

async function show(name) {
  const followed = run === null || state.step >= run.last;
  try {
    run = await load(name);
  } catch (error) {
    say([error.message]);
    return;
  }
  if (followed || state.step > run.last) state.step = run.last;
  if (state.against >= run.predictions.length) state.against = 0;
  mount();
}

/** Build the view of the state anew. */
function mount() {
  shell.tabs.replaceChildren(
    ...Object.keys(VIEWS).map((name) =>
      h(
        "button",
        {
          type: "button",
          role: "tab",
          "aria-selected": String(name === state.view),
          onclick: () => set({ view: name }),
        },
        name,
      ),
    ),
  );
  if (!run) return;
  shell.chooser.replaceChildren(
    ...(listed.length > 1
      ? [
          choice(
            "Run",
            listed.map((one) => [one.name, one.label]),
            run.name,
            show,
          ),
        ]
      : []),
    ...(run.predictions.length > 1
      ? [
          choice(
            "Prediction",
            run.predictions.map((one, at) => [String(at), one.origin]),
            state.against,
            (at) => set({ against: Number(at) }),
          ),
        ]
      : []),
  );
  const steps = run.steps;
  shell.slider.max = Math.max(0, steps.length - 1);
  shell.slider.disabled = steps.length < 2;
  if (!run.network || !steps.length) {
    const found = run.problems.length ? run.problems : ["The run has no records yet."];
    shell.content.replaceChildren(empty(`Nothing to show of ${run.label}`, ...found));
    view = null;
    return;
  }
  const context = { run, state, set, listed, load, goTo, problem: (text) => say([text]) };
  const scrolled = shell.content.scrollTop;
  view = VIEWS[state.view](context);
  shell.content.replaceChildren(view.node);
  shell.content.scrollTop = scrolled;
  requestAnimationFrame(showStep);
}

/** Change the state; the view is built anew unless it is quiet. */
function set(patch, { quiet = false } = {}) {
  const other = patch.view !== undefined && patch.view !== state.view;
  Object.assign(state, patch);
  if (quiet) return;
  if (other) shell.content.scrollTop = 0;
  mount();
}

/** Take the slider to a step. */
function goTo(step) {
  moveTo(nearest(run.steps, step));
}

function nearest(steps, step) {
  const at = Math.max(0, latest(steps, step));
  const next = Math.min(at + 1, steps.length - 1);
  return Math.abs(steps[next] - step) < Math.abs(steps[at] - step) ? next : at;
}

function moveTo(position) {
  if (!run?.steps.length) return;
  state.step = run.steps[Math.min(Math.max(0, position), run.steps.length - 1)];
  showStep();
}

function showStep() {
  if (!run?.steps.length) return;
  const position = Math.max(0, latest(run.steps, state.step));
  shell.slider.value = position;
  shell.slider.style.setProperty("--share", `${(100 * position) / Math.max(1, run.steps.length - 1)}%`);
  shell.step.textContent = `step ${short(state.step, 12)} of ${short(run.last, 12)}`;
  view?.update(state.step);
}

function play() {
  if (playing) {
    clearInterval(playing);
    playing = null;
  } else if (run) {
    const stride = Math.ceil(run.steps.length / PLAYED);
    if (state.step >= run.last) moveTo(0);
    playing = setInterval(() => {
      const next = latest(run.steps, state.step) + stride;
      moveTo(next);
      if (state.step >= run.last) play();
    }, FRAME);
  }
  shell.play.textContent = playing ? "❚❚" : "▶";
  shell.play.setAttribute("aria-label", playing ? "pause" : "play");
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !run) return;
  const target = event.target.tagName;
  if (target === "SELECT" || (target === "INPUT" && event.target !== shell.slider)) return;
  const at = latest(run.steps, state.step);
  const jumps = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: run.steps.length - 1 };
  const name = Object.keys(VIEWS)[Number(event.key) - 1];
  if (event.key in jumps) moveTo(jumps[event.key]);
  else if (event.key === " " && target !== "BUTTON" && target !== "SUMMARY") play();
  else if (name) set({ view: name });
  else return;
  event.preventDefault();
}

function say(messages) {
  shell.messages.replaceChildren(...[...new Set(messages)].filter(Boolean).map((text) => h("p", {}, text)));
}
