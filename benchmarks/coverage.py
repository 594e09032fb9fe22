"""Error bars of the engine: how large errors are in units of them, and how often intervals cover."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
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
    """A problem, and what it is recorded at."""

    steps: tuple[int, ...]
    settings: tuple[tuple[str, Any], ...] = ()
    classes: int = 0
    batch: int = 0
    data: int = 0  # their seed; of other data replicas have other seeds, too


WAYS = ("steps", "strides")

CASES = {
    "tanh": Case((10, 25, 50, 75, 100, 150, 300)),
    "ReLU": Case((5, 15, 30, 60, 90), settings=(("activation", "relu"), ("gain", math.sqrt(2)), ("lr", 0.02))),
    "cross entropy": Case((5, 15, 30, 60), classes=3),
    "minibatches": Case((10, 25, 50, 100), batch=10),
    "other tanh": Case((10, 25, 50, 100, 200), settings=(("depth", 3), ("gamma0", 2.0), ("lr", 0.02)), data=1),
    "other ReLU": Case(
        (10, 30, 60, 120),
        settings=(("activation", "relu"), ("gain", math.sqrt(2)), ("gamma0", 0.5), ("lr", 0.02)),
        data=2,
    ),
}
"""The priors of ``torch_dmft.theory.error_bars`` were chosen without the last two."""


@dataclass(frozen=True)
class Settings:
    """Single replicas, put together to answers of several, against far more neurons."""

    samples: int = 20
    dim: int = 16
    neurons: int = 1024
    runs: int = 160
    replicas: tuple[int, ...] = (2, 4)
    reference_neurons: int = 8192
    reference_replicas: int = 16
    reference_tolerance: float = 1e-3
    cases: tuple[str, ...] = tuple(CASES)


FULL = Settings()
QUICK = Settings(4, 5, 64, 8, (2, 4), 256, 2, 1e-2, ("tanh", "cross entropy"))


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """Cases side by side, a process of one thread each: none is timed."""
    with ProcessPoolExecutor(len(settings.cases), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        running = {name: pool.submit(_case, settings, CASES[name]) for name in settings.cases}
        found = {}
        for name, case in running.items():
            found[name] = case.result()
            for kind, scores in found[name].items():
                if kind not in ("steps", "fall"):
                    z = ", ".join(f"{size:.2f}" for size in scores["loss"]["spread"])
                    say(f"{name} by {kind} replicas: z of the loss {z}, covered {scores['loss']['covered']:.1%}")
    return found


def problem_of(settings: Settings, case: Case) -> dmft.Problem:
    """Random signs (or classes) for Gaussian points, learned by two hidden layers: half the sum of squares, eta = 0.05."""
    random = torch.Generator().manual_seed(case.data)
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


def _case(settings: Settings, case: Case) -> dict[str, Any]:
    problem, record = problem_of(settings, case), [0, *case.steps]

    def solve(neurons: int, replicas: int, tolerance: float, strides: bool, seed: int) -> dmft.Trajectory:
        generator = torch.Generator().manual_seed(seed)
        solver = dmft.solvers.InfiniteWidth(neurons, replicas, tolerance, generator, strides)
        return dmft.solve(problem, solver, record=record)

    reference = solve(
        settings.reference_neurons, settings.reference_replicas, settings.reference_tolerance, True, 1_000_000
    )
    fall = (reference.losses / reference.losses[0])[1:].tolist()
    found: dict[str, Any] = {"steps": list(case.steps), "fall": fall}
    for way in WAYS:
        seeds = range(10_000 * case.data, 10_000 * case.data + settings.runs)
        runs = [solve(settings.neurons, 1, 1e-2, way == "strides", seed) for seed in seeds]
        for replicas in settings.replicas:
            groups = [runs[first : first + replicas] for first in range(0, len(runs) - replicas + 1, replicas)]
            found[f"{way}, {replicas}"] = _scores(problem, groups, reference)
    return found


def _scores(
    problem: dmft.Problem, groups: list[list[dmft.Trajectory]], reference: dmft.Trajectory
) -> dict[str, dict[str, Any]]:
    """Of every quantity, at every recorded step but the start, entries together.

    ``spread`` is the standard deviation of z over answers and ``shift`` the root mean square of its mean over them, without
    what few answers leave of it; ``covered`` is the share of 95% intervals that cover, and ``plain`` that of intervals of
    1.96 s / sqrt(R), without Student, pooling and the tangent kernel.
    """
    answers = [average(group, origin="", metadata={}, loss=problem.training_loss) for group in groups]
    scores = {}
    for name, read in _READ.items():
        exact, known = read(reference).double(), read(reference.stderr).double()
        values = torch.stack([read(answer).double() for answer in answers])
        bars = torch.stack([read(answer.stderr).double() for answer in answers])
        own = torch.stack([torch.stack([read(run).double() for run in group]).var(0) / len(group) for group in groups])
        z, plain = (
            ((values - exact) / (squared + known.square()).sqrt())[:, 1:].flatten(2 if exact.ndim > 1 else 1)
            for squared in (bars.square(), own)
        )
        z, plain = (part.reshape(*part.shape[:2], -1) for part in (z, plain))
        variance = z.var(0)
        scores[name] = {
            "spread": variance.mean(1).sqrt().tolist(),
            "shift": (z.mean(0).square() - variance / len(z)).mean(1).clamp(min=0).sqrt().tolist(),
            "covered": float((z.abs() <= _WIDE).double().mean()),
            "plain": float((plain.abs() <= _WIDE).double().mean()),
            "largest": float(z.abs().max()),
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
            for way in WAYS:
                for quantity, score in case[f"{way}, {count}"].items():
                    spread, shift = (", ".join(f"{size:.2f}" for size in score[part]) for part in ("spread", "shift"))
                    covered, plain = percent(score["covered"]), percent(score["plain"])
                    yield [f"{name}, by {way}", quantity, spread, shift, f"{score['largest']:.1f}", covered, plain]

    steps = "; ".join(
        f"{name}: " + ", ".join(f"{step} ({fall:.0e})" for step, fall in zip(case["steps"], case["fall"], strict=True))
        for name, case in result.items()
    )
    heads = ["problem", "of", "standard deviation of z at each of the steps", "its mean", "largest z"]
    heads += ["95% intervals that cover", "1.96 s / √R"]
    parts = [f"### {count} replicas\n\n" + table(heads, list(rows(count))) for count in settings.replicas]
    return f"""\
Random signs (for cross entropy: three classes) for {settings.samples} Gaussian points in {settings.dim} dimensions, two hidden
layers, half the sum of squares: `solvers.InfiniteWidth({settings.neurons})` of 2 and of 4 replicas, put together from
{settings.runs} that were run one by one, against {settings.reference_replicas} replicas of {settings.reference_neurons}
neurons at a tolerance of {settings.reference_tolerance:g}. z is the error in units of the standard errors of both, which
contain Student's t: its standard deviation over answers should be 1 or somewhat less. Its mean, a root mean square over
entries, is a bias of order 1/S that replicas share, and what is left of the reference's error; beside the bars the bias
falls like 1/√S. The last column is how often 1.96 s / √R covers, without Student, pooling and tangent kernel. Steps, and
what is left of the loss there: {steps}.

{chr(10).join(parts)}"""
