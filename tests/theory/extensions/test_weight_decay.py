"""Feature learning under weight decay (paper, section 4.2): what homogeneous networks end as.

Exactly where the network is differentiable. A ReLU network is not: some neurons end with a preactivation of zero on a
training row and chatter about it, so that f is off the regression by a per cent or less, whatever the learning rate.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.reference.ensembles import observables, z_scores
from tests.reference.networks import Chain, Training, initialise, train
from tests.theory.solvers.limit import limit
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solve import solve
from torch_dmft.theory.solvers import DeepLinear, InfiniteWidth

DECAY = 0.5


def data(train: int = 4, test: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    inputs = 1.5 * torch.randn(train + test, 5, dtype=torch.float64, generator=generator)
    return inputs, torch.randn(train, 1, dtype=torch.float64, generator=generator)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


def regression(ntk: Tensor, targets: Tensor, degree: int, error_scale: float) -> Tensor:
    """k^T [K + lambda kappa / c]^{-1} y for Delta = c (y - f): ``(sample, output)``."""
    ridge = DECAY * degree / error_scale * torch.eye(len(targets), dtype=ntk.dtype)
    return ntk[:, : len(targets)] @ torch.linalg.solve(ntk[: len(targets), : len(targets)] + ridge, targets)


@pytest.mark.parametrize(("depth", "activation"), [(1, "relu"), (2, "linear")])
@pytest.mark.parametrize("loss", [half_square, nn.MSELoss()])
def test_the_end_of_training_is_regression_with_the_final_kernel(depth: int, activation: str, loss: nn.Module) -> None:
    """Degree kappa = L + 1; the loss decides what lambda is measured in: c = 1 for the paper's, 2 / P for a mean."""
    inputs, targets = data()
    scale = 1.0 if loss is half_square else 2 / len(targets)
    settings = {"lr": 0.05 / scale, "weight_decay": DECAY * scale}  # the same path at the same step
    problem = Problem.mlp(
        inputs[:4],
        targets,
        depth=depth,
        activation=activation,
        gamma0=3.0,
        steps=1200,
        loss=loss,
        test_inputs=inputs[4:],
        **settings,
    )
    # Of one network: the mean over replicas of regressions is no regression.
    solver = DeepLinear() if activation == "linear" else InfiniteWidth(neurons=512, replicas=1)
    end = solve(problem, solver, record=[1200])
    expected = regression(end.ntk.matrix(), targets, depth + 1, 1.0)
    assert float(expected.norm()) > 0.5
    assert float((end.outputs[0] - expected).norm() / expected.norm()) < (1e-6 if activation == "linear" else 1e-3)
    static = regression(solve(problem, solver, record=[0]).ntk.matrix(), targets, depth + 1, 1.0)
    assert float((static - expected).norm() / expected.norm()) > 0.05


@pytest.mark.parametrize(("activation", "gap"), [(lambda h: h, 1e-6), (torch.relu, 0.02)], ids=["linear", "relu"])
def test_finite_networks_end_there_too(activation: Callable[[Tensor], Tensor], gap: float) -> None:
    inputs, targets = data()
    chain = Chain(2, activation, gamma0=2.0, gain=1.2)
    parameters = initialise(chain, 64, 3, 5, torch.Generator().manual_seed(0))
    training = Training(inputs[:4], targets, 0.03, 1000, half_square, weight_decay=DECAY, test_inputs=inputs[4:])
    found = train(chain, training, parameters, record=[1000])
    for outputs, ntk in zip(found["outputs"][:, 0], found["ntk"][:, 0], strict=True):
        expected = regression(ntk, targets, 3, 1.0)
        assert float((outputs - expected).norm() / expected.norm()) < gap


def test_theory_finds_the_end_of_networks() -> None:
    inputs, targets = data()
    problem = Problem.mlp(
        inputs[:4].float(), targets.float(), activation="relu", gamma0=3.0, lr=0.05, steps=300,
        loss=half_square, weight_decay=DECAY, test_inputs=inputs[4:].float(),
    )  # fmt: skip
    networks = limit(problem, [300], {64: 400, 128: 200, 256: 100})
    run = solve(problem, InfiniteWidth(neurons=2048, replicas=4), record=[300])
    for name, scores in z_scores(networks, observables(run), observables(run.stderr)).items():
        assert float(scores.abs().max()) <= 5, name


@pytest.mark.parametrize("gamma0", [0.05, 0.3, 0.5, 1.0, 3.0])
def test_below_a_threshold_in_gamma0_nothing_is_left(gamma0: float) -> None:
    """Whitened linear networks of one hidden layer grow at the rate gamma0 |Delta| - lambda, which ends where it is zero."""
    generator = torch.Generator().manual_seed(0)
    inputs = 2 * torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
    targets = torch.tensor([1.0, -0.5, 0.5, 0.5], dtype=torch.float64)[:, None]
    problem = Problem.mlp(
        inputs, targets, activation="linear", gamma0=gamma0, lr=0.1, steps=1000, loss=half_square, weight_decay=DECAY
    )
    end = solve(problem, DeepLinear(), record=[1000])
    share = max(0.0, 1 - DECAY / (gamma0 * float(targets.norm())))
    torch.testing.assert_close(end.outputs[0], share * targets, rtol=1e-4, atol=1e-5)
    if not share:
        assert float(end.ntk.array.abs().max()) < 1e-5
