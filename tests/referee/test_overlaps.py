"""Batches with as many rows as neurons, and readouts that start small: what fades with the width is no fault."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import torch_dmft as dmft
from benchmarks.setups import Fault, Recipe, data, drawn, made
from torch_dmft.referee.measure import Measured
from torch_dmft.referee.relative import aligned
from torch_dmft.referee.roles import Role, role

WIDTHS = (32, 64, 128, 256)
TOKENS = replace(
    drawn(0), family="transformer", depth=1, activation="gelu", heads="many", norm=False, optimizer="adam", rate=0.01,
    decay=0.0, squared=False, rows=64, seed=1,
)  # fmt: skip
"""128 tokens in a batch."""


def check(recipe: Recipe, widths: tuple[int, ...] = WIDTHS, steps: int = 4) -> dmft.Verdict:
    return dmft.check(partial(made, recipe), widths, steps=steps, seeds=4, most_seeds=4, data=partial(data, recipe))


@pytest.mark.parametrize(("name", "power"), [("up.weight", 0.5), ("up.weight", -0.5), ("head.weight", -0.5)])
def test_a_rate_is_off_by_its_own_power_though_tokens_overlap(name: str, power: float) -> None:
    """Before overlaps were taken off these were 0.37, -0.63 and -0.63."""
    found = check(replace(TOKENS, fault=Fault("rate", name, power)))
    assert [(one.parameter, one.setting) for one in found.faults] == [(name, "rate")], str(found)
    assert found.faults[0].exponent == pytest.approx(power, abs=0.08)


def test_a_set_up_is_right_though_tokens_overlap() -> None:
    found = check(TOKENS)
    assert found.word == "right", str(found)
    measured = found.measured
    place = next(one for one in measured.places if one[0] == "up.weight")
    own, rest = measured.sizes[place, "own"], aligned(measured, place)
    assert bool((rest < own).all())
    assert ratio(rest) < 1.1 < 1.25 < ratio(own)  # one is as large at every width, the other falls


def ratio(sizes: torch.Tensor) -> float:
    """Of the narrowest over the widest, at the first step."""
    return float(sizes[0, 0].mean() / sizes[0, -1].mean())


@pytest.mark.parametrize(("steps", "power"), [(2, -0.5), (2, -1.0), (8, -1.0)])
def test_a_readout_may_start_small(steps: int, power: float) -> None:
    """What it carries then vanishes with the width, and with it the outputs' change of the first steps."""
    recipe = replace(
        TOKENS, rows=8, rate=0.02, heads="many", activation="relu", fault=Fault("init", "head.weight", power)
    )
    found = check(recipe, (16, 32, 64, 128), steps)
    change = next(one for one in found.readings if one.place[1] == "outputs" and one.quantity == "change")
    assert change.law.exponent < -0.3  # which it was called wrong for
    assert found.word != "wrong", str(found)


@pytest.mark.parametrize("power", [0.5, -0.5])
def test_the_rate_of_a_readout_that_starts_small_is_still_found(power: float) -> None:
    recipe = replace(TOKENS, rows=8, rate=0.02, activation="relu", fault=Fault("rate", "head.weight", power))

    def small(width: int) -> tuple[nn.Module, torch.optim.Optimizer, object]:
        setup = made(recipe, width)
        with torch.no_grad():
            setup[0].head.weight *= (32 / width) ** 0.5  # type: ignore[operator, union-attr]
        return setup

    found = dmft.check(small, (16, 32, 64, 128), steps=8, most_seeds=4, data=partial(data, recipe))
    assert ("head.weight", "rate") in {(one.parameter, one.setting) for one in found.faults}, str(found)


@pytest.fixture(scope="module")
def right() -> dmft.Verdict:
    return check(replace(TOKENS, rows=8))


def hidden(measured: Measured, power: float, name: str = "up.weight") -> Measured:
    """The same with a weight whose own term goes by so many more powers of the width, all of it overlaps."""
    place = next(one for one in measured.places if one[0] == name)
    assert role(measured, place) is Role.HIDDEN
    own = measured.sizes[place, "own"] * (torch.tensor(measured.widths) / 32.0).pow(power)[None, :, None]
    return replace(measured, sizes={**measured.sizes, (place, "own"): own, (place, "unrelated"): 0.95 * own})


@pytest.mark.parametrize(
    ("power", "word"), [(-0.5, "not decided"), (0.0, "not decided"), (0.5, "wrong"), (-1.0, "wrong")]
)
def test_what_overlaps_hide_is_not_decided_unless_they_cannot_make_it(
    right: dmft.Verdict, power: float, word: str
) -> None:
    """Own terms fall by N^-1/2 at most, where only overlaps are seen, and grow by nothing."""
    found = dmft.Verdict(hidden(right.measured, power), right.rule)
    assert right.word == "right"
    assert found.word == word, str(found)
    if word == "not decided":
        assert [place[0] for place in found.hidden] == ["up.weight"]
        assert "up.weight: a step acts on unrelated rows" in found.sentences[-1]
        assert found.seeds_needed == 0


def test_widths_at_which_nothing_is_seen_are_left_out(right: dmft.Verdict) -> None:
    """Two that are wide enough are judged by themselves."""
    measured = right.measured
    place = next(one for one in measured.places if one[0] == "up.weight")
    unrelated = measured.sizes[place, "unrelated"].clone()
    unrelated[:, :2] = measured.sizes[place, "own"][:, :2]
    cut = replace(measured, sizes={**measured.sizes, (place, "unrelated"): unrelated})
    rest = aligned(cut, place)
    assert bool(rest[:, :2].isnan().all())
    assert bool(rest[:, 2:].isfinite().all())
    found = dmft.Verdict(cut, right.rule)
    one = next(one for one in found.readings if one.place == place and one.quantity == "own")
    assert not one.is_hidden
    assert math.isfinite(one.beside.exponent)
