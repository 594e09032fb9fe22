"""Any settings at all: they are refused by the package, or what is made of them is made of finite numbers."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torch_dmft as dmft
from tests.inputs.calls import INPUTS, TARGETS, Set, network
from tests.inputs.outcomes import outcome
from torch_dmft.settings import Settings

ANY = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(1e-3, 10.0),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 40),
    st.booleans(),
    st.text(max_size=3),
    st.none(),
    st.lists(st.floats(), max_size=3),
)
"""Values of all kinds and sizes, sensible ones among them."""

_PROBLEM = ("depth", "gamma0", "lr", "steps", "gain", "bias_std", "momentum", "weight_decay", "temperature", "nesterov")
_DEMO = ("samples", "width", "networks", "depth", "gamma0", "lr", "steps", "records", "neurons", "replicas", "seed")


def some(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """One to three of these settings."""
    return st.dictionaries(st.sampled_from(names), ANY, min_size=1, max_size=3)


def held(make: Any) -> Any:
    """What was made, or None if it was refused by an error of the package with a remedy.

    Raises:
        AssertionError: for anything else.
    """
    made: list[Any] = []
    what, words = outcome(lambda: made.append(make()))
    assert what in ("silent", "refused"), f"{what}: {words}"
    return made[0] if made else None


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(some(*_PROBLEM))
def problems(chosen: dict[str, Any]) -> None:
    problem = held(lambda: dmft.Problem.mlp(INPUTS, TARGETS, **{"steps": 3, **chosen}))
    if problem is not None and problem.steps < 1000:
        assert bool(torch.isfinite(problem.training.lr).all())
        assert math.isfinite(problem.gamma0**2)
        assert math.isfinite(1 / problem.gamma0**2)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(some("gamma0", "gain", "scheme", "init", "depth"), some("lr", "weight_decay", "eps", "optimizer"))
def plans(wrapping: dict[str, Any], groups: dict[str, Any]) -> None:
    plan = held(lambda: dmft.parameterize(network(), INPUTS, **wrapping))
    if plan is None:
        return
    assert all(bool(torch.isfinite(parameter).all()) for parameter in plan.model.parameters())
    made = held(lambda: plan.param_groups(**{"lr": 0.1, **groups}))
    for group in made or []:
        assert all(math.isfinite(group[name]) and group[name] >= 0 for name in ("lr", "weight_decay"))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(some("neurons", "replicas", "tolerance", "generator", "strides"))
def solvers(chosen: dict[str, Any]) -> None:
    held(lambda: dmft.solvers.InfiniteWidth(**chosen))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(some(*_DEMO))
def demos(chosen: dict[str, Any]) -> None:
    held(lambda: Settings(**chosen))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(some("every", "schedule", "two_time", "fields", "ntk", "per_output", "rows", "temperature"))
def recorders(chosen: dict[str, Any]) -> None:
    a = Set(Path(gettempdir()))
    held(lambda: dmft.Recorder(a.plan, a.probe, **chosen))


def all_hold() -> None:
    """Try them all."""
    for each in (problems, plans, solvers, demos, recorders):
        each()


if __name__ == "__main__":
    all_hold()
