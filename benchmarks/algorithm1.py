"""The paper's Algorithm 1 against the engine: time at equal error, and exponents in T."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import torch_dmft as dmft
from benchmarks.clock import Say, exponent, median, timed
from benchmarks.markdown import percent, seconds, table
from benchmarks.setting import Kernels, chain_problem, engine, kernels_of, root_mean, squared_errors, worst


@dataclass(frozen=True)
class Settings:
    """P T = 150 at equal error; exponents at the same P and several T."""

    samples: int = 5
    steps: int = 30
    depth: int = 2
    neurons: int = 1000
    seeds: int = 3
    sizes: tuple[int, ...] = (256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 2048, 4096, 8192)
    engine_seeds: int = 32
    horizons: tuple[int, ...] = (10, 20, 40)
    engine_horizons: tuple[int, ...] = (50, 100, 200, 400)
    engine_neurons: int = 4096
    reference_neurons: int = 16384
    reference_replicas: int = 16
    reference_tolerance: float = 2.5e-3


FULL = Settings()
QUICK = Settings(3, 4, 2, 64, 2, (64, 128), 2, (2, 4), (2, 4), 128, 512, 2)


def run(settings: Settings, say: Say) -> dict[str, Any]:
    problem = chain_problem(samples=settings.samples, steps=settings.steps, depth=settings.depth)
    say(f"the reference: {settings.reference_replicas} replicas of {settings.reference_neurons} neurons")
    reference = kernels_of(
        engine(
            problem,
            settings.reference_neurons,
            1_000_000,
            replicas=settings.reference_replicas,
            tolerance=settings.reference_tolerance,
        )
    )
    runs = [timed(partial(_algorithm1, problem, settings, seed)) for seed in range(settings.seeds)]
    errors = root_mean(squared_errors(kernels_of(answer), reference) for answer, _ in runs)
    spent = median([took for _, took in runs])
    iterations = max(int(answer.metadata["iterations"] or 0) for answer, _ in runs)
    say(f"Algorithm 1 with {settings.neurons} draws: {worst(errors):.2%} in {spent.cpu:.1f} s of CPU")
    slow = {
        "neurons": settings.neurons,
        "iterations": iterations,
        "errors": errors,
        "worst": worst(errors),
        **spent.json(),
    }
    fast = _engine_as_exact(settings, problem, reference, worst(errors), say)
    return {
        "algorithm1": slow,
        "engine": fast,
        "ratio": slow["cpu"] / fast["cpu"],
        "algorithm1_times": _times(settings, settings.horizons, lambda p: _algorithm1(p, settings, 0), say),
        "engine_times": _times(
            settings, settings.engine_horizons, lambda p: engine(p, settings.engine_neurons, 0), say
        ),
    }


def _algorithm1(problem: dmft.Problem, settings: Settings, seed: int) -> dmft.Trajectory:
    generator = torch.Generator().manual_seed(seed)
    return dmft.solve(problem, dmft.solvers.AlternatingMonteCarlo(settings.neurons, replicas=1, generator=generator))


def _engine_as_exact(
    settings: Settings, problem: dmft.Problem, reference: Kernels, target: float, say: Say
) -> dict[str, Any]:
    """The engine with the fewest neurons that are at least as exact; with the most if none is, which is then said."""
    for size in settings.sizes:
        runs = [timed(partial(engine, problem, size, seed, strides=True)) for seed in range(settings.engine_seeds)]
        errors = root_mean(squared_errors(kernels_of(answer), reference) for answer, _ in runs)
        spent = median([took for _, took in runs])
        say(f"engine with {size} neurons: {worst(errors):.2%} in {spent.cpu:.2f} s of CPU")
        if worst(errors) <= target:
            break
    return {
        "neurons": size,
        "errors": errors,
        "worst": worst(errors),
        "as_exact": worst(errors) <= target,
        **spent.json(),
    }


def _times(settings: Settings, horizons: tuple[int, ...], solve: Any, say: Say) -> dict[str, Any]:
    points = []
    for steps in horizons:
        problem = chain_problem(samples=settings.samples, steps=steps, depth=settings.depth)
        spent = median([timed(partial(solve, problem))[1] for _ in range(settings.seeds)])
        points.append({"steps": steps, **spent.json()})
        say(f"{steps} steps: {spent.cpu:.2f} s of CPU")
    steps_taken, times = [float(point["steps"]) for point in points], [point["cpu"] for point in points]
    return {
        "points": points,
        "exponent": exponent(steps_taken, times),
        "last_exponent": exponent(steps_taken[-2:], times[-2:]),
    }


def report(settings: Settings, result: dict[str, Any]) -> str:
    slow, fast = result["algorithm1"], result["engine"]
    rows = [
        [
            "Algorithm 1",
            f"{slow['neurons']} draws",
            percent(slow["worst"]),
            seconds(slow["cpu"]),
            f"{result['ratio']:.0f}",
        ],
        ["engine, by strides", f"{fast['neurons']} neurons", percent(fast["worst"]), seconds(fast["cpu"]), "1"],
    ]
    laws = [
        [
            name,
            ", ".join(f"{point['steps']}: {seconds(point['cpu'])}" for point in case["points"]),
            f"{case['exponent']:.2f}",
            f"{case['last_exponent']:.2f}",
        ]
        for name, case in (
            ("Algorithm 1", result["algorithm1_times"]),
            ("engine, by single steps", result["engine_times"]),
        )
    ]
    verdict = "at least as exact" if fast["as_exact"] else "**less exact**"
    return f"""\
tanh, depth {settings.depth}, P = {settings.samples}, T = {settings.steps}, gamma0 = 1, one replica each:
`solvers.AlternatingMonteCarlo` with common random numbers and a growing horizon, and the smallest engine of the grid that is
{verdict}. Error of the worst kernel, root mean square over seeds.

{table(["method", "size", "error", "CPU time", "times the engine"], rows)}

{table(["method", "CPU time at T steps", "exponent in T", "between the last two"], laws)}"""
