"""solve(problem) takes the best solver and says why."""

import math

import pytest
import torch
from torch import nn

from torch_dmft import Probe, Problem, parameterize, solve
from torch_dmft.core.errors import InsufficientMemoryError, UnsupportedModelError
from torch_dmft.theory import solvers
from torch_dmft.theory.chains.movement import feature_movement
from torch_dmft.theory.choose import choose

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(6, 5, generator=GENERATOR)
TARGETS = torch.randn(6, 1, generator=GENERATOR)


def _mlp(**options):
    return Problem.mlp(INPUTS, TARGETS, **{"depth": 2, "steps": 5, **options})


def test_each_problem_gets_the_solver_that_suits_it():
    assert isinstance(choose(_mlp(activation="linear"))[0], solvers.DeepLinear)
    assert isinstance(choose(_mlp(gamma0=0.01))[0], solvers.StaticNTK)
    assert type(choose(_mlp())[0]) is solvers.InfiniteWidth


def test_the_static_ntk_is_taken_where_features_move_by_less_than_half_of_what_sampling_misses():
    sampling = solvers.InfiniteWidth().estimate(_mlp()).error
    moved = feature_movement(_mlp(gamma0=1.0))
    for movement, kind in ((0.4 * sampling, solvers.StaticNTK), (0.6 * sampling, solvers.InfiniteWidth)):
        solver, why = choose(_mlp(gamma0=(movement / moved) ** 0.5))
        assert type(solver) is kind
        assert f"kernels within {100 * (movement if kind is solvers.StaticNTK else sampling):.2g}%" in why
    # Time moves features too.
    assert isinstance(choose(_mlp(gamma0=0.01, steps=10**4, lr=1.0))[0], solvers.InfiniteWidth)


def test_what_does_not_fit_or_takes_too_long_is_passed_over(monkeypatch):
    assert choose(_mlp())[0] == solvers.InfiniteWidth(strides=True)
    assert choose(_mlp(momentum=0.5))[0] == solvers.InfiniteWidth()
    three = Problem.mlp(INPUTS, TARGETS.expand(-1, 3), depth=2, steps=50)
    assert choose(three)[0] == solvers.InfiniteWidth(strides=True)
    assert choose(three, record=[0, 50])[0] == solvers.InfiniteWidth()  # three gradients per pass do not pay
    slow = _mlp(steps=200)
    long, short = (solvers.InfiniteWidth(neurons).estimate(slow).seconds for neurons in (8192, 2048))
    monkeypatch.setattr("torch_dmft.theory.choose._PATIENCE", (long + short) / 2)
    assert choose(slow)[0] == solvers.InfiniteWidth(neurons=2048, strides=True)
    monkeypatch.setattr("torch_dmft.theory.choose._PATIENCE", 0.0)
    assert choose(slow)[0] == solvers.InfiniteWidth(neurons=2048, strides=True)  # the fastest that is not wrong
    lazy = _mlp(steps=5, gamma0=(0.05 / feature_movement(_mlp(steps=5, gamma0=1e-3))) ** 0.5 * 1e-3)
    assert choose(lazy)[0] == solvers.StaticNTK()
    monkeypatch.undo()
    needed = solvers.InfiniteWidth().estimate(_mlp()).memory
    free = type("Memory", (), {"available": needed - 1})()
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    monkeypatch.setattr("torch_dmft.core.memory._looked", [-math.inf, math.inf])  # nobody looked yet
    assert choose(_mlp())[0] == solvers.InfiniteWidth(neurons=2048, strides=True)
    free.available = 1000
    with pytest.raises(InsufficientMemoryError, match="GiB free"):
        choose(_mlp())


