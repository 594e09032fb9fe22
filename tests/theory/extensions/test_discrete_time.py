"""Finite learning rates: gradient descent meets gradient flow with an error of order eta, in theory as in networks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.reference.networks import Chain, Training, initialise, train
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solve import solve
from torch_dmft.theory.solvers import DeepLinear, WhitenedLinear

TIME = 0.4


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = 2 * torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
    return inputs, torch.tensor([1.0, -0.5, 0.5, 0.5], dtype=torch.float64)[:, None]


def pose(lr: float) -> Problem:
    inputs, targets = data()
    return Problem.mlp(
        inputs, targets, depth=2, activation="linear", gamma0=1.5, lr=lr, steps=round(TIME / lr), loss=half_square
    )


def assert_first_order(errors: list[float]) -> None:
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert slopes == pytest.approx([1.0] * len(slopes), abs=0.2)


def test_theory_in_steps_meets_the_flow_with_slope_one() -> None:
    problem = pose(0.02)
    flow = solve(problem, WhitenedLinear(), record=[problem.steps])
    steps = [solve(problem, DeepLinear(), record=[problem.steps]) for problem in map(pose, (0.04, 0.02, 0.01))]
    assert_first_order([float((run.outputs - flow.outputs).norm()) for run in steps])
    assert_first_order([float((run.ntk.array - flow.ntk.array).norm()) for run in steps])


def trained(chain: Chain, width: int, networks: int, lr: float) -> Tensor:
    """Final outputs of networks whose start does not depend on the learning rate, ``(network, sample, output)``."""
    inputs, targets = data()
    parameters = initialise(chain, width, networks, 4, torch.Generator().manual_seed(1))
    steps = round(TIME / lr)
    return train(chain, Training(inputs, targets, lr, steps, half_square), parameters, record=[steps])["outputs"][:, 0]


def test_networks_in_steps_meet_their_flow_with_slope_one() -> None:
    chain = Chain(2, torch.tanh, gamma0=1.5)
    flow = 2 * trained(chain, 64, 4, 0.001) - trained(chain, 64, 4, 0.002)  # up to O(eta^2)
    assert_first_order([float((trained(chain, 64, 4, lr) - flow).norm()) for lr in (0.04, 0.02, 0.01)])


def test_theory_predicts_what_a_finite_learning_rate_changes_in_networks() -> None:
    chain = Chain(2, lambda h: h, gamma0=1.5)
    effect = trained(chain, 128, 24, 0.1) - (2 * trained(chain, 128, 24, 0.005) - trained(chain, 128, 24, 0.01))
    problem = pose(0.1)
    stepped, flow = (
        solve(problem, solver, record=[problem.steps]).outputs[0] for solver in (DeepLinear(), WhitenedLinear())
    )
    predicted = stepped - flow
    assert float(predicted.norm() / flow.norm()) > 0.02
    error = effect.std(0) / math.sqrt(24)
    assert float(((effect.mean(0) - predicted) / error).abs().max()) <= 5
    assert float((effect.mean(0) - predicted).norm() / predicted.norm()) < 0.2
