"""Response functions: three ways against each other, and against networks that are given a kick."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.parameterization import parameterize
from torch_dmft.theory.network import ModelNetwork
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.replicas import standard_error
from torch_dmft.theory.responses.responses import Responses, responses
from torch_dmft.theory.solve import solve
from torch_dmft.theory.solver import Solver
from torch_dmft.theory.solvers import (
    AlternatingMonteCarlo,
    DeepLinear,
    GradientIndependence,
    InfiniteWidth,
    StaticNTK,
    WideEnsemble,
)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


def pose(samples: int = 3, outputs: int = 1, **settings: object) -> Problem:
    generator = torch.Generator().manual_seed(5)
    inputs = 1.5 * torch.randn(samples, 4, dtype=torch.float64, generator=generator)
    targets = torch.randn(samples, outputs, dtype=torch.float64, generator=generator)
    return Problem.mlp(inputs, targets, **{"depth": 2, "lr": 0.2, "steps": 6, "loss": half_square, **settings})


def matrices(problem: Problem, found: Responses) -> tuple[Tensor, Tensor]:
    """A and B between rows."""
    rows = (problem.steps + 1) * problem.samples
    rows_c = rows * problem.outputs
    return found.forward_response.reshape(rows, rows_c), found.backward_response.reshape(rows_c, rows)


VARIANTS = {
    "plain": {},
    "several outputs": {"outputs": 2},
    "weight decay": {"weight_decay": 2.0},
    "momentum": {"momentum": 0.8},
    "gain and unequal widths": {"gain": 1.4, "width_ratios": [2.0, 0.5, 1.0]},
    "random biases": {"bias_std": 0.7},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_ways_agree_exactly_for_linear_networks(variant: str) -> None:
    problem = pose(activation="linear", **{"depth": 3, "lr": 0.02, "steps": 4, **VARIANTS[variant]})
    exact = responses(problem, DeepLinear())
    sampled = responses(problem, AlternatingMonteCarlo(neurons=128, replicas=1, tolerance=1e-11, iterations=100))
    twin = responses(problem, InfiniteWidth(neurons=512, replicas=1, tolerance=1e-7))
    kernels = solve(problem, DeepLinear(), two_time=True).layers[1:-1]
    for known, other, read, layer in zip(exact, sampled, twin, kernels, strict=True):
        assert known.layer == other.layer == read.layer == layer.name
        a, b = matrices(problem, known)
        assert min(a.norm(), b.norm()) > 0.01
        for mine, theirs in zip((a, b), matrices(problem, other), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)
        g, phi = (free(problem, kernel.values) for kernel in (layer.backward, layer.forward))
        a_read, b_read = matrices(problem, read)
        torch.testing.assert_close(a_read @ g, a @ g, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(b_read @ phi, b @ phi, rtol=1e-6, atol=1e-7)


def test_they_are_causal_and_only_the_backward_one_answers_at_once() -> None:
    problem = pose(steps=4)
    for solver in (AlternatingMonteCarlo(neurons=200, replicas=2), InfiniteWidth(neurons=512, replicas=2)):
        (found,) = responses(problem, solver)
        time = torch.arange(problem.steps + 1)
        a, b = (array.movedim(2, 1) for array in (found.forward_response, found.backward_response))
        assert not a[time[:, None] <= time].any()
        assert not b[time[:, None] < time].any()
        assert bool((b[time, time].flatten(1).norm(dim=1) > 0).all())
        assert found.stderr is not None


def test_the_twin_owes_what_the_field_theory_says() -> None:
    """A C G and B C Phi of the engine and of Algorithm 1, which share no code, within their standard errors."""
    problem = pose()
    kernels = solve(problem, InfiniteWidth(neurons=2048, replicas=2), two_time=True).layers[1]
    g, phi = (free(problem, kernel.values) for kernel in (kernels.backward, kernels.forward))
    reference = products(problem, AlternatingMonteCarlo(neurons=700), g, phi)
    for mine, theirs in zip(products(problem, InfiniteWidth(neurons=2048), g, phi), reference, strict=True):
        (mean, error), (other, other_error) = mine, theirs
        assert float((mean - other).norm() / other.norm()) < 0.08
        assert float(((mean - other) / (error**2 + other_error**2).sqrt().clamp(min=1e-9)).abs().max()) <= 5
    late, _ = products(problem, AlternatingMonteCarlo(neurons=700, equal_time=False), g, phi)[1]
    at_once = reference[1][0]
    assert float((late - at_once).norm() / at_once.norm()) > 0.2


def test_networks_answer_to_kicks_as_predicted() -> None:
    problem = pose(samples=2, steps=3)
    (theory,) = responses(problem, AlternatingMonteCarlo(neurons=2000, replicas=4))
    for which in ("forward_response", "backward_response"):
        predicted, own = getattr(theory, which), getattr(theory.stderr, which)
        narrow, wide = (kicked(problem, which, width) for width in (48, 96))
        measured = 2 * wide.mean(0) - narrow.mean(0)  # without the 1/N of finite width
        error = (4 * wide.var(0) / len(wide) + narrow.var(0) / len(narrow) + own**2).sqrt()
        assert float(((measured - predicted) / error.clamp(min=1e-6)).abs().max()) <= 5
        assert float(error.norm() / predicted.norm()) < 0.1


def test_who_has_no_responses_says_so() -> None:
    with pytest.raises(UnsupportedProblemError, match="AlternatingMonteCarlo"):
        responses(pose(), StaticNTK())
    with pytest.raises(UnsupportedProblemError, match="GradientIndependence"):
        responses(pose(), GradientIndependence())
    with pytest.raises(UnsupportedProblemError, match="linear"):
        responses(pose(), DeepLinear())
    with pytest.raises(UnsupportedProblemError, match="temperature"):
        responses(pose(temperature=0.1), InfiniteWidth())
    for lost in (
        pose(optimizer="adam"),
        pose(temperature=0.1, activation="relu"),
        replace(pose(), network=ModelNetwork(parameterize(pose().chain.build(8), pose().inputs.float()))),
    ):
        for solver in (None, InfiniteWidth(), WideEnsemble()):
            with pytest.raises(UnsupportedProblemError, match="no solver computes"):  # no remedy that ends here again
                responses(lost, solver)
    assert responses(pose(depth=1, steps=1), AlternatingMonteCarlo(neurons=100, replicas=1)) == ()


def free(problem: Problem, kernel: Tensor) -> Tensor:
    """C(t, s) times a two-time kernel, between rows."""
    time = torch.arange(problem.steps + 1, dtype=torch.float64)
    left = (1 - problem.lr * problem.weight_decay) ** time
    half = kernel.ndim // 2
    by_time = left.reshape(-1, *[1] * (half - 1))
    scaled = by_time.reshape(*by_time.shape, *[1] * half) * kernel * by_time
    return scaled.reshape(kernel.shape[:half].numel(), -1)


def products(problem: Problem, solver: Solver, g: Tensor, phi: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Means of A C G and B C Phi over four runs, each with its standard error."""
    runs = []
    for seed in range(4):
        (found,) = responses(problem, replace(solver, replicas=1, generator=torch.Generator().manual_seed(seed)))
        a, b = matrices(problem, found)
        runs.append((a @ g, b @ phi))
    stacked = [[product.reshape(problem.steps + 1, -1) for product in each] for each in zip(*runs, strict=True)]
    return [(torch.stack(each).mean(0), standard_error(each)) for each in stacked]


