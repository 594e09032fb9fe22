"""Where targets balance, Adam's first step of an output bias has no limit, which is told."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import torch_dmft as dmft


def posed(classes: list[int], *, optimizer: str, bias: bool) -> dmft.Problem:
    inputs, targets = torch.eye(len(classes)), torch.tensor(classes)
    model = nn.Sequential(nn.Linear(len(classes), 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3, bias=bias))
    plan = dmft.parameterize(model, inputs)
    return dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=0.03, steps=2, optimizer=optimizer)


BALANCED, OTHER = [0, 1, 2, 0, 1, 2], [0, 1, 1, 0, 1, 2]
"""Of the second only class 0 is a third of all."""


@pytest.mark.parametrize("classes", [BALANCED, OTHER])
def test_a_step_by_chance_is_told(classes: list[int]) -> None:
    with pytest.warns(UserWarning, match=r"first gradient of 3\.bias is zero where classes or targets balance"):
        dmft.solve(posed(classes, optimizer="adam", bias=True), dmft.solvers.InfiniteWidth(128, 2))


@pytest.mark.parametrize(
    ("classes", "optimizer", "bias"),
    [(BALANCED, "sgd", True), (BALANCED, "adam", False), ([0, 1, 1, 1, 1, 2], "adam", True)],
)
def test_other_steps_are_not(classes: list[int], optimizer: str, *, bias: bool) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r"The first gradient of")
        dmft.solve(posed(classes, optimizer=optimizer, bias=bias), dmft.solvers.InfiniteWidth(128, 2))
