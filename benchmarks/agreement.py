"""Every pair of methods on common problems: their gap in units of its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

import torch_dmft as dmft
from benchmarks.clock import Say
from benchmarks.markdown import table
from benchmarks.setting import half_square, kernels_of


@dataclass(frozen=True)
class Settings:
    """Small problems that every method can do, and how hard the sampled methods try."""

    samples: int = 4
    steps: int = 10
    lr: float = 0.1
    neurons: int = 8192
    draws: int = 2000
    replicas: int = 8
    widths: tuple[int, ...] = (128, 256, 512)
    pairs: int = 128
    width: int = 4096
    records: int = 3


DIM = 6

FULL = Settings()
QUICK = Settings(
    samples=3, steps=2, neurons=128, draws=100, replicas=2, widths=(16, 32, 64), pairs=4, width=64, records=1
)

PROBLEMS: dict[str, dict[str, Any]] = {
    "tanh, depth 2, gamma0 = 1": {"depth": 2, "activation": "tanh", "gamma0": 1.0},
    "tanh, depth 3, gamma0 = 1": {"depth": 3, "activation": "tanh", "gamma0": 1.0},
    "linear, depth 3, gamma0 = 1": {"depth": 3, "activation": "linear", "gamma0": 1.0},
    "linear, depth 2, gamma0 = 1, white data, ten times as many steps": {
        "depth": 2,
        "activation": "linear",
        "gamma0": 1.0,
        "white": True,
    },
    "tanh, depth 2, gamma0 = 0.1": {"depth": 2, "activation": "tanh", "gamma0": 0.1},
    "tanh, depth 2, gamma0 = 0.001": {"depth": 2, "activation": "tanh", "gamma0": 0.001},
}


FINER = 10
"""On white data there is gradient flow too, which steps meet where they are small."""


def run(settings: Settings, say: Say) -> dict[str, Any]:
    return {name: _gaps(_answers(settings, name, say)) for name in PROBLEMS}


def _answers(settings: Settings, name: str, say: Say) -> dict[str, dmft.Trajectory]:
    problem = _pose(settings, **PROBLEMS[name])
    record = range(0, problem.steps + 1, max(1, problem.steps // settings.records))
    answers = {}
    for method, build in _methods(settings, PROBLEMS[name]).items():
        say(f"{name}: {method}")
        answers[method] = dmft.solve(problem, build(torch.Generator().manual_seed(len(answers))), record=record)
    return answers


def _pose(settings: Settings, *, white: bool = False, **options: Any) -> dmft.Problem:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(settings.samples, DIM, generator=generator)
    targets = torch.sign(torch.randn(settings.samples, 1, generator=generator))
    lr, steps = settings.lr, settings.steps
    if white:
        inputs = math.sqrt(DIM) * torch.linalg.qr(inputs.T).Q.T
        lr, steps = lr / FINER, steps * FINER
    return dmft.Problem.mlp(inputs, targets, loss=half_square, lr=lr, steps=steps, **options)


def _methods(settings: Settings, problem: dict[str, Any]) -> dict[str, Callable[[torch.Generator], Any]]:
    """The solvers that can do a problem; plain networks need gamma0 sqrt(N) >> 1."""
    s = dmft.solvers
    tolerance = (
        1e-5 if problem["activation"] == "linear" else None
    )  # sampling is exact there, so nothing may be ignored
    methods: dict[str, Callable[[torch.Generator], Any]] = {
        "InfiniteWidth": lambda g: s.InfiniteWidth(settings.neurons, settings.replicas, tolerance, g),
        "GradientIndependence": lambda g: s.GradientIndependence(settings.neurons, settings.replicas, generator=g),
        "Perturbation": lambda g: s.Perturbation(settings.neurons, settings.replicas, generator=g),
        "StaticNTK": lambda g: s.StaticNTK(),
    }
    white = "white" in problem
    if not white:  # so many pairs of steps would take Algorithm 1 hours, and networks many minutes
        methods["AlternatingMonteCarlo"] = lambda g: s.AlternatingMonteCarlo(
            settings.draws, stride=2, replicas=settings.replicas, generator=g
        )
    if problem["gamma0"] >= 1 and not white:
        methods["WideEnsemble"] = lambda g: s.WideEnsemble(settings.widths, settings.pairs, generator=g)
    if problem["gamma0"] >= 1:
        methods["FiniteWidth"] = lambda g: s.FiniteWidth(settings.width, max(4, settings.replicas), generator=g)
    if problem["activation"] == "linear":
        methods["DeepLinear"] = lambda g: s.DeepLinear()
    if white:
        methods["WhitenedLinear"] = lambda g: s.WhitenedLinear()
    return methods


def _gaps(answers: dict[str, dmft.Trajectory]) -> dict[str, dict[str, float]]:
    return {f"{a} | {b}": _gap(answers[a], answers[b]) for a, b in combinations(answers, 2)}


def _gap(a: dmft.Trajectory, b: dmft.Trajectory) -> dict[str, float]:
    """The root mean square and the largest z-score over all entries of all kernels, and the worst relative difference."""
    scores, relative = [], []
    for name, kernel in _observed(a).items():
        other = _observed(b)[name]
        errors = [_observed(run.stderr)[name].square() for run in (a, b) if run.stderr is not None]
        relative.append(float((kernel - other).norm() / other.norm()))
        if errors:
            noise = torch.stack(errors).sum(0).sqrt()
            floor = 1e-6 * float(other.square().mean().sqrt())  # rounding, where sampling is exact
            scores.append(((kernel - other) / (noise + floor)).flatten())
    found = {"relative": max(relative)}
    if scores:
        z = torch.cat(scores)
        found |= {"rms": float(z.square().mean().sqrt()), "max": float(z.abs().max())}
    return found


def _observed(run: dmft.Trajectory) -> dict[str, Tensor]:
    """Kernels, and outputs after the first record, where they are zero."""
    return kernels_of(run) | {"f": run.outputs[1:].double()}


def report(settings: Settings, result: dict[str, Any]) -> str:
    parts = [
        f"Outputs and all kernels of P = {settings.samples} samples at {settings.records + 1} of {settings.steps} steps "
        f"(0.5 sum loss, lr {settings.lr:g}): root mean square of (a - b) / (standard error of a - b) over all entries, "
        "and in brackets the worst relative difference of a kernel. About 1 means that two methods agree to within their "
        "noise. Two methods without noise have the relative difference alone. `GradientIndependence`, `Perturbation` and "
        "`StaticNTK` are approximations: where they are far from the others they are wrong, not the others. "
        "For small gamma0 the three meet. "
        f"`FiniteWidth` trains networks of width {settings.width}, whose kernels are of order 1/N off the limit. "
        f"`WhitenedLinear` is gradient flow, from which steps of lr {settings.lr / FINER:g} are off by order lr."
    ]
    for problem, gaps in result.items():
        names = list(dict.fromkeys(name for pair in gaps for name in pair.split(" | ")))
        rows = [[a, *(_cell(gaps, a, b) for b in names[1:])] for a in names[:-1]]
        parts.append(f"### {problem}\n\n{table(['', *names[1:]], rows)}")
    return "\n\n".join(parts)


def _cell(gaps: dict[str, dict[str, float]], a: str, b: str) -> str:
    found = gaps.get(f"{a} | {b}")
    if found is None:
        return ""
    relative = f"{found['relative']:.1e}" if found["relative"] < 1e-3 else f"{found['relative']:.2g}"
    return f"{_short(found['rms'])} ({relative})" if "rms" in found else f"({relative})"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}" if math.isfinite(value) else "inf"
