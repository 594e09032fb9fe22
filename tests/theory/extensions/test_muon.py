"""Muon: the engine against brute force on one network, against trained networks, and against torch.optim.Muon's own loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference.ensembles import Limit, observables, z_scores
from tests.reference.muon import COEFFICIENTS, Muon
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError
from torch_dmft.theory import solvers
from torch_dmft.theory.choose import choose
from torch_dmft.theory.engine import course, matrix
from torch_dmft.theory.engine.course import Course
from torch_dmft.theory.engine.matrix import GaussianMatrix, Side
from torch_dmft.theory.engine.muon import newton_schulz, polar
from torch_dmft.theory.engine.networks import network_of
from torch_dmft.theory.engine.posed import twin_of
from torch_dmft.theory.engine.training import train_and_record
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solvers import InfiniteWidth

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(5, 6, generator=GENERATOR)
TARGETS = torch.sign(torch.randn(5, 1, generator=GENERATOR))
RECORD = [0, 4, 8]
NS = {"ns_coefficients": COEFFICIENTS, "ns_steps": 5, "eps": 1e-7}

needs_torchs = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")


def pose(case: Muon, **settings: Any) -> Problem:
    """What the oracle trains, as a problem."""
    return Problem.mlp(
        case.inputs,
        case.targets,
        depth=len(case.ratios),
        width_ratios=case.ratios,
        **{
            "gamma0": case.gamma0,
            "lr": case.lr,
            "steps": case.steps,
            "momentum": case.momentum,
            "nesterov": case.nesterov,
            "weight_decay": case.decay,
            "optimizer": "muon",
            "others": {"optimizer": "sgd", "lr": case.sgd_lr},
            "exact": case.exact,
            **settings,
        },
    )


# The step


@needs_torchs
@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_whole_matrices_are_moved_as_torch_moves_them(
    shape: tuple[int, int], nesterov: bool, adjust: str, generator: torch.Generator
) -> None:
    start = torch.randn(shape, generator=generator)
    mine, torchs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9, "nesterov": nesterov, "adjust_lr_fn": adjust}
    theirs = torch.optim.Muon([torchs], **settings)  # type: ignore[arg-type]
    scale = math.sqrt(max(1, shape[0] / shape[1])) if adjust == "original" else 0.2 * math.sqrt(max(shape))
    group = {**NS, "params": [mine], "lr": 0.1 * scale, "decay": 0.1 * 0.2, "momentum": 0.9, "nesterov": nesterov}
    own = course.Muon([{**group, "exact": False, "low": True}])
    for _ in range(3):
        gradient = torch.randn(shape, generator=generator)
        mine.grad, torchs.grad = gradient, gradient.clone()
        own.step()
        theirs.step()
    torch.testing.assert_close(mine, torchs, rtol=1e-6, atol=1e-6)


def test_rounding_averages_out_in_whole_matrices_and_not_in_cores(generator: torch.Generator) -> None:
    """The effect of bfloat16 on what a step does to features, for matrices of rank 8 and for their cores."""

    def off(width: int) -> tuple[float, float]:
        whole, cores = [], []
        for _ in range(6):
            sides = torch.randn(2, 8, width, generator=generator, dtype=torch.float64)
            d, c = torch.tanh(sides + torch.randn(2, 1, width, generator=generator, dtype=torch.float64))
            gradient = (d * torch.logspace(0, -1, 8, dtype=torch.float64)[:, None]).T @ c
            first, second = (torch.linalg.qr(side.T)[0] for side in (d, c))
            wanted = newton_schulz(gradient, {**NS, "low": False}) @ c.T
            core = first.T @ gradient @ second
            found = (
                newton_schulz(gradient, {**NS, "low": True}).double() @ c.T,
                first @ newton_schulz(core, {**NS, "low": True}).double() @ second.T @ c.T,
            )
            right = first @ newton_schulz(core, {**NS, "low": False}) @ second.T @ c.T
            torch.testing.assert_close(right, wanted, rtol=1e-9, atol=1e-9)
            for errors, value in zip((whole, cores), found, strict=True):
                errors.append(float((value - wanted).norm() / wanted.norm()))
        return sum(whole) / 6, sum(cores) / 6

    (narrow, _), (wide, core) = off(32), off(256)
    assert 0.001 < wide < 0.7 * narrow < 0.02, (narrow, wide)
    assert 2 * wide < core < 0.03, core


def test_a_polar_factor_leaves_out_rounding(generator: torch.Generator) -> None:
    thin = torch.randn(2, 12, 3, generator=generator)
    low_rank = (thin[0] @ thin[1].T).float()
    values = torch.linalg.svdvals(polar(low_rank))
    torch.testing.assert_close(values[:3], torch.ones(3))
    assert float(values[3:].max()) < 1e-5
    assert not polar(torch.zeros(3, 2)).any()


# One network


@pytest.fixture
def written_down(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[GaussianMatrix, Tensor]]:
    """Matrices that are known in full: what a lazily sampled one reveals are their images."""
    known: dict[GaussianMatrix, Tensor] = {}
    plain = GaussianMatrix._extend

    def extend(lazy: GaussianMatrix, directions: Tensor, side: Side, other: Side) -> None:
        images = directions @ (known[lazy].T if side is lazy.forward_side else known[lazy])
        with monkeypatch.context() as patch:
            patch.setattr(side.latent_population, "draw", lambda count: images / lazy.scale)
            plain(lazy, directions, side, other)

    def all_directions(residual: Tensor, squares: Tensor, basis: Tensor, *_: Any, **__: Any) -> Tensor:
        units = residual / squares.sqrt()[:, None]
        _, values, directions = torch.linalg.svd(units - (units @ basis.T) @ basis, full_matrices=False)
        room = len(basis.T) - len(basis)
        directions = directions[values > 1e-13][:room]
        directions = directions - (directions @ basis.T) @ basis
        return torch.linalg.qr(directions.T)[0].T

    monkeypatch.setattr(GaussianMatrix, "_extend", extend)
    monkeypatch.setattr(matrix, "new_directions", all_directions)
    yield known


def brute_force(problem: Problem, weights: list[Tensor]) -> Tensor:
    """Outputs of every step of a network whose hidden matrices Muon moves as they are; ``weights`` in torch's own units."""
    training, steps = problem.training, []
    widths = [len(weight) for weight in weights[:-1]]
    scales = [weight.shape[1] ** -0.5 for weight in weights[:-1]] + [1 / (problem.gamma0 * widths[-1])]
    weights = [weight.clone().requires_grad_() for weight in weights]
    buffers = [torch.zeros_like(weight) for weight in weights]
    for step in range(problem.steps + 1):
        x = problem.tensor
        for weight in weights[:-1]:
            x = torch.tanh(x @ weight.T)
        outputs = x @ weights[-1].T
        steps.append(outputs.detach())
        slopes = torch.autograd.grad((outputs - problem.targets).square().mean(), weights)
        if step == problem.steps:
            return torch.stack(steps)
        with torch.no_grad():
            for index, (weight, slope) in enumerate(zip(weights, slopes, strict=True)):
                if index in (0, len(weights) - 1):
                    rate = 0.1 * scales[index] ** 2 * problem.gamma0**2 * widths[-1]
                    weight -= rate * slope
                    continue
                beta = float(training.number("momentum"))
                buffers[index] = beta * buffers[index] + (1 - beta) * slope
                ahead = beta * buffers[index] + (1 - beta) * slope if training.number("nesterov") else buffers[index]
                if training.number("exact"):
                    left, values, right = torch.linalg.svd(ahead, full_matrices=False)
                    factor = (left * (values > 1e-12 * values[0])) @ right
                else:
                    a, b, c = COEFFICIENTS
                    factor = ahead / ahead.norm()
                    for _ in range(5):
                        gram = factor @ factor.T
                        factor = a * factor + b * gram @ factor + c * gram @ gram @ factor
                lr = training.at("lr", step)
                weight *= 1 - lr * float(training.number("weight_decay"))
                weight -= lr * problem.gamma0 * math.sqrt(weight.shape[0] / weight.shape[1]) * factor
    raise AssertionError


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("gamma0", "ratios"), [(0.5, (1.0, 1.0)), (2.0, (2.0, 0.5, 1.0))])
def test_on_cores_it_moves_the_whole_matrix(
    gamma0: float,
    ratios: tuple[float, ...],
    nesterov: bool,
    exact: bool,
    written_down: dict[GaussianMatrix, Tensor],
    generator: torch.Generator,
) -> None:
    # Gradients of more steps are nearly parallel, and a polar factor magnifies the rounding in what is left of them.
    settings = {"nesterov": nesterov, "decay": 0.5, "exact": exact, "lr": 0.2, "steps": 4 if exact else 8}
    problem, width = pose(Muon(INPUTS[:4].double(), TARGETS[:4].double(), ratios, gamma0, **settings)), 96
    twin = twin_of(problem, width, tolerance=1e-13, generator=generator, law="network", responses=True)
    twin.model(problem.tensor[:0])  # draws the readout
    sizes = [6, *(round(width * ratio) for ratio in ratios)]
    layers = [module for module in twin.model if not isinstance(module, type(twin.model[1]))]
    weights = [layers[0].weight.detach().clone()]
    for layer, (fan_in, fan_out) in zip(layers[1:-1], pairwise(sizes[1:]), strict=True):
        start = torch.randn(fan_out, fan_in, generator=generator, dtype=torch.float64) / math.sqrt(fan_in)
        written_down[layer.matrix] = start
        weights.append(start)
    weights.append(layers[-1].weight.detach().clone())
    steps = torch.arange(problem.steps + 1)
    found = train_and_record(problem, twin, steps, two_time=False, steps=range(problem.steps + 1)).outputs
    wanted = brute_force(problem, weights)
    assert float((wanted[-1] - wanted[0]).norm()) > 0.2
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
