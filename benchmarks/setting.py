"""The problem on which accuracy is measured, its kernels, and how wrong an answer is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

import torch_dmft as dmft

INPUT_DIM = 20
TARGET = 0.01
"""The accuracy that methods are timed at: 1% in the worst kernel."""

Kernels = dict[str, Tensor]


def chain_problem(
    *, samples: int, steps: int, depth: int = 3, activation: str = "tanh", gamma0: float = 1.0, lr: float = 0.1
) -> dmft.Problem:
    """Random signs for Gaussian points, learned by a dense chain with the paper's loss, half the sum of squares."""
    generator = torch.Generator().manual_seed(0)
    return dmft.Problem.mlp(
        torch.randn(samples, INPUT_DIM, generator=generator),
        torch.sign(torch.randn(samples, 1, generator=generator)),
        depth=depth,
        activation=activation,
        gamma0=gamma0,
        gain=math.sqrt(2) if activation == "relu" else 1.0,
        loss=half_square,
        lr=lr,
        steps=steps,
    )


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


def engine(
    problem: dmft.Problem,
    neurons: int,
    seed: int,
    *,
    replicas: int = 1,
    tolerance: float | None = None,
    strides: bool = False,
) -> dmft.Trajectory:
    """The infinite-width engine's answer, every step recorded."""
    generator = torch.Generator().manual_seed(seed)
    return dmft.solve(problem, dmft.solvers.InfiniteWidth(neurons, replicas, tolerance, generator, strides))


def kernels_of(trajectory: dmft.Trajectory) -> Kernels:
    """Phi^1..Phi^L and G^1..G^L at equal times, each ``(time, sample, sample)``; Phi^0 is given and G^{L+1} is 1."""
    layers = trajectory.layers
    found = {f"Phi{l}": layer.forward.equal_time for l, layer in enumerate(layers) if l}
    found |= {f"G{l + 1}": layer.backward.equal_time for l, layer in enumerate(layers[:-1])}
    return {name: kernel.double() for name, kernel in found.items()}


def squared_errors(kernels: Kernels, reference: Kernels) -> dict[str, float]:
    """|K - K*|^2 / |K*|^2 of every kernel over all times (Frobenius norms)."""
    return {name: float((kernels[name] - k).square().sum() / k.square().sum()) for name, k in reference.items()}


def root_mean(squares: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The root mean square, over independent runs, of every kernel's error."""
    runs = list(squares)
    return {name: math.sqrt(sum(run[name] for run in runs) / len(runs)) for name in runs[0]}


def worst(errors: Mapping[str, float]) -> float:
    """The error of the worst kernel."""
    return max(errors.values())
