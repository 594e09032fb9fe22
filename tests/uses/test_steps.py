"""Scales are those of tensors, not of the places at which they were stored."""

from __future__ import annotations

import math

import pytest
import torch

from torch_dmft.uses.steps import Steps


def test_a_number_stored_where_a_tensor_was_has_no_scale() -> None:
    steps, features = Steps(), torch.ones(5, 7)
    kept = features.sum()
    steps.note("", "sum", (features,), {}, ("data",), kept, ())
    for _ in range(20):
        steps.note("", "sum", (features,), {}, ("data",), features.sum(), ())
    assert steps.scale(kept).numbers == {0: 1.0}
    assert steps.taken[0].log == pytest.approx(math.log(35))
    assert not any(steps.scale(torch.tensor(float(number))) for number in range(100))


def test_what_autograd_detaches_is_no_step_and_has_the_scale_of_its_storage() -> None:
    """Torch 2.6 detaches what it saves now once and now twice; two widths then seemed to take other steps."""
    steps, features = Steps(), torch.ones(5, 7)
    summed = features.sum(0)
    steps.note("", "sum", (features, 0), {}, ("data", None), summed, ())
    steps.note("", "detach", (summed,), {}, ("data",), summed.detach(), ())
    assert [step.operator for step in steps.taken] == ["sum"]
    assert steps.scale(summed.detach()).numbers == {0: 1.0}
