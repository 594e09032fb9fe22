"""solve(problem) takes the best solver and says why."""

import pytest
import torch
from torch import nn

from torch_dmft import Probe, Problem, parameterize, solve
from torch_dmft.core.errors import UnsupportedModelError
from torch_dmft.theory import solvers
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


def test_saturated_and_unknown_networks_get_plain_networks():
    many = torch.randn(60, 5, generator=GENERATOR)
    solver, why = choose(Problem.mlp(many, many[:, :1], activation="relu", depth=2, steps=3000))
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
        ([nn.GroupNorm(2, 16)], {"1": "no GroupNorm yet, and a GroupNorm cannot be built at another width yet"}),
        ([nn.Tanh(), nn.Dropout(0.5)], {"2": "dropout makes training random"}),
        (
            [nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5)],
            {"3": "dropout makes training random"},
        ),  # nets have BatchNorm
    ],
    ids=["GroupNorm", "dropout", "BatchNorm and dropout"],
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
        (_mlp(temperature=0.1, steps=100), "606 rows"),
        (_network(nn.LayerNorm(16), temperature=0.1), "plain chain"),
    ):
        solver, why = choose(problem)
        assert isinstance(solver, solvers.WideEnsemble)
        assert reason in why


def test_the_answer_says_which_and_why():
    answer = solve(_mlp(activation="linear"))
    assert answer.metadata["solver"] == "DeepLinear"
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
