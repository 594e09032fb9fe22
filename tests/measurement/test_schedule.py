from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.measurement import at_steps, every, log_spaced


def test_every() -> None:
    assert [step for step in range(10) if every(3)(step)] == [0, 3, 6, 9]


def test_at_steps() -> None:
    assert [step for step in range(10) if at_steps(range(2, 9, 3))(step)] == [2, 5, 8]


@given(points=st.integers(2, 60), last=st.integers(2, 2000))
def test_log_spaced_is_the_rounded_geometric_sequence(points: int, last: int) -> None:
    schedule = log_spaced(points, last=last)
    ratio = last ** (1 / (points - 1))
    expected = {0} | {round(ratio**power) for power in range(2 * points)}
    assert {step for step in range(last + 1) if schedule(step)} == {step for step in expected if step <= last}
    assert schedule(last)


def test_log_spaced_goes_on_beyond_last() -> None:
    """The same number of records per decade, before and after."""
    schedule = log_spaced(31, last=1000)
    decades = [sum(schedule(step) for step in range(start, 10 * start)) for start in (100, 1000, 10_000)]
    assert decades == [10, 10, 10]


def test_schedules_print_themselves() -> None:
    assert str(every(5)) == "Every(interval=5)"


def test_refusals() -> None:
    with pytest.raises(InvalidInputError, match="at least one step"):
        every(0)
    with pytest.raises(InvalidInputError, match="two points"):
        log_spaced(1)
    with pytest.raises(InvalidInputError, match=">= 0"):
        at_steps([])
    with pytest.raises(InvalidInputError, match=">= 0"):
        at_steps([-1])
