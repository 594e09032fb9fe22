"""Gradient independence: right where there are no responses or no feature learning, and refused where it says nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference.ensembles import observables
from tests.theory.validation.wrong import WithoutResponses
from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.theory.solvers import GradientIndependence, InfiniteWidth, StaticNTK

Pose = Callable[..., dmft.Problem]
STEPS = 6


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


@pytest.fixture
def pose(generator: torch.Generator) -> Pose:
    """Build a problem on four training rows and a test row; linear, where sampling is exact, unless said otherwise."""
    inputs = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    targets = torch.sign(torch.randn(4, 1, generator=generator, dtype=torch.float64))

    def build(**settings: Any) -> dmft.Problem:
        defaults = {"targets": targets, "activation": "linear", "loss": half_square, "lr": 0.1, "steps": STEPS}
        return dmft.Problem.mlp(inputs[:4], test_inputs=inputs[4:], **{**defaults, **settings})

    return build


def solved(problem: dmft.Problem, *, neurons: int = 256, replicas: int = 1) -> dmft.Trajectory:
    return dmft.solve(problem, GradientIndependence(neurons, replicas, tolerance=1e-9 if replicas == 1 else None))


def errors(found: dmft.Trajectory, expected: dmft.Trajectory) -> dict[str, float]:
    """Relative differences of outputs, losses and every kernel."""
    other = observables(expected)
    return {
        name: float((values - other[name]).norm() / other[name].norm()) for name, values in observables(found).items()
    }


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_lazy_limit_is_the_static_ntk_up_to_the_square_of_gamma0(pose: Pose, depth: int) -> None:
    gammas, found = (0.2, 0.05), []
    for gamma0 in gammas:
        problem = pose(depth=depth, gamma0=gamma0)
        found.append(errors(solved(problem), dmft.solve(problem, StaticNTK())))
    for name in ("outputs", "losses", "ntk", f"forward.{depth}"):
        slope = math.log(found[0][name] / found[1][name]) / math.log(gammas[0] / gammas[1])
        assert slope == pytest.approx(2, abs=0.2), (name, found)


BATCHES = [torch.tensor([t % 4, (t + 1) % 4]) for t in range(STEPS)]
CLASSES = {"targets": torch.tensor([0, 2, 1, 0]), "loss": torch.nn.CrossEntropyLoss(), "lr": 0.5}


@pytest.mark.parametrize(
    "settings",
    [{"bias_std": 0.3, "gain": 1.3, "lr": 0.02}, {"batches": BATCHES}, CLASSES, {"width_ratios": [2.0, 1.0]}],
    ids=["biases and gain", "minibatches", "classes", "unequal widths"],
)
def test_the_lazy_limit_with_everything_it_takes(pose: Pose, settings: dict[str, Any]) -> None:
    problem = pose(depth=2, gamma0=1e-4, **settings)
    assert max(errors(solved(problem), dmft.solve(problem, StaticNTK())).values()) < 1e-6


def test_the_lazy_limit_of_a_nonlinear_network(pose: Pose) -> None:
    """Within sampling error; outputs of the forward pass, which feel no lower layer, are far off."""
    problem = pose(depth=3, gamma0=1e-3, activation="tanh")
    static = observables(dmft.solve(problem, StaticNTK()))

    def scores(solver: InfiniteWidth) -> dict[str, float]:
        run = dmft.solve(problem, solver)
        noise, found = observables(run.stderr), observables(run)
        exact = {name: 1e-6 * values.abs().max() for name, values in found.items()}  # where nothing is sampled
        return {n: float(((found[n] - static[n]).abs() / (noise[n] + exact[n])).max()) for n in static}

    z = scores(GradientIndependence(1024, 8))
    assert max(z.values()) <= 5, z
    assert scores(WithoutResponses(1024, 8))["outputs"] > 20


def test_one_hidden_layer_has_no_responses_so_that_only_the_finite_step_is_left(pose: Pose) -> None:
    rates, found = (0.02, 0.005), []
    for lr in rates:
        problem = pose(depth=1, gamma0=1.0, lr=lr, steps=round(0.4 / lr))
        run = dmft.solve(problem, GradientIndependence(256, 1, tolerance=1e-9), record=problem.steps)
        twin = dmft.solve(problem, InfiniteWidth(256, 1, tolerance=1e-9), record=problem.steps)
        found.append(errors(run, twin))
    for name in ("outputs", "ntk"):
        slope = math.log(found[0][name] / found[1][name]) / math.log(rates[0] / rates[1])
        assert slope == pytest.approx(1, abs=0.2), (name, found)


def test_what_is_recorded_changes_nothing(pose: Pose) -> None:
    problem = pose(depth=2, activation="tanh", gamma0=1.0)
    every, some = solved(problem), dmft.solve(problem, GradientIndependence(256, 1, tolerance=1e-9), record=[0, 4])
    assert max(errors(some, every.at_steps(torch.tensor([0, 4]))).values()) == 0


def test_every_step_costs_a_measurement_and_the_estimate_says_so(pose: Pose) -> None:
    problem = pose(depth=2, steps=100, targets=torch.eye(4, 3, dtype=torch.float64))
    cost, twin = (solver().estimate(problem, record=[0, 5]) for solver in (GradientIndependence, InfiniteWidth))
    assert cost.flops > 1.3 * twin.flops
    assert cost.memory == twin.memory


@pytest.mark.parametrize("settings", [{"momentum": 0.5}, {"weight_decay": 0.1}], ids=str)
def test_refuses_what_the_present_kernel_does_not_decide(pose: Pose, settings: dict[str, float]) -> None:
    with pytest.raises(
        UnsupportedProblemError, match=r"(momentum|weight decay) 0\.\d\. Remedy: solvers\.InfiniteWidth\(\)"
    ):
        solved(pose(**settings))


def test_dropout_is_refused() -> None:
    """The tangent kernel of a step with masks is not that of evaluation mode."""
    inputs, targets = torch.eye(3), torch.ones(3, 1)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.4), nn.Linear(16, 1))
    problem = dmft.Problem.like(dmft.parameterize(model, inputs), dmft.Probe(inputs, targets), lr=0.1, steps=2)
    with pytest.raises(UnsupportedProblemError, match=r"same in train mode"):
        dmft.solve(problem, dmft.solvers.GradientIndependence(64, 1))


def test_f_starts_at_what_is_made_of_outputs_of_zero() -> None:
    """In the lazy limit f follows the tangent kernel, from 1 where f is the model's outputs plus one."""
    inputs, targets = torch.eye(3, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).double()

    def solved(shift: float) -> Tensor:
        plan = dmft.parameterize(model, inputs, gamma0=0.1)
        recorder = dmft.Recorder(plan, dmft.Probe(inputs, targets + shift), outputs=lambda out: out + shift)
        optimizer = torch.optim.SGD(plan.param_groups(0.1))
        with recorder.attach(optimizer):
            for _ in range(3):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(inputs), targets).backward()
                optimizer.step()
        problem = recorder.problem()
        plan.undo()
        return dmft.solve(problem, dmft.solvers.GradientIndependence(256, 1)).outputs - shift

    outputs = solved(0.0)
    assert float(outputs[-1].mean()) > 0.05
    torch.testing.assert_close(solved(1.0), outputs, rtol=1e-10, atol=1e-10)
