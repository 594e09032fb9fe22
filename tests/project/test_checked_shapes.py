"""The tests check the shapes in annotations; were the import hook not installed, they would pass unnoticed."""

import contextlib

import jaxtyping
import pytest
import torch

from tests.checked_imports import EVERY
from torch_dmft.comparison.metrics import cosines


def test_a_wrong_shape_does_not_pass():
    wrong = torch.ones(2, 3), torch.ones(4, 3)
    with pytest.raises(jaxtyping.TypeCheckError):
        for _ in range(EVERY):  # other tests may have called it often, see checked_imports
            with contextlib.suppress(RuntimeError):
                cosines(*wrong)
