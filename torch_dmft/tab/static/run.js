// A run as the views see it: a network and its predictions, each with its numbers by name.

import { ask, Memory, numbers, rows, symmetric } from "./data.js";

export const KINDS = { Phi: "Φ", G: "G", NTK: "NTK" };
export const EDGE = "edge of stability";
const COLORS = { network: "--network", theory: "--theory", static: "--static", networks: "--networks" };

class Member {
  constructor(plain) {
    this.about = plain.about;
    this.origin = plain.about.origin;
    this.kind = plain.about.kind;
    this.color = COLORS[this.kind];
    this.dash = { static: [3, 3], networks: [9, 3] }[this.kind] ?? [];
    this.steps = plain.steps;
    this.kernelSteps = plain.kernel_steps;
    this.eigenvalues = rows(plain.eigenvalues);
    this.shares = rows(plain.shares);
    this.densities = plain.densities.map((one) => ({ ...one, heights: numbers(one.heights) }));
    const values = rows(plain.values);
    this.columns = new Map(plain.columns.map((name, at) => [name, values[at]]));
  }

  /** Numbers at all steps, or null. */
  column(name) {
    const values = this.columns.get(name);
    return values && values.some((value) => !Number.isNaN(value)) ? values : null;
  }

  /** A number at the last record not after a step. */
  at(name, step) {
    const position = latest(this.steps, step);
    return position < 0 ? NaN : (this.columns.get(name)?.[position] ?? NaN);
  }

  /** The last number that is known and not after a step; some are written every few records only. */
  known(name, step) {
    const values = this.columns.get(name) ?? [];
    let position = latest(this.steps, step);
    while (position >= 0 && Number.isNaN(values[position])) position--;
    return values[position] ?? NaN;
  }
}

export class Run {
  constructor(plain) {
    this.name = plain.name;
    this.label = labelOf(plain);
    this.facts = plain.facts;
    this.problems = plain.problems;
    this.stamp = plain.stamp;
    const sound = plain.members.map((member, index) => ({ member, index })).filter(({ member }) => member.about);
    this.members = sound.map(({ member }) => new Member(member));
    this.places = sound.map(({ index }) => index);
    this.network = this.members[0] ?? null;
    this.predictions = this.members.slice(1);
    this.steps = this.network?.steps ?? [];
    this.memory = new Memory(600);
  }

  get weights() {
    return this.network.about.weights;
  }

  /** Kinds of kernels that were recorded, and their signs. */
  get kinds() {
    return Object.entries(KINDS).filter(([kind]) => kind !== "NTK" || this.network.about.ntk !== false);
  }

  /** A weight in a few words: its index, and its path unless that is a number too. */
  weightLabel(l) {
    return /^\d+$/.test(this.weights[l]) ? String(l) : `${l} · ${this.weights[l]}`;
  }

  get last() {
    return this.steps.at(-1) ?? 0;
  }

  /** Whether a kernel is predicted, and not given by the data or the outputs. */
  isPredicted(kind, weight) {
    const count = this.weights.length;
    return count === 1 || !((kind === "Phi" && weight === 0) || (kind === "G" && weight === count - 1));
  }

  /** Steps at which the network's kernels were kept, and those of a prediction if both have any in common. */
  kernelSteps(prediction) {
    const theirs = new Set(prediction?.kernelSteps);
    const common = this.network.kernelSteps.filter((step) => theirs.has(step));
    return common.length ? common : this.network.kernelSteps;
  }

  /** A kernel of every member at the last of some steps that is not after `step`: {step, matrices}. */
  async kernel(name, step, kept) {
    const at = kept[Math.max(0, latest(kept, step))];
    if (at === undefined) return null;
    return this.memory.get(`${name}|${at}`, async () => {
      const answer = await ask("kernel", { run: this.name, kernel: name, step: at });
      const size = this.network.about.rows.length;
      const matrices = this.places.map((place) => {
        const triangle = numbers(answer.kernels[place]);
        return triangle ? symmetric(triangle, size) : null;
      });
      return { step: at, matrices };
    });
  }

  /** A two-time kernel of every member: {times, matrices}. */
  async pair(name, samples) {
    return this.memory.get(`${name}|${samples}|pair`, async () => {
      const answer = await ask("pair", { run: this.name, kernel: name, samples });
      return {
        times: this.places.map((place) => answer.times[place]),
        matrices: this.places.map((place) => numbers(answer.kernels[place])),
      };
    });
  }
}

/** Position of the last of increasing steps that is not after `step`; -1 if all are. */
export function latest(steps, step) {
  let low = 0;
  let high = steps.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** What a run is called in a list: its folder, if the network is what it is called anyway. */
export function labelOf(plain) {
  const folder = plain.name.split("/").slice(0, -1).join("/");
  const own = plain.name.split("/").at(-1);
  if (own === ".") return plain.origins[0] || "this folder";
  return plain.origins.length > 1 && folder ? `${folder} · ${own}` : plain.name;
}
