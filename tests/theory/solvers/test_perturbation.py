"""Second order in gamma0 against what is exact: linear networks, the paper's eq. 12, quadrature, and the engine."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.reference import field_theory
from tests.reference.ensembles import observables
from torch_dmft.core.activation import activation
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solve import solve
from torch_dmft.theory.solvers.deep_linear import DeepLinear
from torch_dmft.theory.solvers.infinite_width import InfiniteWidth
from torch_dmft.theory.solvers.perturbation import Perturbation
from torch_dmft.theory.solvers.static_ntk import StaticNTK

BATCHES = [torch.tensor(rows) for rows in ([0, 2], [1], [2, 1], [0], [1, 2], [0, 1, 2], [0], [2])]
LINEAR = Perturbation(neurons=128, replicas=2)


@pytest.fixture
def rows(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 5, generator=generator, dtype=torch.float64)


@pytest.fixture
def targets(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 2, generator=generator, dtype=torch.float64)


def half_square(f: Tensor, y: Tensor) -> Tensor:
    return (f - y).square().sum() / 2


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 1},
        {"depth": 3},
        {"depth": 3, "gain": 1.1, "bias_std": 0.3, "width_ratios": (1.5, 0.5, 1.0)},
        {"depth": 2, "batches": BATCHES},
        {"depth": 2, "classes": True},
    ],
    ids=["shallow", "deep", "biases, gain and widths", "minibatches", "cross entropy"],
)
def test_misses_linear_networks_by_the_fourth_order(options: dict, rows: Tensor, targets: Tensor) -> None:
    """Outputs and two-time kernels, two outputs and a test row; what is missed falls like gamma0^4."""
    options = dict(options)
    y = torch.tensor([0, 1, 1]) if options.pop("classes", False) else targets

    def missed(gamma0: float) -> dict[str, float]:
        problem = Problem.mlp(
            rows[:3], y, test_inputs=rows[3:], activation="linear", gamma0=gamma0, lr=0.1, steps=8, **options
        )
        found = observables(solve(problem, LINEAR, two_time=True))
        exact = observables(solve(problem, DeepLinear(), two_time=True))
        return {name: float((found[name] - exact[name]).norm()) for name in exact}

    coarse, fine = missed(0.1), missed(0.05)
    for name in coarse:
        if coarse[name] > 1e-10:  # Phi^0 and the readout's G do not move
            assert math.log2(coarse[name] / fine[name]) == pytest.approx(4, abs=0.2), name


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_is_equation_12_for_small_steps(depth: int, rows: Tensor) -> None:
    """Gradient flow of a deep linear network: the NTK of eq. 12, met with slope 1 in the learning rate.

    To second order h^l is driven by the NTK of l layers and z^l by that of L + 1 - l. So layer l adds l^2 + l (L + 1 - l)
    = l (L + 1) to Phi2, which layers above inherit: Phi2^l ~ (L + 1) l (l + 1) / 2, and the NTK ~ the sum over l of that
    twice, once for G. The paper's prefactor is that of depth 1.
    """
    inputs, y, end = rows[:3], rows[:3, 0], 0.5
    kernel = inputs @ inputs.T / 5
    grid = torch.linspace(0, end, 4001, dtype=torch.float64)
    errors = torch.stack([torch.matrix_exp(-(depth + 1) * kernel * t) @ y for t in grid])
    v = torch.cat([torch.zeros(1, 3), torch.cumulative_trapezoid(errors, grid, dim=0)])
    nested = torch.trapezoid(errors[:, :, None] * v[:, None, :], grid, dim=0)
    v = v[-1]
    both = nested + nested.T
    change = depth * (depth + 1) ** 2 * (depth + 2) / 12
    expected = kernel * (kernel * (both + v.outer(v))).sum() + kernel @ (both + v.outer(v)) @ kernel

    def missed(steps: int) -> float:
        gamma0 = 1e-3
        problem = Problem.mlp(
            inputs,
            y,
            depth=depth,
            activation="linear",
            loss=half_square,
            lr=end / steps,
            steps=steps,
            gamma0=gamma0,
        )
        ntk = solve(problem, LINEAR, record=[0, steps]).ntk.array
        return float(((ntk[1] - ntk[0]) / gamma0**2 - change * expected).norm())

    coarse, fine = missed(80), missed(160)
    assert fine < 0.1 * change * float(expected.norm())
    assert math.log2(coarse / fine) == pytest.approx(1, abs=0.2)


def by_quadrature(inputs: Tensor, y: Tensor, phi_name: str, gamma0: float, lr: float, steps: int) -> dict[str, Tensor]:
    """One hidden layer, two inputs: the infinite network is a cloud of neurons at Gauss-Hermite nodes of (W, w)."""
    phi, edge = activation(phi_name), 44
    node, weight = _gauss_hermite(edge)
    nodes = torch.cartesian_prod(node, node, node)
    weights = torch.cartesian_prod(weight, weight, weight).prod(1)
    first, readout = nodes[:, :2].clone(), nodes[:, 2].clone()
    outputs, features, gradients = [], [], []
    for _ in range(steps + 1):
        h = first @ inputs.T / math.sqrt(2)
        outputs.append((weights * readout) @ phi.function(h) / gamma0)
        features.append(phi.function(h))
        gradients.append(phi.first(h) * readout[:, None])
        delta = 2 * (y - outputs[-1]) / len(y)
        first = first + lr * gamma0 * (gradients[-1] * delta) @ inputs / math.sqrt(2)
        readout = readout + lr * gamma0 * features[-1] @ delta
    pair = "ntm,nsa,n->tmsa"
    stacked = torch.stack(features, 1), torch.stack(gradients, 1)
    forward, backward = (torch.einsum(pair, x, x, weights) for x in stacked)
    return {"outputs": torch.stack(outputs)[..., None], "forward.1": forward, "backward.0": backward}


def _gauss_hermite(count: int) -> tuple[Tensor, Tensor]:
    off_diagonal = torch.diag(torch.arange(1, count, dtype=torch.float64).sqrt(), 1)
    nodes, vectors = torch.linalg.eigh(off_diagonal + off_diagonal.T)
    return nodes, vectors[0].square()


def test_misses_a_nonlinear_layer_by_the_fourth_order(make_generator: Callable[[int], torch.Generator]) -> None:
    """At a large learning rate, where a secant is far from a tangent."""
    draw = torch.randn(2, 3, 2, generator=make_generator(1), dtype=torch.float64)
    inputs, y = 1.3 * draw[0], draw[1, :, 0]

    def missed(gamma0: float) -> dict[str, float]:
        problem = Problem.mlp(inputs, y, activation="sigmoid", gamma0=gamma0, lr=1.0, steps=5)
        found = observables(solve(problem, Perturbation(neurons=2**16, replicas=1), two_time=True))
        exact = by_quadrature(inputs, y, "sigmoid", gamma0, lr=1.0, steps=5)
        return {name: float((found[name] - exact[name]).norm()) for name in exact}

    coarse, fine = missed(0.6), missed(0.3)
    for name in coarse:
        assert math.log2(coarse[name] / fine[name]) == pytest.approx(4, abs=0.2), name


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_misses_deep_nonlinear_networks_by_the_fourth_order(depth: int) -> None:
    """Outputs, two-time kernels of every layer and the NTK against the field equations by quadrature, two steps."""
    phi, square, lr = activation("sigmoid"), 0.7, 2.0
    inputs, y = torch.full((2, 1), math.sqrt(square), dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    misses: dict[str, list[float]] = {}
    for richness in (0.6, 0.3):
        exact = field_theory.solve(
            phi.function,
            phi.first,
            depth=depth,
            square=square,
            target=1.0,
            gamma0=richness,
            lr=lr,
            counts=(20, 4, 3, 10, 4, 3),
        )
        problem = Problem.mlp(
            inputs,
            y,
            depth=depth,
            activation="sigmoid",
            gamma0=richness,
            lr=lr,
            steps=2,
            loss=lambda f, y: (f - y).square().sum() / 4,  # two equal rows that share one half of the square
        )
        found = observables(solve(problem, Perturbation(neurons=2**15, replicas=2), two_time=True))
        features = [torch.full((3, 3), square).double(), *(exact[f"forward.{layer}"] for layer in range(1, depth + 1))]
        gradients = [*(exact[f"backward.{layer}"] for layer in range(depth)), torch.ones(3, 3).double()]
        exact["ntk"] = sum(phi * g for phi, g in zip(features, gradients, strict=True))
        for key, value in exact.items():
            one_row = found[key][:, 0, 0] if key == "outputs" else found[key][:, 0, :, 0]
            misses.setdefault(key, []).append(float((one_row - value).norm()))
    assert len(misses) == 2 * depth + 2
    for key, (coarse, fine) in misses.items():
        assert math.log2(coarse / fine) == pytest.approx(4, abs=0.2), key


def one_step_of_two_layers(square: float, y: float, phi_name: str, gain: float, gamma0: float, lr: float) -> float:
    """f(1) of an infinitely wide network with two hidden layers and one input, by quadrature.

    The field equations of one step; A(1, 0) = <d phi(h^1(1)) / d r^1(0)> and B(0, 0) vanishes.
    """
    phi = activation(phi_name)
    node, weight = _gauss_hermite(60)
    u, r = torch.cartesian_prod(node, node).T
    weights = torch.cartesian_prod(weight, weight).prod(1)
    c, trained = lr * gamma0 * 2 * y, gain**2 * square
    variance = float(weights @ phi.function(math.sqrt(trained) * u) ** 2)
    slope = float(weights @ phi.first(gain * math.sqrt(variance) * u) ** 2)
    u, r = math.sqrt(trained) * u, gain * math.sqrt(slope) * r
    moved = u + c * trained * phi.first(u) * r
    features = torch.stack([phi.function(u), phi.function(moved)])
    response = gain**2 * float(weights @ (phi.first(moved) * c * trained * phi.first(u)))
    covariance = gain**2 * (weights * features) @ features.T

    start, other, readout = torch.cartesian_prod(node, node, node).T
    weights = torch.cartesian_prod(weight, weight, weight).prod(1)
    factor = torch.linalg.cholesky(covariance)
    u0, u1 = factor[0, 0] * start, factor[1, 0] * start + factor[1, 1] * other
    h = u1 + (response + c * covariance[1, 0]) * phi.first(u0) * readout
    return float(weights @ ((readout + c * phi.function(u0)) * phi.function(h))) / gamma0


@pytest.mark.parametrize(("name", "gain"), [("erf", 1.0), ("tanh", 0.7)])
def test_one_step_of_two_layers_is_exact(name: str, gain: float, rows: Tensor) -> None:
    """The outputs after one large step: to second order they are all secants and equal-time responses."""
    inputs, y, lr = rows[:1].repeat(2, 1), torch.full((2,), 1.0, dtype=torch.float64), 0.5
    problem = Problem.mlp(inputs, y, depth=2, activation=name, gain=gain, lr=lr, steps=1, gamma0=1.0)
    lazy = float(solve(problem, StaticNTK()).outputs[1, 0])
    square = float(problem.input_kernel[0, 0])
    near, far = (
        (one_step_of_two_layers(square, 1.0, name, gain, gamma0, lr) - lazy) / gamma0**2 for gamma0 in (0.01, 0.02)
    )
    found = solve(problem, Perturbation(neurons=2**14, replicas=8))
    exact, error = (4 * near - far) / 3, float(found.stderr.outputs[1, 0])
    assert abs(float(found.outputs[1, 0]) - lazy - exact) <= 5 * error
    assert error < 0.005 * abs(exact), "the comparison has lost its power"


def test_agrees_with_the_engine_in_deep_nonlinear_networks(
    make_generator: Callable[[int], torch.Generator],
) -> None:
    """(X(gamma0) - X(0)) / gamma0^2 of the engine, extrapolated to gamma0 = 0, within 5 standard errors.

    Runs share their draws, and targets of both signs are averaged: the noise of order gamma0 cancels.
    """
    generator = make_generator(1)
    inputs = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 1, generator=generator, dtype=torch.float64)

    def problem(gamma0: float, sign: int = 1) -> Problem:
        return Problem.mlp(
            inputs, sign * y, depth=2, activation="tanh", gamma0=gamma0, lr=0.5, steps=2, gain=1.3, bias_std=0.2
        )

    def even(gamma0: float, seed: int) -> dict[str, Tensor]:
        plus, minus = (
            observables(solve(problem(gamma0, sign), InfiniteWidth(8192, 1, 1e-6, make_generator(seed)), two_time=True))
            for sign in (1, -1)
        )
        return {name: (x - minus[name] if name == "outputs" else x + minus[name]) / 2 for name, x in plus.items()}

    draws: dict[str, list[Tensor]] = {}
    for seed in range(6):
        start, small, large = (even(gamma0, seed) for gamma0 in (0.01, 0.06, 0.12))
        for name in start:
            near, far = ((x[name] - start[name]) / (g**2 - 0.01**2) for x, g in ((small, 0.06), (large, 0.12)))
            draws.setdefault(name, []).append((4 * near - far) / 3)
    found, lazy = (
        solve(problem(1.0), Perturbation(2**14), two_time=True),
        solve(problem(1.0), StaticNTK(), two_time=True),
    )
    stderr = observables(found.stderr)
    for name in ("outputs", "forward.1", "forward.2", "backward.0", "backward.1"):
        moved = observables(found)[name] - observables(lazy)[name]
        sampled = torch.stack(draws[name])
        error = (sampled.var(0) / len(sampled) + stderr[name] ** 2).sqrt()
        # of whole arrays: six draws say too little about the spread of a single entry
        assert float((moved - sampled.mean(0)).norm() / error.norm()) <= 5, name
        assert float(error.norm()) < 0.03 * float(moved.norm()), "the comparison has lost its power"


@pytest.mark.parametrize("name", ["tanh", "gelu"])
def test_is_static_without_gamma0(name: str, rows: Tensor, targets: Tensor) -> None:
    problem = Problem.mlp(
        rows[:3], targets, test_inputs=rows[3:], depth=2, activation=name, gamma0=1e-8, lr=0.3, steps=4, bias_std=0.1
    )
    found, lazy = (observables(solve(problem, solver)) for solver in (LINEAR, StaticNTK()))
    for key in lazy:
        torch.testing.assert_close(found[key], lazy[key], rtol=0, atol=1e-10)


def run(rows: Tensor, targets: Tensor, seed: int = 0, two_time: bool = False, record: object = None) -> Trajectory:
    problem = Problem.mlp(rows[:3], targets, test_inputs=rows[3:], depth=2, gamma0=0.3, lr=0.3, steps=4)
    solver = Perturbation(neurons=512, replicas=3, generator=torch.Generator().manual_seed(seed))
    return solve(problem, solver, two_time=two_time, record=record)


def test_two_times_contain_equal_times_and_are_symmetric(rows: Tensor, targets: Tensor) -> None:
    both, once = run(rows, targets, two_time=True), run(rows, targets, record=[0, 3])
    for wide, narrow in zip(both.layers, once.layers, strict=True):
        for kernel in ("forward", "backward", "ntk"):
            full = getattr(wide, kernel)
            torch.testing.assert_close(full.equal_time[[0, 3]], getattr(narrow, kernel).array, rtol=0, atol=1e-12)
            half = full.array.ndim // 2
            axes = [*range(half, 2 * half), *range(half)]
            torch.testing.assert_close(full.values, full.values.permute(axes), rtol=0, atol=1e-12)
    torch.testing.assert_close(both.outputs[[0, 3]], once.outputs, rtol=0, atol=1e-12)


def test_the_standard_error_tells_the_spread_of_seeds(rows: Tensor, targets: Tensor) -> None:
    first, other = run(rows, targets, seed=1), run(rows, targets, seed=2)
    again = run(rows, targets, seed=1)
    assert torch.equal(first.outputs, again.outputs)
    z = (first.ntk.array - other.ntk.array) / (first.stderr.ntk.array.square() + other.stderr.ntk.array.square()).sqrt()
    z = z[1:]  # nothing has moved at the start
    assert 0.2 < float(z.square().mean().sqrt()) < 3
    assert float(z.abs().max()) <= 5


def test_a_run_without_steps_and_single_precision(rows: Tensor, targets: Tensor) -> None:
    problem = Problem.mlp(rows[:3].float(), targets.float(), depth=2, steps=3)
    found = solve(problem, LINEAR, record=[0])
    assert found.outputs.dtype == found.ntk.array.dtype == torch.float32
    assert not found.outputs.any()


def test_a_loss_without_curvature_pushes_at_a_constant_rate(rows: Tensor) -> None:
    """L = -y . f in a linear network: Delta = y for ever."""
    y = rows[:3, 0]
    problem = Problem.mlp(
        rows[:3], y, activation="linear", loss=lambda f, y: -(f * y).sum(), lr=0.01, steps=3, gamma0=0.05
    )
    exact = solve(problem, DeepLinear()).outputs
    torch.testing.assert_close(solve(problem, LINEAR).outputs, exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"activation": "relu"}, "relu"), ({"momentum": 0.5}, "momentum"), ({"weight_decay": 0.1}, "weight decay")],
)
def test_refuses_what_has_no_such_expansion(options: dict, complaint: str, rows: Tensor) -> None:
    with pytest.raises(UnsupportedProblemError, match=complaint):
        solve(Problem.mlp(rows, F.normalize(rows)[:, 0], **options), LINEAR)


def test_refuses_too_few_neurons(rows: Tensor) -> None:
    with pytest.raises(InvalidInputError, match="at least 32"):
        solve(Problem.mlp(rows, rows[:, 0]), Perturbation(neurons=16))