def test_more_rows_get_more_neurons():
    inputs = torch.randn(700, 5, generator=GENERATOR)  # 8 directions for every row and output: 11200
    solver, _ = choose(Problem.mlp(inputs, inputs[:, 0], steps=3, depth=2, activation="erf"), record=[3])
    assert solver == solvers.InfiniteWidth(neurons=16384, strides=True)


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({"activation": "linear", "depth": 1}, solvers.DeepLinear()),
        ({"activation": "linear", "depth": 4}, solvers.DeepLinear()),
        ({"activation": "linear", "bias_std": 0.5, "momentum": 0.8}, solvers.DeepLinear()),
        ({"activation": "linear", "weight_decay": 0.2}, solvers.DeepLinear()),
        ({"activation": "linear", "steps": 5}, solvers.DeepLinear()),
        ({"activation": "tanh"}, solvers.Perturbation(256, replicas=1)),
        ({"activation": "gelu", "gain": 1.4, "depth": 2}, solvers.Perturbation(256, replicas=1)),
        ({"activation": "tanh", "width_ratios": [2.0, 1.0, 1.0]}, solvers.Perturbation(256, replicas=1)),
    ],
    ids=str,
)
def test_features_move_as_predicted_within_a_factor_of_three(options, reference):
    """At gamma0 = 0.01 and 0.1: the true error of the static NTK's worst kernel at the end of training."""
    inputs = torch.randn(6, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for gamma0 in (0.01, 0.1):
        settings = {"depth": 3, "lr": 0.1, "steps": 30, **options, "gamma0": gamma0}
        problem = Problem.mlp(inputs, torch.sign(inputs[:, 0]), **settings)
        true, static = (solve(problem, solver, record=[problem.steps]) for solver in (reference, solvers.StaticNTK()))
        assert 1 / 3 < _worst_error(static, true) / feature_movement(problem) < 3


def test_features_with_kinks_move_as_predicted():
    problem = _mlp(activation="relu", gain=2**0.5, depth=3, gamma0=0.3, steps=20)
    true = solve(problem, solvers.InfiniteWidth(neurons=2048, replicas=2), record=[20])
    error = _worst_error(solve(problem, solvers.StaticNTK(), record=[20]), true)
    assert error > 5 * solvers.InfiniteWidth(neurons=2048, replicas=2).estimate(problem).error
    assert 1 / 3 < error / feature_movement(problem) < 3


def test_predicted_errors_order_true_ones():
    """Small moves favour the static NTK, large ones even a few sampled neurons."""
    inputs = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    few = solvers.InfiniteWidth(neurons=256, replicas=2)
    for gamma0 in (0.02, 1.0):
        problem = Problem.mlp(inputs, torch.sign(inputs[:, 0]), depth=2, lr=0.05, steps=20, gamma0=gamma0)
        true = solve(problem, solvers.InfiniteWidth(neurons=4096, replicas=2), record=[20])
        static, sampled = (_worst_error(solve(problem, s, record=[20]), true) for s in (solvers.StaticNTK(), few))
        assert (static < sampled) == (feature_movement(problem) < few.estimate(problem).error) == (gamma0 < 0.1)


def _worst_error(found, true):
    """Relative error of the worst kernel at the last recorded time."""
    errors = []
    for a, b in zip(found.layers, true.layers, strict=True):
        for x, y in ((a.forward, b.forward), (a.backward, b.backward)):
            errors.append(float((x.equal_time[-1] - y.equal_time[-1]).norm() / y.equal_time[-1].norm()))
    return max(errors)


def test_saturated_and_unknown_networks_get_plain_networks():
    many = torch.randn(60, 5, generator=GENERATOR)
    long = Problem.mlp(many, many[:, :1], activation="relu", depth=2, steps=3000)
    solver, why = choose(long, record=range(0, 3001, 100))
    assert isinstance(solver, solvers.WideEnsemble)
    assert "directions" in why
    model = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    problem = Problem.like(parameterize(model, INPUTS), Probe(INPUTS, TARGETS), lr=0.1, steps=2)
    solver, why = choose(problem)
    assert isinstance(solver, solvers.WideEnsemble)
    assert "1" in why


def _network(*layers, **options):
    model = nn.Sequential(nn.Linear(5, 16), *layers, nn.Tanh(), nn.Linear(16, 1))
    return Problem.like(parameterize(model, INPUTS), Probe(INPUTS, TARGETS), lr=0.1, steps=2, **options)


@pytest.mark.parametrize(
    ("layers", "places"),
    [
        (
            [nn.GroupNorm(16, 16)],
            {"1": "GroupNorm of 16 groups of one channel each"},
        ),
    ],
    ids=["GroupNorm"],
)
def test_what_neither_theory_nor_networks_can_do_is_refused_once(layers, places):
    with pytest.raises(UnsupportedModelError, match="Neither the theory nor plain networks") as caught:
        solve(_network(*layers))
    assert [place.path for place in caught.value.places] == list(places)
    for place in caught.value.places:
        assert place.reason.endswith(places[place.path])
    without = [layer for layer in layers if isinstance(layer, nn.Tanh | nn.BatchNorm1d)]
    choose(_network(*without))  # the remedies are enough


def test_noise_gets_the_field_theory_where_it_is_small_and_smooth():
    assert isinstance(choose(_mlp(temperature=0.1))[0], solvers.AlternatingMonteCarlo)
    for problem, reason in (
        (_mlp(temperature=0.1, activation="relu"), "second derivative"),
        (_mlp(temperature=0.1, steps=100), "AlternatingMonteCarlo: 2.9 hours"),
        (_network(nn.LayerNorm(16), temperature=0.1), "plain chain"),
    ):
        solver, why = choose(problem)
        assert isinstance(solver, solvers.WideEnsemble)
        assert reason in why


def test_the_answer_says_which_and_why():
    answer = solve(_mlp(activation="linear"))
    assert answer.solver == "DeepLinear"
    assert "linear" in answer.metadata["chosen because"]


def test_the_estimate_is_an_estimate():
    """Rank within a factor of two of what happens, and flops linear in neurons and nearly linear in steps."""
    problem = _mlp(depth=3, steps=40)
    sampled = solvers.InfiniteWidth(neurons=1024, replicas=1)
    found = solve(problem, sampled, record=range(0, 41, 5)).metadata["rank"]
    assert 0.5 < found / sampled.estimate(problem).rank < 2
    assert "GiB" in str(sampled.estimate(problem))
    twice = solvers.InfiniteWidth(neurons=2048, replicas=1).estimate(problem).flops
    assert 1.9 < twice / sampled.estimate(problem).flops < 2.1
