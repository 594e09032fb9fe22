"""Biases, input weights and readouts that start uniform, as torch draws them: theory against networks, and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn

import torch_dmft as dmft
from tests.reference.ensembles import Limit, extrapolate, observables, z_scores
from tests.reference.networks import Chain, Training
from tests.theory.validation.agreement import STANDARD_ERRORS, assert_agrees
from tests.theory.validation.cases import half_square
from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.theory.solver import Solver

STEPS, RECORD = 6, (0, 3, 6)
INPUTS = torch.tensor([[0.0, 0.0], [1.2, -0.5], [-0.3, 0.9]], dtype=torch.float64)
TARGETS = torch.tensor([[1.0], [-1.0], [1.0]], dtype=torch.float64)
BIASES = frozenset({"bias.0", "bias.1"})
ENDS = frozenset({"weight.0", "bias.0", "bias.1", "weight.2"})
EVERYTHING = ENDS | {"weight.1"}
NAMES = {torch.tanh: "tanh", torch.relu: "relu", torch.sin: "sin", nn.functional.selu: "selu"}
BROAD = {"bias_std": 1.5}

CASES = {
    "tanh, rich": Chain(2, torch.tanh, 2.0, uniform=EVERYTHING, **BROAD),
    "sin": Chain(2, torch.sin, 1.0, uniform=ENDS, **BROAD),
    "relu": Chain(2, torch.relu, 1.0, uniform=ENDS, **BROAD),
    "biases": Chain(2, torch.sin, 0.3, uniform=BIASES, **BROAD),
    "lazy tanh": Chain(2, torch.tanh, 0.01, uniform=BIASES, **BROAD),
    "lazy relu": Chain(2, torch.relu, 0.01, uniform=BIASES, **BROAD),
    "lazy selu": Chain(2, nn.functional.selu, 0.01, uniform=BIASES, **BROAD),
    "lazy tanh, decaying": Chain(2, torch.tanh, 0.01, uniform=BIASES, **BROAD),
}
DECAYS = {"lazy tanh, decaying": 2.0}


@cache
def networks(name: str) -> Limit:
    """The limit of finite networks, of the lazy ones in antithetic pairs, as their f(0) is not small."""
    chain, decay = CASES[name], DECAYS.get(name, 0.0)
    training = Training(INPUTS, TARGETS, 0.05, STEPS, loss=half_square, weight_decay=decay)
    generator = torch.Generator().manual_seed(0)
    return extrapolate(chain, training, {48: 4096, 96: 2048, 192: 1024}, generator, record=RECORD)


def pose(chain: Chain, dtype: torch.dtype = torch.float32) -> dmft.Problem:
    """The same as a problem, whose weights are called 0, 2, 4."""
    problem = dmft.Problem.mlp(
        INPUTS.to(dtype),
        TARGETS.to(dtype),
        depth=chain.depth,
        activation=NAMES[chain.activation],
        gamma0=chain.gamma0,
        bias_std=chain.bias_std,
        loss=half_square,
        lr=0.05,
        steps=STEPS,
    )
    starts = {}
    for name in chain.uniform:
        kind, layer = name.split(".")
        starts[f"{2 * int(layer)}.{kind}"] = "uniform"
    return problem.trained(starts=starts)


SOLVERS: dict[str, list[Solver]] = {
    "tanh, rich": [dmft.solvers.InfiniteWidth(2048, 8), dmft.solvers.InfiniteWidth(2048, 8, strides=True)],
    "sin": [dmft.solvers.InfiniteWidth(2048, 8), dmft.solvers.WideEnsemble((64, 128), pairs=128)],
    "relu": [dmft.solvers.InfiniteWidth(2048, 8)],
    "biases": [dmft.solvers.AlternatingMonteCarlo(2000, stride=None), dmft.solvers.InfiniteWidth(2048, 8)],
}


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        pytest.param(name, solver, marks=() if type(solver) is dmft.solvers.InfiniteWidth else pytest.mark.long)
        for name, some in SOLVERS.items()
        for solver in some
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_theory_agrees_with_networks(name: str, solver: Solver) -> None:
    sharpness = 0.03 if type(solver) is dmft.solvers.InfiniteWidth else 0.06
    assert_agrees(networks(name), dmft.solve(pose(CASES[name]), solver, record=RECORD), sharpness)


@pytest.mark.parametrize("name", SOLVERS)
def test_gaussian_numbers_of_the_same_size_do_not(name: str) -> None:
    problem = pose(CASES[name]).trained(starts={})
    with pytest.raises(AssertionError, match=r"is .* off"):
        assert_agrees(networks(name), dmft.solve(problem, dmft.solvers.InfiniteWidth(2048, 8), record=RECORD))


def worst(name: str, answer: dmft.Trajectory) -> float:
    """Standard errors by which an exact answer is off; losses of networks with noise at the start are not compared."""
    found = observables(answer)
    del found["losses"]
    return max(float(z.abs().max()) for z in z_scores(networks(name), found).values())


@pytest.mark.parametrize("name", ["lazy tanh", "lazy relu", "lazy selu", "lazy tanh, decaying"])
def test_the_lazy_limit_agrees_with_networks(name: str) -> None:
    problem = pose(CASES[name], torch.float64).trained(weight_decay=DECAYS.get(name, 0.0))
    assert worst(name, dmft.solve(problem, dmft.solvers.StaticNTK(), record=RECORD)) < STANDARD_ERRORS
    gaussian = dmft.solve(problem.trained(starts={}), dmft.solvers.StaticNTK(), record=RECORD)
    assert worst(name, gaussian) > STANDARD_ERRORS


def test_perturbation_meets_the_engine_to_the_fourth_order() -> None:
    """What perturbation theory leaves out falls like gamma0^4; with Gaussian biases it is off at any gamma0."""

    def apart(gamma0: float, starts: dict[str, str]) -> float:
        problem = pose(Chain(2, torch.sin, gamma0, uniform=BIASES, bias_std=1.0), torch.float64)
        exact = dmft.solve(problem, dmft.solvers.InfiniteWidth(8192, 4, tolerance=1e-4), record=[STEPS])
        near = dmft.solve(problem.trained(starts=starts), dmft.solvers.Perturbation(8192, 4), record=[STEPS])
        return float((exact.outputs - near.outputs).norm())

    uniform = {"0.bias": "uniform", "2.bias": "uniform"}
    assert apart(0.5, uniform) < apart(1.0, uniform) / 8
    assert apart(0.5, {}) > 10 * apart(0.5, uniform)


@pytest.mark.parametrize(
    ("name", "square"),
    [
        ("tanh", lambda b: 1 - math.tanh(b) / b),
        ("relu", lambda b: b * b / 6),
        ("sin", lambda b: 0.5 - math.sin(2 * b) / 4 / b),
    ],
)
@pytest.mark.parametrize("bound", [1.0, 2.5])
def test_features_of_a_zero_input_by_hand(name: str, square: Callable[[float], float], bound: float) -> None:
    """Phi^1 = <phi(b)^2> over U(-b, b), exactly by StaticNTK and within its standard error by the engine."""
    problem = dmft.Problem.mlp(
        INPUTS, TARGETS, depth=1, activation=name, bias_std=bound / math.sqrt(3), lr=0.1, steps=1
    ).trained(starts={"0.bias": "uniform"})
    exact = dmft.solve(problem, dmft.solvers.StaticNTK(), record=[0]).layers[1].forward.equal_time[0, 0, 0]
    assert float(exact) == pytest.approx(square(bound), rel=1e-10)
    sampled = dmft.solve(problem, dmft.solvers.InfiniteWidth(1024, 8), record=[0])
    assert sampled.stderr is not None
    value, error = (one.layers[1].forward.equal_time[0, 0, 0] for one in (sampled, sampled.stderr))
    assert abs(float(value) - square(bound)) < STANDARD_ERRORS * float(error) + 1e-6
    assert float(error) < 0.01 * square(bound)


@pytest.mark.parametrize(
    "solver", [dmft.solvers.StaticNTK(), dmft.solvers.Perturbation(), dmft.solvers.AlternatingMonteCarlo()]
)
def test_closed_forms_refuse_uniform_input_weights(solver: Solver) -> None:
    problem = pose(CASES["tanh, rich"])
    with pytest.raises(UnsupportedProblemError, match=r"0\.weight.*sums of 2 uniform numbers.*InfiniteWidth"):
        dmft.solve(problem, solver)


def test_a_linear_network_knows_variances_only() -> None:
    problem = dmft.Problem.mlp(INPUTS, TARGETS, depth=2, activation="linear", bias_std=0.5, lr=0.05, steps=STEPS)
    uniform = problem.trained(starts=dict.fromkeys(("0.weight", "0.bias", "2.bias", "4.weight"), "uniform"))
    exact = dmft.solve(uniform, dmft.solvers.DeepLinear())
    assert torch.equal(exact.outputs, dmft.solve(problem, dmft.solvers.DeepLinear()).outputs)
    twin = dmft.solve(uniform, dmft.solvers.InfiniteWidth(1024, 4, tolerance=1e-5))
    torch.testing.assert_close(twin.outputs, exact.outputs, rtol=1e-3, atol=1e-3)


def own(width: int, seed: int, change: Callable[[nn.Sequential], object] = lambda model: None) -> nn.Sequential:
    """A model as torch draws it, or changed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))
        change(model)
    return model


