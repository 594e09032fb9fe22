"""Time and answer of the engine's tolerance where fields turn in every step, beside a finer one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

import torch_dmft as dmft
from benchmarks.clock import Say, timed
from benchmarks.markdown import table
from benchmarks.setting import Kernels, chain_problem, engine, kernels_of
from torch_dmft.theory.tolerance import balanced_tolerance, default_tolerance


@dataclass(frozen=True)
class Settings:
    """ReLU in full batches, and tanh that sees a few of its rows in every step; replicas in pairs of the same seed."""

    neurons: int = 4096
    replicas: int = 4
    samples: int = 10
    steps: int = 60
    many: int = 64
    batch: int = 8
    batches: int = 30


FULL = Settings()
QUICK = Settings(64, 2, 3, 4, 4, 2, 4)


def run(settings: Settings, say: Say) -> dict[str, Any]:
    engine(chain_problem(samples=2, steps=2), 64, 0)  # the first call pays for imports
    return {name: _compared(name, problem, settings, say) for name, problem in _problems(settings).items()}


def _problems(settings: Settings) -> dict[str, dmft.Problem]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randperm(settings.many, generator=generator)[: settings.batch] for _ in range(settings.batches)]
    tanh = chain_problem(samples=settings.many, steps=settings.batches, lr=0.05)
    return {
        "ReLU": chain_problem(samples=settings.samples, steps=settings.steps, activation="relu", lr=0.02),
        "minibatches": replace(tanh, training=replace(tanh.training, batches=tuple(rows))),
    }


def _compared(name: str, problem: dmft.Problem, settings: Settings, say: Say) -> dict[str, Any]:
    draws = settings.neurons * settings.replicas
    tolerances = {
        "finer": default_tolerance(problem.gamma0, draws),
        "default": balanced_tolerance(problem, draws),
    }
    sizes: dict[str, list[dict[str, float]]] = {way: [] for way in tolerances}
    cpu, rank = dict.fromkeys(tolerances, 0.0), dict.fromkeys(tolerances, 0)
    for seed in range(settings.replicas):
        for way, tolerance in tolerances.items():  # in turns
            answer, spent = timed(partial(engine, problem, settings.neurons, seed, tolerance=tolerance))
            sizes[way].append(_logarithms(kernels_of(answer) | {"f": answer.outputs.double()}))
            cpu[way] += spent.cpu
            rank[way] = max(rank[way], int(answer.metadata["rank"] or 0))
            say(f"{name}, tolerance {tolerance:.2g}: {spent.cpu:.1f} s of CPU, rank {rank[way]}")
    gaps = {quantity: _apart(quantity, sizes) for quantity in sizes["finer"][0]}
    apart, chance = (_root_mean_square([gap[part] for gap in gaps.values()]) for part in range(2))
    ways = {way: {"tolerance": tolerances[way], "cpu": cpu[way], "rank": rank[way]} for way in tolerances}
    ratio = cpu["default"] / cpu["finer"]
    return {"ways": ways, "gaps": gaps, "apart": apart, "chance": chance, "ratio": ratio}


def _logarithms(kernels: Kernels) -> dict[str, float]:
    return {name: float(kernel.norm().log()) for name, kernel in kernels.items()}


def _apart(quantity: str, sizes: Mapping[str, list[dict[str, float]]]) -> tuple[float, float]:
    """The difference of the means over replicas in standard errors of one of them, and by how much pairs scatter about it."""
    fine, usual = (
        torch.tensor([run[quantity] for run in sizes[way]], dtype=torch.float64) for way in ("finer", "default")
    )
    gaps = usual - fine
    return float(gaps.mean() / fine.std() * len(gaps) ** 0.5), float(gaps.std() / fine.std())


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))


def report(settings: Settings, result: dict[str, Any]) -> str:
    rows = [
        [
            f"{name}, {way}",
            f"{figures['tolerance']:.2g}",
            figures["rank"],
            f"{figures['cpu']:.1f}",
            f"{case['ratio']:.2f}" if way == "default" else "",
            f"{case['apart']:.2f}" if way == "default" else "",
            f"{case['chance']:.2f}" if way == "default" else "",
        ]
        for name, case in result.items()
        for way, figures in case["ways"].items()
    ]
    return f"""\
Depth 3, gamma0 = 1, {settings.replicas} replicas of {settings.neurons} neurons, every state recorded. "ReLU": P =
{settings.samples}, {settings.steps} full-batch steps. "Minibatches": tanh, {settings.batch} of {settings.many} rows in each
of {settings.batches} steps. The finer tolerance is that of smooth fields in full batches; both take turns, in
pairs of the same seeds. "Apart" is by how much the mean sizes (Frobenius norms over all times) of outputs, Phi and G differ,
in standard errors of the answer, root mean square over these; "by chance" is what the scatter of the pairs would make of it
alone.

{table(["case, tolerance", "tolerance", "rank", "CPU s", "ratio", "apart", "by chance"], rows)}"""
