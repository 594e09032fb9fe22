"""DeepLinear against the paper's eq. 11 (exact) and against ensembles of finite networks (statistical)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.reference.ensembles import observables, z_scores
from tests.theory.solvers.limit import limit
from torch_dmft.core.errors import ConvergenceError, UnsupportedProblemError
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solve import solve
from torch_dmft.theory.solvers.deep_linear import DeepLinear

P, TEST, D = 4, 2, 5


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * ((outputs - targets) ** 2).sum()


@pytest.fixture
def pose(generator: torch.Generator) -> Callable[..., Problem]:
    """Build a deep linear problem on random data, with test rows."""

    def build(*, outputs: int = 1, **settings: object) -> Problem:
        inputs = torch.randn(P + TEST, D, dtype=torch.float64, generator=generator)
        targets = torch.randn(P, outputs, dtype=torch.float64, generator=generator)
        defaults = {"depth": 2, "lr": 0.05, "steps": 5, "loss": half_square}
        return Problem.mlp(inputs[:P], targets, activation="linear", test_inputs=inputs[P:], **{**defaults, **settings})

    return build


def causal(kernel: Tensor, block: int, *, strictly: bool) -> Tensor:
    """Zero a (time sample) x (time sample) matrix above its block diagonal (and on it)."""
    time = torch.arange(len(kernel)) // block
    later = time[:, None] > time[None] if strictly else time[:, None] >= time[None]
    return kernel * later


@pytest.mark.parametrize("gamma0", [0.3, 2.0])
def test_satisfies_the_papers_equation_11(pose: Callable[..., Problem], gamma0: float) -> None:
    depth, steps = 3, 9
    problem = pose(depth=depth, steps=steps, gamma0=gamma0)
    solution = solve(problem, DeepLinear(), two_time=True)
    rows, size = P + TEST, (steps + 1) * (P + TEST)
    error = torch.stack([problem.error(f, t) for t, f in enumerate(solution.outputs)]).flatten()
    rate, identity = problem.lr * gamma0, torch.eye(size, dtype=torch.float64)
    H = [weight.forward.values.reshape(size, size) for weight in solution.layers]
    G = [
        weight.backward.values.reshape(size, size) for weight in solution.layers
    ]  # G[layer] is the paper's G^{layer+1}
    A = [torch.zeros_like(identity) for _ in range(depth + 1)]
    B = [torch.zeros_like(identity) for _ in range(depth + 1)]

    def operators(layer: int) -> tuple[Tensor, Tensor]:
        C = causal(A[layer - 1] + rate * H[layer - 1] * error, rows, strictly=True)
        D = causal(B[layer], rows, strictly=False) + causal(rate * G[layer] * error, rows, strictly=True)
        return C, D

    for _ in range(2 * depth * (steps + 1)):  # causality makes the iteration for the responses end
        for layer in range(1, depth + 1):
            C, D = operators(layer)
            if layer < depth:
                A[layer] = torch.linalg.solve(identity - C @ D, C)
            if layer > 1:
                B[layer - 1] = torch.linalg.solve(identity - D @ C, D)
    for layer in range(1, depth + 1):
        C, D = operators(layer)
        forward, backward = torch.linalg.inv(identity - C @ D), torch.linalg.inv(identity - D @ C)
        torch.testing.assert_close(
            forward @ (H[layer - 1] + C @ G[layer] @ C.T) @ forward.T, H[layer], rtol=1e-8, atol=1e-8
        )
        torch.testing.assert_close(
            backward @ (G[layer] + D @ H[layer - 1] @ D.T) @ backward.T, G[layer - 1], rtol=1e-8, atol=1e-8
        )


VARIANTS = {
    "plain": {},
    "several outputs": {"outputs": 2, "depth": 3, "lr": 0.03},
    "gain": {"gain": 1.4, "lr": 0.03},
    "random biases": {"bias_std": 0.7},
    "zero biases": {"bias_std": 0.0},
    "weight decay": {"weight_decay": 2.0},
    "momentum and weight decay": {"momentum": 0.8, "weight_decay": 2.0, "lr": 0.03},
    "schedule": {"lr": [0.05, 0.02, 0.0, 0.06, *[0.03] * 60]},
    "Nesterov and decay": {"momentum": 0.8, "weight_decay": 2.0, "lr": 0.02, "nesterov": True},
    "dampening and decay": {"momentum": 0.8, "weight_decay": 2.0, "lr": 0.05, "dampening": 0.4},
    "decay outside": {"momentum": 0.8, "weight_decay": 2.0, "lr": 0.03, "decoupled": True},
    "minibatches": {"batches": [torch.tensor([t % P, (t + 1) % P]) for t in range(5)]},
    "unequal widths": {"depth": 3, "width_ratios": [2.0, 0.5, 1.0], "lr": 0.02},
    "rich": {"gamma0": 2.0, "lr": 0.02},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_is_the_limit_of_finite_networks(pose: Callable[..., Problem], variant: str) -> None:
    problem = pose(**VARIANTS[variant])
    solution = observables(solve(problem, DeepLinear(), record=[problem.steps]))
    networks = limit(problem, [problem.steps], {32: 2000, 128: 1000})
    worst = {name: float(z.abs().max()) for name, z in z_scores(networks, solution).items()}
    assert max(worst.values()) <= 5, worst


@pytest.mark.parametrize("depth", [1, 3])
def test_marches_far_into_the_rich_regime(pose: Callable[..., Problem], depth: int) -> None:
    problem = pose(depth=depth, gamma0=6.0, lr=0.01, steps=500)  # gamma0 * horizon = 30
    solution = solve(problem, DeepLinear(), record=range(0, 501, 50))
    assert bool((solution.losses.diff() <= 0).all())
    assert float(solution.losses[-1]) < 1e-2 * float(solution.losses[0])


def test_later_steps_and_test_rows_change_nothing(pose: Callable[..., Problem]) -> None:
    long = pose(steps=12, momentum=0.5)
    short = replace(long.trained(steps=6), inputs=long.inputs[:P])
    one, other = solve(long, DeepLinear(), record=range(7)), solve(short, DeepLinear())
    torch.testing.assert_close(one.outputs[:, :P], other.outputs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.ntk.array[:, :P, :P], other.ntk.array, rtol=1e-10, atol=1e-10)


def test_equal_times_are_the_diagonal_of_two_times(pose: Callable[..., Problem]) -> None:
    problem = pose(outputs=2)
    equal, two = (solve(problem, DeepLinear(), record=[1, 4], two_time=flag) for flag in (False, True))
    for one, other in zip(equal.layers, two.layers, strict=True):
        for kernel in ("forward", "backward", "ntk"):
            torch.testing.assert_close(
                getattr(one, kernel).array, getattr(other, kernel).equal_time, rtol=1e-10, atol=1e-10
            )
    assert two.ntk.axes == ("time", "sample", "output", "time", "sample", "output")


def test_outputs_follow_from_the_kernels_when_steps_are_small(pose: Callable[..., Problem]) -> None:
    """The predicted NTK moves the predicted outputs: f(t + 1) - f(t) = eta K Delta + O(eta^2)."""
    problem, misses = pose(), []
    for step in (10, 20):
        run = solve(problem.trained(lr=0.2 / step, steps=step + 1), DeepLinear(), record=[step, step + 1])
        expected = run.ntk.array[0] @ problem.error(run.outputs[0], 0)
        misses.append(float((run.outputs.diff(dim=0)[0] / run.lr - expected).norm()))
    assert math.log2(misses[0] / misses[1]) == pytest.approx(1, abs=0.2)


def test_answers_in_the_dtype_of_the_problem(pose: Callable[..., Problem]) -> None:
    double = pose()
    single = replace(double, inputs=double.inputs.float(), targets=double.targets.float())
    solution = solve(single, DeepLinear())
    assert solution.outputs.dtype is torch.float32
    assert solution.layers[1].backward.array.dtype is torch.float32
    torch.testing.assert_close(solution.outputs.double(), solve(double, DeepLinear()).outputs, rtol=1e-4, atol=1e-5)


def test_names_layers_like_the_module(pose: Callable[..., Problem]) -> None:
    problem = pose(depth=3)
    names = [name for name, module in problem.chain.build(8).named_modules() if hasattr(module, "weight")]
    assert [layer.name for layer in solve(problem, DeepLinear(), record=[0]).layers] == names


def test_refuses_nonlinear_layers(pose: Callable[..., Problem]) -> None:
    curved = Problem.mlp(torch.eye(3), torch.ones(3), activation="tanh")
    with pytest.raises(UnsupportedProblemError, match=r"1 \(tanh\)"):
        solve(curved, DeepLinear())


def test_reports_training_that_diverges(pose: Callable[..., Problem]) -> None:
    with pytest.raises(ConvergenceError, match="lr smaller"):
        solve(pose(lr=50.0, steps=60), DeepLinear())