def like(model: nn.Module, **settings: object) -> dmft.Problem:
    x = torch.tensor([[0.0], [0.7]])
    plan = dmft.parameterize(model, x, **settings)
    return dmft.Problem.like(plan, dmft.Probe(x, torch.ones(2, 1)), lr=0.1, steps=1)


def gaussian_biases(model: nn.Sequential) -> None:
    nn.init.normal_(model[0].bias, std=0.6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", [32, 64, 1024])
def test_torchs_own_biases_are_told_and_their_size_is_known(width: int, seed: int) -> None:
    """Phi^1 of a zero input is that of U(-1, 1) exactly, whatever the draw."""
    problem = like(own(width, seed))
    assert dict(problem.training.starts) == {"0.bias": "uniform"}
    features = dmft.solve(problem, dmft.solvers.StaticNTK(), record=[0]).layers[1].forward.equal_time
    assert float(features[0, 0, 0]) == pytest.approx(1 - math.tanh(1), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_gaussian_biases_are_told_from_uniform_ones(seed: int) -> None:
    assert dict(like(own(256, seed, gaussian_biases)).training.starts) == {}


def test_kept_weights_are_drawn_as_they_are() -> None:
    problem = like(own(512, 0), init="keep")
    assert dict(problem.training.starts) == dict.fromkeys(["0.weight", "0.bias", "2.weight"], "uniform")
    with pytest.raises(UnsupportedProblemError, match=r"0\.weight"):
        dmft.solve(problem, dmft.solvers.StaticNTK())
    values = []
    for solver in (dmft.solvers.InfiniteWidth(1024, 8), dmft.solvers.WideEnsemble((64, 128), pairs=64)):
        answer = dmft.solve(problem, solver, record=[0])
        assert answer.stderr is not None
        values.append([one.layers[1].forward.equal_time[0, 1, 1] for one in (answer, answer.stderr)])
    # h = .7 w + b with w of variance 1 and b of 1/3, both uniform: a trapezoid.
    node = torch.linspace(-1, 1, 2001, dtype=torch.float64)[1::2]
    h = 0.7 * math.sqrt(3) * node[:, None] + node
    for value, error in values:
        assert abs(float(value - torch.tanh(h).square().mean())) < STANDARD_ERRORS * float(error) + 1e-5
        assert float(error) < 0.02


def test_gaussian_numbers_may_be_assumed() -> None:
    x = torch.tensor([[0.0], [0.7]])
    plan = dmft.parameterize(own(256, 0), x)
    problem = dmft.Problem.like(plan, dmft.Probe(x, torch.ones(2, 1)), lr=0.1, steps=1, assume_gaussian=True)
    assert dict(problem.training.starts) == {}
    assert problem.training.assumptions == ("start",)


ZERO_ROW = torch.tensor([[0.0, 0.0], [1.0, -0.5], [0.4, 0.8]], dtype=torch.float64)


@pytest.mark.parametrize(("name", "slope"), [("relu", 0.0), ("leaky_relu", 0.01), ("relu6", 0.0), ("selu", None)])
def test_fields_at_rest_have_torchs_slope(name: str, slope: float | None) -> None:
    """The tangent kernel of a row of zeros is that of a network of 4096 neurons, up to its fluctuations."""
    problem = dmft.Problem.mlp(ZERO_ROW, TARGETS, depth=2, activation=name, gamma0=0.01, lr=0.1, steps=1)
    exact = dmft.solve(problem, dmft.solvers.StaticNTK(), record=[0])
    sampled = dmft.solve(problem, dmft.solvers.InfiniteWidth(2048, 8), record=[0])
    assert sampled.stderr is not None
    for layer, theirs, error in zip(exact.layers, sampled.layers, sampled.stderr.layers, strict=True):
        off = (layer.backward.equal_time - theirs.backward.equal_time).abs()
        assert bool((off <= STANDARD_ERRORS * error.backward.equal_time + 1e-5).all())
    if slope is not None:
        assert float(exact.layers[1].backward.equal_time[0, 0, 0]) == pytest.approx(slope**2, abs=1e-12)


def test_a_trained_bias_that_leaves_a_corner_is_refused() -> None:
    """At the first step each neuron takes one of two slopes, whatever gamma0 is."""
    corner = dmft.Problem.mlp(ZERO_ROW, TARGETS, activation="relu", bias_std=0.0, lr=0.1, steps=1)
    with pytest.raises(UnsupportedProblemError, match=r"row 0 of zeros before relu"):
        dmft.solve(corner, dmft.solvers.StaticNTK())
    for others in (
        {"activation": "elu", "bias_std": 0.0},
        {"activation": "relu", "bias_std": 0.3},
        {"activation": "relu"},
    ):
        dmft.solve(dmft.Problem.mlp(ZERO_ROW, TARGETS, lr=0.1, steps=1, **others), dmft.solvers.StaticNTK())
