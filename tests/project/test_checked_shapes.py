"""The tests check the shapes in annotations; were the import hook not installed, they would pass unnoticed."""

import jaxtyping
import pytest
import torch

from torch_dmft.comparison.metrics import cosines


def test_a_wrong_shape_does_not_pass():
    with pytest.raises(jaxtyping.TypeCheckError):
        cosines(torch.ones(2, 3), torch.ones(4, 3))
