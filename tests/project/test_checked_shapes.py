"""The tests check the shapes in annotations; were the import hook not installed, they would pass unnoticed."""

import contextlib

import jaxtyping
import pytest
import torch

from tests.checked_imports import EVERY
from torch_dmft.comparison.metrics import cosines


def often() -> None:
    """Other tests may have called it before, see ``checked_imports``."""
    for _ in range(EVERY):
        with contextlib.suppress(RuntimeError):
            cosines(torch.ones(2, 3), torch.ones(4, 3))


def test_a_wrong_shape_does_not_pass():
    with pytest.raises(jaxtyping.TypeCheckError):
        often()
