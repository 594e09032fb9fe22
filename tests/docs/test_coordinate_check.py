"""The page on failed coordinate checks: its faults are found by name, and what has none is not blamed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import Adam

import torch_dmft as dmft

RATE = 0.05
Made = tuple[nn.Module, torch.optim.Optimizer]


def wrapped(width: int) -> tuple[nn.Sequential, dmft.Plan]:
    hidden = [nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    model = nn.Sequential(*hidden, nn.Linear(width, 1))
    return model, dmft.parameterize(model, torch.zeros(2, 10))


def right(width: int) -> Made:
    model, plan = wrapped(width)
    return model, Adam(plan.param_groups(RATE, optimizer="adam"))


def one_rate(width: int) -> Made:
    model, _ = wrapped(width)
    return model, Adam(model.parameters(), lr=0.001)


def groups_of_sgd(width: int) -> Made:
    model, plan = wrapped(width)
    return model, Adam(plan.param_groups(RATE / 100))


def readout_of_torch(width: int) -> Made:
    model, plan = wrapped(width)
    model[4].reset_parameters()
    return model, Adam(plan.param_groups(RATE, optimizer="adam"))


def large_eps(width: int) -> Made:
    model, plan = wrapped(width)
    groups = plan.param_groups(RATE, optimizer="adam")
    return model, Adam([{**group, "eps": 0.1} for group in groups])


FAULTS = {
    one_rate: {("2.weight", "rate")},
    groups_of_sgd: {("0.weight", "rate"), ("0.bias", "rate"), ("2.weight", "rate"), ("2.bias", "rate")},
    readout_of_torch: {("4.weight", "initial size")},
    large_eps: {("0.weight", "eps"), ("2.weight", "eps")},
}


def found(make: Callable[[int], Made]) -> dmft.Verdict:
    return dmft.check(make, widths=(32, 64, 128, 256), steps=4, seeds=6)


@pytest.mark.parametrize("make", FAULTS, ids=lambda make: make.__name__)
def test_a_fault_is_found(make: Callable[[int], Made]) -> None:
    verdict = found(make)
    assert verdict.word == "wrong"
    assert FAULTS[make] <= {(fault.name, fault.setting) for fault in verdict.faults}, str(verdict)


def test_what_is_right_has_none() -> None:
    verdict = found(right)
    assert verdict.faults == ()
    assert verdict.word != "wrong"
