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
from torch_dmft.theory.solvers.whitened_linear import (
    WhitenedLinear,
    _integrate,
    _integrate_over_output,
    _two_layer_flow,
)
from torch_dmft.theory.solvers.wide_ensemble import WideEnsemble

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
        finer = problem.trained(lr=problem.lr / refine, steps=problem.steps * refine)
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


@pytest.mark.parametrize(
    "variant",
    [
        {"outputs": 2, "gain": 1.3},
        {"depth": 2, "outputs": 2},
        {"depth": 3, "gain": 1.1, "width_ratios": [2.0, 0.5, 1.0], "gamma0": 0.5},
    ],
    ids=["closed form", "two outputs", "gain and widths"],
)
def test_gradient_descent_ends_at_the_final_kernels_as_its_steps_shrink(
    pose: Callable[..., Problem], variant: dict[str, object]
) -> None:
    """DeepLinear until nothing moves: forward, backward and NTK of every layer, met with slope one in the rate."""
    problem = pose(**variant)
    final = WhitenedLinear().final_kernels(problem)
    misses: list[list[float]] = []
    for lr in (0.04, 0.02):
        steps = round(4 / lr)
        end = solve(problem.trained(lr=lr, steps=steps), DeepLinear(), record=[steps])
        assert float((end.outputs[0, :P] - problem.target_values).abs().max()) < 1e-3 * lr
        kernels = [
            (getattr(layer, kind).array[0], getattr(known, kind).array[0])
            for layer, known in zip(end.layers, final, strict=True)
            for kind in ("forward", "backward", "ntk")
        ]
        misses.append([float((found - expected).norm() / expected.norm()) for found, expected in kernels])
    slopes = [math.log2(one / other) for one, other in zip(*misses, strict=True) if one > 1e-10]
    assert len(slopes) >= 3 * len(final) - 2  # Phi^0 and the readout's G do not move
    assert slopes == pytest.approx([1.0] * len(slopes), abs=0.2)


def test_the_output_as_a_clock_ends_at_the_closed_form_with_fourth_order(pose: Callable[..., Problem]) -> None:
    chain = pose(gain=1.3).chain
    closed = _two_layer_flow(chain, 2.0, 1.5, torch.tensor([math.inf], dtype=torch.float64))
    misses = [_integrate_over_output(chain, 2.0, 1.5, count, closed.output).distance(closed) for count in (8, 16)]
    assert math.log2(misses[0] / misses[1]) == pytest.approx(4, abs=0.2)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_large_targets_share_their_size_among_all_weights(pose: Callable[..., Problem], depth: int) -> None:
    """H^l -> (gamma0 s)^(2 l / (L + 1)), G^l -> (gamma0 s)^(2 (L + 1 - l) / (L + 1))."""
    problem = pose(depth=depth, gamma0=30.0)
    direction = problem.targets[:, 0] / problem.targets.norm()
    size, missed = 30 * float(problem.targets.norm()), []
    layers = WhitenedLinear(tolerance=1e-2).final_kernels(problem)
    for weight, layer in enumerate(layers[1:], start=1):
        spike = float(direction @ layer.forward.matrix(0)[:P, :P] @ direction)
        missed.append(spike / size ** (2 * weight / (depth + 1)) - 1)
        gradient = float(layers[weight - 1].backward.array[0, 0, 0])
        missed.append(gradient / size ** (2 * (depth + 1 - weight) / (depth + 1)) - 1)
    assert max(abs(miss) for miss in missed) < 3 * size ** (-2 / (depth + 1)), missed


@pytest.mark.long
def test_trained_networks_end_at_the_final_kernels(pose: Callable[..., Problem]) -> None:
    """Widths extrapolated in 1/N, at a rate whose own effect is smaller than the error."""
    problem = pose(depth=2, lr=0.02, steps=100, gamma0=1.0)
    end = solve(problem, WideEnsemble(widths=(48, 96, 192), pairs=16), record=[100])
    for weight, (layer, known) in enumerate(zip(end.layers, WhitenedLinear().final_kernels(problem), strict=True)):
        for kind in ("forward", "backward"):
            error = getattr(end.stderr.layers[weight], kind).array[0] + 1e-9
            found, expected = getattr(layer, kind).array[0], getattr(known, kind).array[0]
            assert float(((found - expected) / error).abs().max()) <= 5, (weight, kind)
            assert float(error.norm()) < 0.1 * float(expected.norm()), "the comparison has no power"


def test_final_kernels_are_refused_where_flows_are(pose: Callable[..., Problem]) -> None:
    with pytest.raises(UnsupportedProblemError, match="momentum"):
        WhitenedLinear().final_kernels(pose(momentum=0.5))


def test_refuses_what_does_not_decompose(pose: Callable[..., Problem]) -> None:
    problem = pose(momentum=0.5)
    raw = replace(problem, inputs=2 * problem.inputs, loss=nn.L1Loss())
    with pytest.raises(UnsupportedProblemError, match=r"not whitened .* other than the squared error, momentum"):
        solve(raw, WhitenedLinear())
    other = pose(bias_std=0.0, weight_decay=0.1, batches=[torch.tensor([0, 1])] * problem.steps)
    with pytest.raises(UnsupportedProblemError, match=r"Got: biases, weight decay 0\.1, minibatches"):
        solve(other, WhitenedLinear())
    with pytest.raises(UnsupportedProblemError, match="tanh"):
        solve(Problem.mlp(problem.inputs, problem.inputs[:, 0]), WhitenedLinear())


def test_reports_flows_that_do_not_settle(pose: Callable[..., Problem], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitened_linear, "_MOST_HALVINGS", 2)
    with pytest.raises(ConvergenceError, match="did not settle"):
        solve(pose(depth=2), WhitenedLinear(tolerance=1e-300), record=[1])
