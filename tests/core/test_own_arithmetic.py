"""Arithmetic of one's own: no autocast reaches in, with an accelerator and without one."""

from __future__ import annotations

import pytest
import torch

from torch_dmft.core.own_arithmetic import own_arithmetic


def test_no_context_outside_reaches_in() -> None:
    one = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert (one @ one).dtype == torch.bfloat16
        with own_arithmetic():
            product = one @ one
    assert product.dtype == torch.float32
    assert not product.is_inference()


def test_without_an_accelerator_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch 2.6 raises where there is none; others name the kind that torch was built for."""

    def none() -> torch.device:
        raise RuntimeError("Cannot access accelerator device when none is available.")

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", none)
    with own_arithmetic():
        assert torch.is_grad_enabled()
