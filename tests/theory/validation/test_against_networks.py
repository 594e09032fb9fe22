"""``solve`` against seed-averaged networks extrapolated in 1/N, and wrong theories against the same check."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import torch_dmft as dmft
from tests.reference.ensembles import Limit, extrapolate
from tests.theory.validation.agreement import assert_agrees, moved
from tests.theory.validation.cases import CASES, RECORD, pose
from tests.theory.validation.wrong import WithoutResponses, drop_equal_time_response

NEURONS, REPLICAS = 2048, 8

# What runs every day; `./dev validate` runs all cases.
SHORT = {
    "tanh L=1 gamma0=3",
    "tanh L=2 gamma0=0.1",
    "tanh L=2 gamma0=1",
    "relu L=2 gamma0=1",
    "random biases",
    "three outputs",
    "momentum and weight decay",
    "residual layer norm",
}

# Response terms exist from two hidden layers on, and matter once features move.
RESPONSIVE = ["tanh L=2 gamma0=1", "tanh L=3 gamma0=1", "random biases", "three outputs"]


def marked(names: list[str]) -> list[object]:
    return [pytest.param(name, marks=() if name in SHORT else pytest.mark.long) for name in names]


@cache
def networks(name: str) -> Limit:
    """The case's networks at N = infinity; expensive, so shared by the tests of this file."""
    case, generator = CASES[name], torch.Generator().manual_seed(0)
    return extrapolate(case.chain, case.training, case.networks, generator, record=RECORD, dtype=torch.float32)


@pytest.mark.parametrize("name", marked(list(CASES)))
def test_theory_agrees_with_networks(name: str) -> None:
    answer = dmft.solve(pose(CASES[name]), dmft.solvers.InfiniteWidth(NEURONS, REPLICAS), record=RECORD)
    assert_agrees(networks(name), answer)


@pytest.mark.parametrize("name", marked(list(CASES)))
def test_the_networks_learn_smoothly(name: str) -> None:
    """Near the limit of stability training is chaotic, and features that do not move show no wrong theory."""
    limit, chain = networks(name), CASES[name].chain
    losses = limit.mean["losses"]
    assert (losses.diff() < 0).all(), losses
    assert losses[-1] < 0.7 * losses[0]
    assert chain.gamma0 < 0.5 or moved(limit, f"forward.{chain.depth}") > 0.2


@pytest.mark.parametrize("name", marked(RESPONSIVE))
def test_a_theory_without_responses_does_not(name: str) -> None:
    answer = dmft.solve(pose(CASES[name]), WithoutResponses(NEURONS, REPLICAS), record=RECORD)
    with pytest.raises(AssertionError, match=r"outputs is .* off"):
        assert_agrees(networks(name), answer)


@pytest.mark.parametrize("name", marked(RESPONSIVE))
def test_gradient_independence_has_other_kernels(name: str) -> None:
    answer = dmft.solve(pose(CASES[name]), dmft.solvers.GradientIndependence(NEURONS, REPLICAS), record=RECORD)
    with pytest.raises(AssertionError, match=r"backward\.0 is .* off.*forward\.\d is .* off"):
        assert_agrees(networks(name), answer)


@pytest.mark.parametrize("name", marked(RESPONSIVE))
def test_neither_does_a_theory_without_the_equal_time_response(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drop_equal_time_response(monkeypatch)
    answer = dmft.solve(pose(CASES[name]), dmft.solvers.InfiniteWidth(NEURONS, REPLICAS), record=RECORD)
    with pytest.raises(AssertionError, match=r"backward\.0 is .* off"):
        assert_agrees(networks(name), answer)
