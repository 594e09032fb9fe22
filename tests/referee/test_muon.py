"""The referee on Muon: rates of a plan are right with either scale of torch, one rate for all with AdamW's scale is not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import torch_dmft as dmft

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(16, 5, generator=GENERATOR)
BATCHES = [(INPUTS, torch.sin(2 * INPUTS[:, :4]))]
WIDTHS = (64, 128, 256)


def with_muon(width: int, scale: str, *, scaled: bool) -> tuple[nn.Module, Any]:
    """Muon beside AdamW, at the plan's rates, or at one rate for the hidden matrices, that of width 128."""
    middle = nn.Linear(width, 2 * width)
    model = nn.Sequential(
        nn.Linear(5, width), nn.Tanh(), middle, nn.Tanh(), nn.Linear(2 * width, width), nn.Tanh(), nn.Linear(width, 4)
    )
    muon, adamw = dmft.parameterize(model, INPUTS).param_groups(0.02, optimizer="muon", adjust_lr_fn=scale)
    for group in muon if not scaled else ():
        group["lr"] *= math.sqrt(width / 128)  # a plan's rate falls like width^(-1/2) with this scale
    return model, [torch.optim.Muon(muon), torch.optim.AdamW(adamw)]


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_rates_of_a_plan(scale: str) -> None:
    verdict = dmft.check(lambda width: with_muon(width, scale, scaled=True), WIDTHS, steps=4, seeds=5, data=BATCHES)
    assert verdict.passed, str(verdict)


def test_one_rate_for_all_widths() -> None:
    verdict = dmft.check(
        lambda width: with_muon(width, "match_rms_adamw", scaled=False), WIDTHS, steps=4, seeds=5, data=BATCHES
    )
    assert verdict.word == "wrong", str(verdict)
    assert "2.weight" in str(verdict.culprit)
