"""CPU time to know how networks scatter: influences of neurons at infinite width against networks of a width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import torch_dmft as dmft
from benchmarks.clock import Say, timed
from benchmarks.markdown import percent, table
from benchmarks.setting import chain_problem
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory import covariance, fluctuations


@dataclass(frozen=True)
class Settings:
    """One run at infinite width, and some networks of every width, whose cost is scaled to the number that they need."""

    samples: int = 10
    steps: int = 60
    depth: int = 3
    neurons: int = 1000
    replicas: int = 4
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    networks: int = 64


FULL = Settings()
QUICK = Settings(samples=3, steps=4, depth=1, neurons=100, replicas=2, widths=(16, 32), networks=8)


def ends(run: Trajectory) -> Tensor:
    """Three numbers at the end: an output, the mean square of the last features, and the loss."""
    features = run.layers[-1].forward.array[-1].diagonal().mean()
    return torch.stack([run.outputs[-1, 0, 0].double(), features.double(), run.losses[-1].double()])


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """Both ways to the covariance of the three numbers."""
    problem = chain_problem(samples=settings.samples, steps=settings.steps, depth=settings.depth, lr=0.02)
    for width in settings.widths:  # what is loaded on first use
        dmft.solve(problem.trained(steps=1), dmft.solvers.FiniteWidth(width, 4))
    found, spent = timed(
        lambda: fluctuations(problem, ends, record=settings.steps, neurons=settings.neurons, replicas=settings.replicas)
    )
    assert found.stderr is not None
    variances = found.sigma.diagonal()
    error = float((found.stderr.diagonal() / variances).square().mean().sqrt())
    say(f"influences: {spent.cpu:.1f} CPU s for {error:.1%}")
    rows = []
    for width in settings.widths:
        solver = dmft.solvers.FiniteWidth(width, settings.networks)
        answer, took = timed(lambda solver=solver: dmft.solve(problem, solver, record=settings.steps))
        ratios = width * covariance(answer, ends).diagonal() / variances
        each, wanted = took.cpu / settings.networks, 1 + 2 / error**2  # of a Gaussian's variance
        rows.append(
            {
                "width": width,
                "each": each,
                "cpu": wanted * each,
                "variances": ratios.tolist(),
                "ratio": wanted * each / spent.cpu,
            }
        )
        say(f"N = {width}: {rows[-1]}")
    return {"influences": {"cpu": spent.cpu, "error": error, "networks": 1 + 2 / error**2}, "networks": rows}


def report(settings: Settings, result: dict[str, Any]) -> str:
    theory, chance = result["influences"], (2 / (settings.networks - 1)) ** 0.5
    rows = [
        [
            row["width"],
            f"{row['each']:.2g}",
            f"{row['cpu']:.0f}",
            f"{row['ratio']:.1f}",
            *(f"{value:.2f}" for value in row["variances"]),
        ]
        for row in result["networks"]
    ]
    head = ["N", "CPU s of one", "CPU s of all", "of all / influences", "f", "Phi", "loss"]
    return f"""\
`theory.fluctuations` differentiates {settings.replicas} samples of {settings.neurons} neurons through training: tanh, depth
{settings.depth}, P = {settings.samples}, T = {settings.steps}, gamma0 = 1. Of three numbers at the end (an output, the mean
square of the last features, the loss) it finds the variances at every width in {theory["cpu"]:.1f} CPU s, with a standard
error of {percent(theory["error"])}. A variance from R networks of a width has the relative error sqrt(2 / (R - 1)), so
that they need R = {theory["networks"]:.0f}; their cost is that of {settings.networks}, scaled. They tell all numbers, but
of that width alone. In the last columns N times their variance, divided by Sigma, each with an error of {chance:.2f} by chance.

{table(head, rows)}"""
