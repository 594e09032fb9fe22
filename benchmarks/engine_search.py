"""The engine's cheapest way to an accuracy: sizes and tolerance from pilot runs, then verified by fresh seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import linear_regression
from typing import Any

import torch_dmft as dmft
from benchmarks.clock import Say, median, timed
from benchmarks.setting import Kernels, engine, kernels_of, root_mean, squared_errors, worst

TRIALS = 8
"""So often a size that misses the target is enlarged, of the engine and of ensembles."""


@dataclass(frozen=True)
class EngineSearch:
    """What all runs of the engine have in common.

    A size is a dictionary of ``neurons``, ``replicas`` and ``tolerance``, None for the engine's default.

    Attributes:
        problem: what is solved.
        reference: kernels that errors are measured against.
        target: wanted error of the worst kernel.
        seeds: independent runs of every size.
        say: where to report.
    """

    problem: dmft.Problem
    reference: Kernels
    target: float
    seeds: int
    say: Say

    def pilot(self, sizes: Sequence[int], tolerance: float | None) -> dict[str, Any]:
        """The cheapest neurons and replicas at a tolerance, by a power law of the error and a straight line of the time."""
        points = []
        for index, neurons in enumerate(sizes):
            runs = self.runs({"tolerance": tolerance, "neurons": neurons, "replicas": 1}, first=100 * index)
            points.append({"neurons": neurons, "worst": runs["worst"], "cpu": runs["cpu"], "wall": runs["wall"]})
            self.say(
                f"engine with {neurons} neurons, {_named(tolerance)}: {runs['worst']:.2%}, {runs['cpu']:.2f} s of CPU"
            )
        law = linear_regression([math.log(n) for n in sizes], [math.log(point["worst"]) for point in points])
        line = linear_regression(list(sizes), [point["cpu"] for point in points])
        options = []
        for replicas in (1, 2, 3, 4):
            wanted = math.exp((math.log(self.target * math.sqrt(replicas)) - law.intercept) / law.slope)
            neurons = _rounded(wanted)
            options.append((replicas * (line.intercept + line.slope * neurons), replicas, neurons))
        expected, replicas, neurons = min(options)
        size = {"tolerance": tolerance, "neurons": neurons, "replicas": replicas}
        return {"points": points, "exponent": law.slope, "expected": expected, "size": size}

    def verified(self, pilot: dict[str, Any]) -> dict[str, Any]:
        """Run what a pilot found; while that misses the target, with the neurons that would make up for it."""
        size = dict(pilot["size"])
        for trial in range(TRIALS):
            found = size | self.runs(size, first=10_000 * (trial + 1))
            self.say(f"engine: {sized(found)}, {found['worst']:.2%} in {found['cpu']:.2f} s of CPU")
            if found["worst"] <= self.target:
                break
            size["neurons"] = _rounded(size["neurons"] * (found["worst"] / self.target) ** 2)
        return found

    def runs(self, size: dict[str, Any], *, first: int = 10_000, strides: bool = True) -> dict[str, Any]:
        """Errors and time of one size over the seeds from ``first`` on."""
        options = {"replicas": size["replicas"], "tolerance": size["tolerance"], "strides": strides}
        squares, spent, passes = [], [], 0
        for seed in range(first, first + self.seeds):
            answer, took = timed(partial(engine, self.problem, size["neurons"], seed, **options))
            squares.append(squared_errors(kernels_of(answer), self.reference))
            spent.append(took)
            passes = max(passes, int(answer.metadata.get("passes") or self.problem.steps + 1))
        errors = root_mean(squares)
        return {"errors": errors, "worst": worst(errors), "passes": passes, **median(spent).json()}


def sized(size: dict[str, Any]) -> str:
    """A size in words."""
    return f"{size['replicas']} x {size['neurons']} neurons, {_named(size['tolerance'])}"


def _named(tolerance: float | None) -> str:
    return "default tolerance" if tolerance is None else f"tolerance {tolerance:g}"


def _rounded(neurons: float) -> int:
    return 256 * math.ceil(neurons / 256)
