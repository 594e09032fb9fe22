"""One step of Muon, of whole matrices and of their cores, against torch's and in exact arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.reference.muon import COEFFICIENTS
from torch_dmft.core.muon import newton_schulz
from torch_dmft.theory.engine import course
from torch_dmft.theory.engine.muon import polar

NS = {"ns_coefficients": COEFFICIENTS, "ns_steps": 5, "eps": 1e-7}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_whole_matrices_are_moved_as_torch_moves_them(
    shape: tuple[int, int], nesterov: bool, adjust: str, generator: torch.Generator
) -> None:
    start = torch.randn(shape, generator=generator)
    mine, torchs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9, "nesterov": nesterov, "adjust_lr_fn": adjust}
    theirs = torch.optim.Muon([torchs], **settings)  # type: ignore[arg-type]
    scale = math.sqrt(max(1, shape[0] / shape[1])) if adjust == "original" else 0.2 * math.sqrt(max(shape))
    group = {**NS, "params": [mine], "lr": 0.1 * scale, "decay": 0.1 * 0.2, "momentum": 0.9, "nesterov": nesterov}
    own = course.Muon([{**group, "exact": False, "low": True}])
    for _ in range(3):
        gradient = torch.randn(shape, generator=generator)
        mine.grad, torchs.grad = gradient, gradient.clone()
        own.step()
        theirs.step()
    torch.testing.assert_close(mine, torchs, rtol=1e-6, atol=1e-6)


def test_rounding_averages_out_in_whole_matrices_and_not_in_cores(generator: torch.Generator) -> None:
    """The effect of bfloat16 on what a step does to features, for matrices of rank 8 and for their cores."""

    def off(width: int) -> tuple[float, float]:
        whole, cores = [], []
        for _ in range(6):
            sides = torch.randn(2, 8, width, generator=generator, dtype=torch.float64)
            d, c = torch.tanh(sides + torch.randn(2, 1, width, generator=generator, dtype=torch.float64))
            gradient = (d * torch.logspace(0, -1, 8, dtype=torch.float64)[:, None]).T @ c
            first, second = (torch.linalg.qr(side.T)[0] for side in (d, c))
            wanted = newton_schulz(gradient, {**NS, "low": False}) @ c.T
            core = first.T @ gradient @ second
            found = (
                newton_schulz(gradient, {**NS, "low": True}).double() @ c.T,
                first @ newton_schulz(core, {**NS, "low": True}).double() @ second.T @ c.T,
            )
            right = first @ newton_schulz(core, {**NS, "low": False}) @ second.T @ c.T
            torch.testing.assert_close(right, wanted, rtol=1e-9, atol=1e-9)
            for errors, value in zip((whole, cores), found, strict=True):
                errors.append(float((value - wanted).norm() / wanted.norm()))
        return sum(whole) / 6, sum(cores) / 6

    (narrow, _), (wide, core) = off(32), off(256)
    assert 0.001 < wide < 0.7 * narrow < 0.02, (narrow, wide)
    assert 2 * wide < core < 0.03, core


def test_a_polar_factor_leaves_out_rounding(generator: torch.Generator) -> None:
    thin = torch.randn(2, 12, 3, generator=generator)
    low_rank = (thin[0] @ thin[1].T).float()
    values = torch.linalg.svdvals(polar(low_rank))
    torch.testing.assert_close(values[:3], torch.ones(3))
    assert float(values[3:].max()) < 1e-5
    assert not polar(torch.zeros(3, 2)).any()
