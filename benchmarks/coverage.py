"""Error bars of the engine: how large errors are in units of them, and how often intervals cover."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import torch_dmft as dmft
from benchmarks.clock import Say
from benchmarks.markdown import percent, table
from benchmarks.setting import half_square
from torch_dmft.theory.replicas import average

_WIDE = 1.959964
"""Half of a 95% interval, in standard errors."""


@dataclass(frozen=True)
class Case:
    """A problem, what it is recorded at, and how it is solved."""

    steps: tuple[int, ...]
    strides: bool = False
    settings: tuple[tuple[str, Any], ...] = ()
    classes: int = 0
    batch: int = 0


CASES = {
    "tanh": Case((10, 25, 50, 100, 200)),
    "tanh, strides": Case((10, 25, 50, 100, 200), strides=True),
    "ReLU": Case((5, 15, 30, 60), settings=(("activation", "relu"), ("gain", math.sqrt(2)), ("lr", 0.02))),
    "cross entropy": Case((5, 15, 30, 60), classes=3),
    "minibatches": Case((10, 25, 50, 100), batch=10),
}


@dataclass(frozen=True)
class Settings:
    """Single replicas, put together to answers of several, against far more neurons."""

    samples: int = 20
    dim: int = 16
    neurons: int = 512
    runs: int = 80
    replicas: tuple[int, ...] = (2, 4)
    reference_neurons: int = 4096
    reference_replicas: int = 4
    reference_tolerance: float = 3e-3
    cases: tuple[str, ...] = tuple(CASES)


FULL = Settings()
QUICK = Settings(4, 5, 64, 8, (2, 4), 256, 2, 1e-2, ("tanh", "tanh, strides"))


def run(settings: Settings, say: Say) -> dict[str, Any]:
    return {
        name: _case(settings, CASES[name], lambda text, name=name: say(f"{name}: {text}")) for name in settings.cases
    }


def problem_of(settings: Settings, case: Case) -> dmft.Problem:
    """Random signs (or classes) for Gaussian points, learned by two hidden layers: half the sum of squares, eta = 0.05."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(settings.samples, settings.dim, generator=random)
    signs = torch.where(torch.rand(settings.samples, 1, generator=random) < 0.5, -1.0, 1.0)
    options: dict[str, Any] = {"depth": 2, "activation": "tanh", "loss": half_square, "lr": 0.05}
    options |= dict(case.settings)
    if case.classes:
        options["loss"] = nn.CrossEntropyLoss(reduction="sum")
    if case.batch:
        rows = min(case.batch, settings.samples)
        options["batches"] = [torch.randperm(settings.samples, generator=random)[:rows] for _ in range(max(case.steps))]
    targets = torch.arange(settings.samples) % case.classes if case.classes else signs
    return dmft.Problem.mlp(inputs, targets, steps=max(case.steps), **options)


def _case(settings: Settings, case: Case, say: Say) -> dict[str, Any]:
    problem, record = problem_of(settings, case), [0, *case.steps]

    def solve(neurons: int, replicas: int, tolerance: float | None, strides: bool, seed: int) -> dmft.Trajectory:
        generator = torch.Generator().manual_seed(seed)
        solver = dmft.solvers.InfiniteWidth(neurons, replicas, tolerance, generator, strides)
        return dmft.solve(problem, solver, record=record)

    reference = solve(
        settings.reference_neurons, settings.reference_replicas, settings.reference_tolerance, False, 1_000_000
    )
    say(f"reference, its loss to {float((reference.stderr.losses / reference.losses)[-1]):.1%} at the end")
    runs = [solve(settings.neurons, 1, 1e-2, case.strides, seed) for seed in range(settings.runs)]
    fall = (reference.losses / reference.losses[0])[1:].tolist()
    found: dict[str, Any] = {"steps": list(case.steps), "fall": fall}
    for count in settings.replicas:
        groups = [runs[first : first + count] for first in range(0, len(runs) - count + 1, count)]
        answers = [average(group, origin="", metadata={}, loss=problem.training_loss) for group in groups]
        found[str(count)] = _scores(answers, reference)
        loss = found[str(count)]["loss"]
        say(
            f"{count} replicas: z of the loss {', '.join(f'{z:.2f}' for z in loss['sizes'])}, covered {loss['covered']:.1%}"
        )
    return found


def _scores(answers: list[dmft.Trajectory], reference: dmft.Trajectory) -> dict[str, Any]:
    """Root mean square of z at every recorded step but the start, and the share of intervals that cover."""
    scores = {}
    for name, read in _READ.items():
        exact, known = read(reference).double(), read(reference.stderr).double()
        z = torch.stack(
            [
                (read(one).double() - exact) / (read(one.stderr).double().square() + known.square()).sqrt()
                for one in answers
            ]
        )[:, 1:]
        flat = z.reshape(*z.shape[:2], -1)
        scores[name] = {
            "sizes": flat.square().mean((0, 2)).sqrt().tolist(),
            "covered": float((flat.abs() <= _WIDE).double().mean()),
            "largest": float(flat.abs().max()),
        }
    return scores


_READ: dict[str, Callable[[Any], Tensor]] = {
    "loss": lambda run: run.losses,
    "outputs": lambda run: run.outputs,
    "Phi": lambda run: torch.stack([layer.forward.equal_time for layer in run.layers[1:]], dim=1),
    "G": lambda run: torch.stack([layer.backward.equal_time for layer in run.layers[:-1]], dim=1),
    "NTK": lambda run: run.ntk.equal_time,
}


def report(settings: Settings, result: dict[str, Any]) -> str:
    def rows(count: int) -> Iterator[list[str]]:
        for name, case in result.items():
            for quantity, score in case[str(count)].items():
                sizes = ", ".join(f"{size:.2f}" for size in score["sizes"])
                yield [name, quantity, sizes, percent(score["covered"]), f"{score['largest']:.1f}"]

    steps = "; ".join(
        f"{name}: " + ", ".join(f"{step} ({fall:.0e})" for step, fall in zip(case["steps"], case["fall"], strict=True))
        for name, case in result.items()
    )
    parts = [
        f"### {count} replicas\n\n"
        + table(
            ["problem", "of", "size of z at each of the steps", "95% intervals that cover", "largest z"],
            list(rows(count)),
        )
        for count in settings.replicas
    ]
    return f"""\
Random signs (for cross entropy: three classes) for {settings.samples} Gaussian points in {settings.dim} dimensions, two hidden
layers, half the sum of squares: `solvers.InfiniteWidth({settings.neurons})` of 2 and of 4 replicas, put together from
{settings.runs} that were run one by one, against {settings.reference_replicas} replicas of {settings.reference_neurons}
neurons. z is the error in units of the standard errors of both; its size, a root mean square over answers and entries,
should be 1. Steps, and what is left of the loss there: {steps}.

{chr(10).join(parts)}"""
