"""Error of the engine against its number of neurons."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.clock import Say, Spent, exponent, median, timed
from benchmarks.markdown import percent, table
from benchmarks.setting import chain_problem, engine, kernels_of, root_mean, squared_errors, worst


@dataclass(frozen=True)
class Settings:
    """One replica of S neurons, averaged over seeds, against many replicas with other seeds and a smaller tolerance."""

    samples: int = 10
    steps: int = 60
    sizes: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    seeds: int = 8
    reference_neurons: int = 16384
    reference_replicas: int = 16
    reference_tolerance: float = 2.5e-3


FULL = Settings()
QUICK = Settings(4, 4, (128, 256), 2, 512, 2)


def run(settings: Settings, say: Say) -> dict[str, Any]:
    problem = chain_problem(samples=settings.samples, steps=settings.steps)
    say(f"the reference: {settings.reference_replicas} replicas of {settings.reference_neurons} neurons")
    exact = engine(
        problem,
        settings.reference_neurons,
        seed=1_000_000,
        replicas=settings.reference_replicas,
        tolerance=settings.reference_tolerance,
    )
    reference = kernels_of(exact)
    assert exact.stderr is not None  # there are replicas
    own = {name: float(error.norm() / reference[name].norm()) for name, error in kernels_of(exact.stderr).items()}
    points = []
    for size in settings.sizes:
        spent: list[Spent] = []
        squares = []
        for seed in range(settings.seeds):
            answer, took = timed(partial(engine, problem, size, seed))
            spent.append(took)
            squares.append(squared_errors(kernels_of(answer), reference))
        errors = root_mean(squares)
        points.append({"neurons": size, "errors": errors, "worst": worst(errors), **median(spent).json()})
        say(f"{size} neurons: worst kernel {worst(errors):.2%} wrong, {points[-1]['cpu']:.2f} s of CPU")
    sizes = [float(size) for size in settings.sizes]
    return {
        "reference_stderr": own,
        "points": points,
        "exponent": exponent(sizes, [point["worst"] for point in points]),
        "exponents": {name: exponent(sizes, [point["errors"][name] for point in points]) for name in reference},
    }


def report(settings: Settings, result: dict[str, Any]) -> str:
    names = list(result["exponents"])
    rows = [
        [point["neurons"], f"{point['cpu']:.2f}", *(percent(point["errors"][name]) for name in names)]
        for point in result["points"]
    ]
    rows.append(["exponent", "", *(f"{result['exponents'][name]:.2f}" for name in names)])
    own = percent(worst(result["reference_stderr"]))
    return f"""\
Relative error of every kernel over all {settings.steps + 1} states, one replica, root mean square over {settings.seeds}
seeds: tanh, depth 3, P = {settings.samples}, gamma0 = 1. The reference is {settings.reference_replicas} replicas of
{settings.reference_neurons} neurons with other seeds at tolerance {settings.reference_tolerance:g}; its own standard error
is {own} in the worst kernel. The worst kernel's error falls like S^{result["exponent"]:.2f}; Monte Carlo promises -0.50.

{table(["S", "CPU s", *names], rows)}"""
