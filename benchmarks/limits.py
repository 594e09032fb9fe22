"""Limits in which one method becomes another, and how fast: measured slopes beside those of theory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import torch_dmft as dmft
from benchmarks.clock import Say, exponent
from benchmarks.markdown import percent, table
from benchmarks.networks import train
from benchmarks.setting import Kernels, half_square, kernels_of

SOLVERS = dmft.solvers


@dataclass(frozen=True)
class Settings:
    """Small problems at gamma0 = 1 unless a limit takes another, and where each limit is looked at.

    Attributes:
        networks: trained at the smallest width; at others fewer in proportion.
    """

    samples: int = 4
    steps: int = 10
    lr: float = 0.1
    gammas: tuple[float, ...] = (0.2, 0.1, 0.05, 0.025)
    rates: tuple[float, ...] = (0.04, 0.02, 0.01, 0.005)
    widths: tuple[int, ...] = (32, 64, 128)
    networks: int = 2**16
    neurons: int = 8192
    draws: int = 2000
    replicas: int = 8


FULL = Settings()
QUICK = Settings(
    samples=3,
    steps=2,
    gammas=(0.4, 0.2),
    rates=(0.04, 0.02),
    widths=(16, 32),
    networks=2**10,
    neurons=128,
    draws=100,
    replicas=2,
)


def run(settings: Settings, say: Say) -> dict[str, Any]:
    found = {}
    for name, limit in LIMITS.items():
        say(name)
        found[name] = limit(settings)
    return found


def pose(settings: Settings, *, white: bool = False, **options: Any) -> dmft.Problem:
    """Random signs for Gaussian points, or for orthonormal ones, in double precision."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(settings.samples, 6, generator=generator, dtype=torch.float64)
    targets = torch.sign(torch.randn(settings.samples, 1, generator=generator, dtype=torch.float64))
    if white:
        inputs = math.sqrt(6) * torch.linalg.qr(inputs.T).Q.T
    defaults = {"loss": half_square, "lr": settings.lr, "steps": settings.steps, "gamma0": 1.0}
    return dmft.Problem.mlp(inputs, targets, **defaults | options)


def exact_twin(problem: dmft.Problem, neurons: int = 512) -> dmft.Trajectory:
    """A twin that ignores nothing, which has no sampling error in linear networks."""
    return dmft.solve(problem, SOLVERS.InfiniteWidth(neurons, 1, 1e-9))


def worst(found: dmft.Trajectory, expected: dmft.Trajectory) -> float:
    """The largest relative difference of an observable over all times."""
    other = _observed(expected)
    return max(float((values - other[name]).norm() / other[name].norm()) for name, values in _observed(found).items())


def _observed(run: dmft.Trajectory) -> Kernels:
    return kernels_of(run) | {"f": run.outputs.double()}


def _power(x: Sequence[float], errors: Sequence[float], expected: float) -> dict[str, Any]:
    return {"x": list(x), "error": list(errors), "slope": exponent(x, errors), "expected": expected}


def lazy(settings: Settings) -> dict[str, Any]:
    errors = []
    for gamma0 in settings.gammas:
        problem = pose(settings, depth=3, activation="linear", gamma0=gamma0)
        errors.append(worst(exact_twin(problem), dmft.solve(problem, SOLVERS.StaticNTK())))
    return _power(settings.gammas, errors, 2)