def kicked(problem: Problem, which: str, width: int, networks: int = 200) -> Tensor:
    """Linear response of finite tanh networks, ``(network, time, sample, time, sample)``.

    For A the pregradient z^1 of one sample is kicked at one step along random signs, and phi(h^1) is watched along the
    same signs; for B the preactivation h^2 is kicked and g^2 is watched.
    """
    generator = torch.Generator().manual_seed(width)

    def draw(*shape: int) -> Tensor:
        return torch.randn(networks // 2, *shape, dtype=torch.float64, generator=generator)

    first, second, readout = draw(width, problem.inputs.shape[1]), draw(width, width), draw(width, 1)
    start = [torch.cat([first, first]), torch.cat([second, second]), torch.cat([readout, -readout])]
    signs = torch.randn(networks, width, dtype=torch.float64, generator=generator).sign()
    times, size = problem.steps + 1, 1e-4
    still = trained(problem, start, None, which)
    answer = torch.zeros(networks, times, problem.samples, times, problem.samples, dtype=torch.float64)
    for step in range(times):
        for sample in range(problem.samples):
            moved = trained(problem, start, (step, sample, size * signs), which) - still
            answer[..., step, sample] = (moved * signs[:, None, None]).mean(-1) / size
    return answer.unflatten(0, (2, -1)).mean(0)


def trained(problem: Problem, start: list[Tensor], kick: tuple[int, int, Tensor] | None, which: str) -> Tensor:
    """phi(h^1) or g^2 of many networks through training, ``(network, time, sample, neuron)``."""
    parameters = [parameter.clone().requires_grad_() for parameter in start]
    width, scale = start[1].shape[1], problem.gamma0 * start[1].shape[1]
    seen = []
    for step in range(problem.steps + 1):
        now = kick is not None and kick[0] == step
        x = torch.tanh(problem.inputs @ parameters[0].mT / math.sqrt(problem.inputs.shape[1]))
        h = x @ parameters[1].mT / math.sqrt(width)
        if now and which == "backward_response":
            pushed = torch.zeros_like(h)
            pushed[:, kick[1]] = kick[2]
            h = h + pushed
        f = torch.tanh(h) @ parameters[2] / scale
        (g,) = torch.autograd.grad(f.sum(), h, retain_graph=True)
        seen.append(x.detach() if which == "forward_response" else scale * g)
        if now and which == "forward_response":  # changes z^1 of this sample, but not f itself
            extra = torch.zeros_like(f)
            extra[:, kick[1], 0] = ((x - x.detach())[:, kick[1]] * kick[2]).sum(-1) / scale
            f = f + extra
        loss = 0.5 * (f - problem.targets).square().sum()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= problem.lr * problem.gamma0 * scale * gradient
    return torch.stack(seen, dim=1)
