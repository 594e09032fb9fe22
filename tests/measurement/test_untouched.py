"""Changes of tensors are seen from a few of their entries, and checks of gradients share no period with a loop."""

from __future__ import annotations

import pytest
import torch

from torch_dmft.measurement.gradient_check import is_due
from torch_dmft.measurement.untouched import Untouched


@pytest.mark.parametrize("shape", [(256, 784), (1024, 1024), (64, 3, 7, 7), (5,), (300,), (1, 1)])
@pytest.mark.parametrize("part", [0.25, 0.5, 0.9])
def test_a_change_of_some_columns_is_seen_wherever_they_are(shape: tuple[int, ...], part: float) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for first in (True, False):
        watch, columns = Untouched(), max(1, round(part * shape[-1]))
        watch.left({"weight": weight})
        watch.seen_again({"weight": weight})
        assert watch.changed == ()
        (weight[..., :columns] if first else weight[..., -columns:]).mul_(1.01)
        watch.seen_again({"weight": weight})
        assert watch.changed == ("weight",)


def test_nan_stays_nan_and_a_tensor_of_another_shape_is_another() -> None:
    watch, weight = Untouched(), torch.full((4, 4), torch.nan)
    watch.left({"a": weight, "b": torch.zeros(3)})
    watch.seen_again({"a": weight.clone(), "b": torch.zeros(3)})
    assert watch.changed == ()
    watch.seen_again({"a": weight, "b": torch.zeros(4)})
    assert watch.changed == ("b",)


def test_what_was_seen_is_saved() -> None:
    watch, later = Untouched(), Untouched()
    watch.left({"a": torch.zeros(3)})
    later.load_state_dict(watch.state_dict())
    later.seen_again({"a": torch.ones(3)})
    assert later.changed == ("a",)


@pytest.mark.parametrize("period", [4, 10, 16, 100])
def test_checks_come_at_all_places_of_a_period(period: int) -> None:
    due = [step for step in range(100_000) if is_due(step, last=step, recorded=False)]
    assert {0, 1, 2, 3, 4} <= set(due)
    places = {step % period for step in due}
    assert len(places) >= min(period / 2, len(due) / 3)
    assert all(sum(start <= step < 2 * start for step in due) <= 6 for start in (8, 64, 1024, 32768))