def lazy_tanh(settings: Settings) -> dict[str, Any]:
    """With common random numbers, which cancel against those of a lazier twin."""

    def answer(gamma0: float) -> Kernels:
        problem = pose(settings, depth=3, gamma0=gamma0)
        return _observed(dmft.solve(problem, SOLVERS.InfiniteWidth(settings.neurons // 4, 1, 1e-6)))

    start = answer(1e-3)
    kernels = [name for name in start if name != "f"]
    errors = []
    for gamma0 in settings.gammas:
        found = answer(gamma0)
        errors.append(max(float((found[name] - start[name]).norm() / start[name].norm()) for name in kernels))
    return _power(settings.gammas, errors, 2)


def perturbative(settings: Settings) -> dict[str, Any]:
    errors = []
    for gamma0 in settings.gammas:
        problem = pose(settings, depth=3, activation="linear", gamma0=gamma0)
        expansion = dmft.solve(problem, SOLVERS.Perturbation(64, 1))
        errors.append(worst(expansion, dmft.solve(problem, SOLVERS.DeepLinear())))
    return _power(settings.gammas, errors, 4)


def flow(settings: Settings) -> dict[str, Any]:
    errors = []
    for lr in settings.rates:
        steps = round(settings.rates[0] * settings.steps / lr)
        problem = pose(settings, white=True, activation="linear", lr=lr, steps=steps)
        errors.append(worst(exact_twin(problem), dmft.solve(problem, SOLVERS.WhitenedLinear())))
    return _power(settings.rates, errors, 1)


def linear(settings: Settings) -> dict[str, Any]:
    problem = pose(settings, depth=3, activation="linear")
    return {"error": worst(exact_twin(problem), dmft.solve(problem, SOLVERS.DeepLinear()))}


def algorithm1(settings: Settings) -> dict[str, Any]:
    problem = pose(settings, depth=3)
    record = range(0, settings.steps + 1, max(1, settings.steps // 3))
    generator = torch.Generator().manual_seed(1)
    mine = dmft.solve(problem, SOLVERS.InfiniteWidth(settings.neurons, settings.replicas), record=record)
    other = SOLVERS.AlternatingMonteCarlo(settings.draws, replicas=settings.replicas, stride=2, generator=generator)
    theirs = dmft.solve(problem, other, record=record)
    assert mine.stderr is not None  # several replicas
    assert theirs.stderr is not None
    scores = []
    for name, values in _observed(mine).items():
        noise = (_observed(mine.stderr)[name].square() + _observed(theirs.stderr)[name].square()).sqrt()
        scores.append(((values - _observed(theirs)[name])[1:] / noise[1:]).flatten())
    return {"error": worst(mine, theirs), "rms": float(torch.cat(scores).square().mean().sqrt())}


def wide(settings: Settings) -> dict[str, dict[str, Any]]:
    """Single networks and means of many, the latter without what the reference's and the means' own noise adds."""
    problem = pose(settings, depth=3)
    problem = replace(problem, inputs=problem.inputs.float(), targets=problem.targets.float())
    reference = dmft.solve(problem, SOLVERS.InfiniteWidth(2 * settings.neurons, 2 * settings.replicas))
    assert reference.stderr is not None  # several replicas
    limit, noise = kernels_of(reference), kernels_of(reference.stderr)
    spreads, biases = [], []
    for width in settings.widths:
        networks = settings.networks * settings.widths[0] // width
        generator = torch.Generator().manual_seed(width)
        sums = train(problem, width, networks, generator, chunk=max(1, 2**20 // width**2))
        variance = sums.variance(limit)
        spreads.append(math.sqrt(max(variance.values())))
        biases.append(math.sqrt(max(_bias(sums.mean, limit, noise, variance, sums.units).values())))
    return {
        "one network": _power(settings.widths, spreads, -0.5),
        "mean of all": _power(settings.widths, biases, -1),
    }


def _bias(mean: Kernels, limit: Kernels, noise: Kernels, variance: Mapping[str, float], units: int) -> dict[str, float]:
    """|E K_N - K*|^2 / |K*|^2 of every kernel: what is left of the squared difference without both noises."""
    found = {}
    for name, kernel in limit.items():
        own = float(noise[name].square().sum() / kernel.square().sum()) + variance[name] / units
        found[name] = max(float((mean[name] - kernel).square().sum() / kernel.square().sum()) - own, 1e-12)
    return found


LIMITS = {
    "lazy": lazy,
    "lazy_tanh": lazy_tanh,
    "perturbative": perturbative,
    "flow": flow,
    "wide": wide,
    "linear": linear,
    "algorithm1": algorithm1,
}


def report(settings: Settings, result: dict[str, Any]) -> str:
    wide, linear, sampled = result["wide"], result["linear"], result["algorithm1"]
    powers = {
        ("gamma0 → 0, linear, L = 3", "engine, `StaticNTK`"): result["lazy"],
        ("gamma0 → 0, tanh, L = 3", "engine, itself at 0.001 from the same draws"): result["lazy_tanh"],
        ("gamma0 → 0, linear, L = 3, residual", "`DeepLinear`, `Perturbation`"): result["perturbative"],
        ("lr → 0, linear, L = 1, white data", "engine, `WhitenedLinear`"): result["flow"],
        ("N → ∞, tanh, L = 3", "one network, engine"): wide["one network"],
        ("N → ∞, tanh, L = 3, mean", "mean of networks, engine"): wide["mean of all"],
    }
    rows = []
    for names, one in powers.items():
        points = ", ".join(f"{x:g}: {error:.2g}" for x, error in zip(one["x"], one["error"], strict=True))
        rows.append([*names, points, f"{one['slope']:.2f}", one["expected"]])
    return "\n\n".join(
        [
            "The worst relative difference of outputs and kernels (of kernels alone for tanh) over all times, and the power "
            f"with which it falls. P = {settings.samples}, {settings.steps} steps at lr {settings.lr:g} (0.5 sum loss), "
            "gamma0 = 1 where nothing else is said. Linear networks have no sampling error; of the mean over networks the "
            "noise, its own and the reference's, is subtracted.",
            table(["limit", "between", "difference", "slope", "in theory"], rows),
            f"At gamma0 = 1 and L = 3 the engine is `DeepLinear` in linear networks up to {linear['error']:.0e}, and "
            f"Algorithm 1 in tanh networks up to {percent(sampled['error'])}: {sampled['rms']:.2f} standard errors (rms).",
        ]
    )
