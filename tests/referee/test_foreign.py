"""Set-ups that others have made: mup's, unit scaling's (u-muP), and torch's Muon beside AdamW with each of its scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torch_dmft as dmft

WIDTHS = (16, 32, 64, 128)


def mlp(width: int, readout: Callable[[int, int], nn.Module] = nn.Linear) -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), readout(width, 4))


def check(factory: Callable[[int], Any]) -> dmft.Verdict:
    return dmft.check(factory, WIDTHS, steps=8, seeds=4)


@pytest.mark.parametrize("optimizer", ["MuSGD", "MuAdam"])
def test_mup(optimizer: str) -> None:
    mup = pytest.importorskip("mup")

    def factory(width: int, *, forgets: bool = False) -> Any:
        readout = nn.Linear if forgets else mup.MuReadout
        model = mlp(width, readout)
        mup.set_base_shapes(model, mlp(16, readout), delta=mlp(32, readout), do_assert=not forgets)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                mup.init.kaiming_uniform_(parameter, a=5**0.5)
        return model, getattr(mup, optimizer)(model.parameters(), lr=0.1 if optimizer == "MuSGD" else 0.01)

    right = check(factory)
    assert right.word != "wrong", str(right)
    wrong = check(lambda width: factory(width, forgets=True))
    assert "4.weight" in {fault.name for fault in wrong.faults}, str(wrong)


def test_unit_scaling() -> None:
    """Products are scaled after they were taken: what counts is what comes out of the scaling."""
    uu = pytest.importorskip("unit_scaling")
    from unit_scaling.optim import Adam

    def factory(width: int, *, plain: bool = False) -> Any:
        model = nn.Sequential(
            *(uu.Linear(10, width, bias=False), uu.GELU(), uu.Linear(width, width, bias=False), uu.GELU()),
            uu.LinearReadout(width, 4),
        )
        optimizer = torch.optim.Adam if plain else Adam
        return model, optimizer(model.parameters(), lr=0.05)

    right = check(factory)
    assert right.word != "wrong", str(right)
    wrong = check(lambda width: factory(width, plain=True))  # without the rates of its own Adam
    assert wrong.culprit is not None, str(wrong)
    assert wrong.culprit.name == "2.weight"


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9")
@pytest.mark.parametrize(("scale", "exponent"), [("original", 0.0), ("match_rms_adamw", 0.5)])
def test_muon_with_each_of_its_scales(scale: str, exponent: float) -> None:
    """Of a square matrix "original" moves by the rate in spectral norm, "match_rms_adamw" by 0.2 sqrt(N) times that."""

    def factory(width: int) -> Any:
        model: Any = mlp(width)
        with torch.no_grad():
            model[4].weight *= (width / 16) ** -0.5
        rest = [
            {"params": [model[4].weight], "lr": 0.01 * 16 / width},
            {"params": [model[0].weight, model[0].bias, model[2].bias, model[4].bias]},
        ]
        muon = torch.optim.Muon([model[2].weight], lr=0.05, weight_decay=0.0, adjust_lr_fn=scale)
        return model, [muon, torch.optim.AdamW(rest, lr=0.01, weight_decay=0.0)]

    found = check(factory)
    if exponent:
        assert found.culprit is not None, str(found)
        assert (found.culprit.name, found.culprit.setting, found.culprit.mends) == ("2.weight", "rate", -exponent)
    else:
        assert found.word != "wrong", str(found)
