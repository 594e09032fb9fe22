"""WhitenedLinear against the paper's equations and, as the limit of small steps, against DeepLinear."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.reference.ensembles import observables
from torch_dmft.core.errors import ConvergenceError, UnsupportedProblemError
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solve import solve
from torch_dmft.theory.solvers import whitened_linear
from torch_dmft.theory.solvers.deep_linear import DeepLinear
from torch_dmft.theory.solvers.whitened_linear import WhitenedLinear, _integrate, _two_layer_flow

P, D = 3, 5


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * ((outputs - targets) ** 2).sum()


@pytest.fixture
def pose(generator: torch.Generator) -> Callable[..., Problem]:
    """Build a problem on whitened training inputs and arbitrary test inputs."""

    def build(*, outputs: int = 1, **settings: object) -> Problem:
        inputs = torch.randn(P, D, dtype=torch.float64, generator=generator)
        left, _, right = torch.linalg.svd(inputs, full_matrices=False)
        test_inputs = torch.randn(1, D, dtype=torch.float64, generator=generator)
        targets = torch.randn(P, outputs, dtype=torch.float64, generator=generator)
        defaults = {"depth": 1, "gamma0": 1.5, "lr": 0.03, "steps": 10, "loss": half_square, "test_inputs": test_inputs}
        return Problem.mlp(math.sqrt(D) * left @ right, targets, activation="linear", **{**defaults, **settings})

    return build


def test_two_layers_obey_the_papers_equation_and_end_at_its_kernel(pose: Callable[..., Problem]) -> None:
    problem = pose(lr=1e-4, steps=200000)
    run = solve(problem, WhitenedLinear(), record=[3000, 3001, 200000])
    y = problem.targets.norm()
    error = (problem.targets - run.outputs[:2, :P]).flatten(1).norm(dim=1)
    middle = error.mean()
    expected = -2 * torch.sqrt(1 + problem.gamma0**2 * (y - middle) ** 2) * middle
    torch.testing.assert_close(error.diff()[0] / problem.lr, expected, rtol=1e-6, atol=1e-10)
    spike = (math.sqrt(1 + problem.gamma0**2 * float(y) ** 2) - 1) * problem.targets @ problem.targets.T / y**2
    final = run.layers[1].forward.matrix()[:P, :P]
    torch.testing.assert_close(final, torch.eye(P, dtype=torch.float64) + spike, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"outputs": 2, "gain": 1.3},
        {"loss": nn.MSELoss(), "lr": 0.05},
        {"depth": 2, "outputs": 2},
        {"depth": 3, "gain": 1.2, "width_ratios": [2.0, 0.5, 1.0]},
    ],
)
def test_is_the_limit_of_small_steps(pose: Callable[..., Problem], variant: dict[str, object]) -> None:
    problem = pose(**variant)
    flow = observables(solve(problem, WhitenedLinear(), record=[5, 10], two_time=True))
    misses: dict[str, list[float]] = {name: [] for name in flow}
    for refine in (8, 16):
        finer = replace(problem, lr=problem.lr / refine, steps=problem.steps * refine)
        descent = solve(finer, DeepLinear(), record=[5 * refine, 10 * refine], two_time=True)
        for name, value in observables(descent).items():
            misses[name].append(float((value - flow[name]).norm() / flow[name].norm()))
    for name, (coarse, fine) in misses.items():
        if coarse > 1e-10:  # Phi^0 and the readout's G do not move
            assert math.log2(coarse / fine) == pytest.approx(1, abs=0.2), name
    assert sum(coarse > 1e-6 for coarse, _ in misses.values()) >= 6


def test_integration_meets_the_closed_form_with_fourth_order(pose: Callable[..., Problem]) -> None:
    chain = pose(gain=1.3).chain
    steps = torch.tensor([0.0, 4.0, 10.0], dtype=torch.float64)
    closed = _two_layer_flow(chain, 2.0, 1.5, 0.05 * steps)
    misses = [_integrate(chain, 2.0, 1.5, refine * steps, 0.05 / refine).distance(closed) for refine in (4, 8)]
    assert math.log2(misses[0] / misses[1]) == pytest.approx(4, abs=0.2)


def test_refuses_what_does_not_decompose(pose: Callable[..., Problem]) -> None:
    problem = pose(momentum=0.5)
    raw = replace(problem, inputs=2 * problem.inputs, loss=nn.L1Loss())
    with pytest.raises(UnsupportedProblemError, match=r"not whitened .* other than the squared error, momentum"):
        solve(raw, WhitenedLinear())
    other = pose(bias_std=0.0, weight_decay=0.1, batches=[torch.tensor([0, 1])] * problem.steps)
    with pytest.raises(UnsupportedProblemError, match="Got: biases, weight decay, minibatches"):
        solve(other, WhitenedLinear())
    with pytest.raises(UnsupportedProblemError, match="tanh"):
        solve(Problem.mlp(problem.inputs, problem.inputs[:, 0]), WhitenedLinear())


def test_reports_flows_that_do_not_settle(pose: Callable[..., Problem], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitened_linear, "_MOST_HALVINGS", 2)
    with pytest.raises(ConvergenceError, match="did not settle"):
        solve(pose(depth=2), WhitenedLinear(tolerance=0.0), record=[1])
