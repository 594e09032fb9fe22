"""Garbage is looked for again after notes were taken, as before."""

import gc

import pytest
import torch
from torch import nn

from torch_dmft.architecture import describe
from torch_dmft.core.collection import collection_paused


@pytest.mark.parametrize("was_on", [True, False])
def test_what_was_on_is_on_again(was_on: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if was_on else gc.disable)()
        with pytest.raises(ZeroDivisionError, match=r"zero"), collection_paused():
            assert 1 / gc.isenabled()
        assert gc.isenabled() == was_on
        describe(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(3, 2, device="cpu"))
        assert gc.isenabled() == was_on
    finally:
        (gc.enable if before else gc.disable)()
