"""Schedules: which optimizer steps are recorded. A schedule is any predicate ``step -> bool``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError

Schedule = Callable[[int], bool]


@dataclass(frozen=True)
class Every:
    """Steps 0, n, 2n, ..."""

    interval: int

    def __call__(self, step: int) -> bool:
        """Whether this step is recorded."""
        return step % self.interval == 0


@dataclass(frozen=True)
class LogSpaced:
    """Step 0 and the integers nearest to ratio^0, ratio^1, ratio^2, ..."""

    ratio: float

    def __call__(self, step: int) -> bool:
        """Whether this step is recorded."""
        if step < 1:
            return step == 0
        exponent = math.log(step) / math.log(self.ratio)
        return any(round(self.ratio**power) == step for power in (math.floor(exponent), math.ceil(exponent)))


@dataclass(frozen=True)
class AtSteps:
    """The listed steps and no others."""

    steps: frozenset[int]

    def __call__(self, step: int) -> bool:
        """Whether this step is recorded."""
        return step in self.steps


@checked
def every(interval: int) -> Schedule:
    """The schedule 0, n, 2n, ...

    Args:
        interval: n >= 1, in optimizer steps.
    """
    if interval < 1:
        raise InvalidInputError("A recording interval is at least one step.", got=f"every({interval})")
    return Every(interval)


@checked
def log_spaced(points: int = 50, *, last: int = 10_000) -> Schedule:
    """The schedule 0 and about ``points`` steps evenly spaced in log(step) from 1 to ``last``.

    step_j = round(last^(j / (points - 1))), j = 0, 1, 2, ... Steps that round to the same integer are recorded once,
    and the spacing goes on beyond ``last``, so a run may be longer than planned.

    Args:
        points: number of points from 1 to ``last``, >= 2.
        last: the step up to which ``points`` counts, >= 2.
    """
    if points < 2 or last < 2:
        raise InvalidInputError(
            "Log spacing needs at least two points and a last step of at least 2.",
            got=f"log_spaced({points}, last={last})",
        )
    return LogSpaced(last ** (1 / (points - 1)))


@checked
def at_steps(steps: Iterable[int]) -> Schedule:
    """The schedule of exactly these steps.

    Args:
        steps: integers >= 0.
    """
    listed = frozenset(int(step) for step in steps)
    if not listed or min(listed) < 0:
        raise InvalidInputError("Steps to record are integers >= 0, at least one.", got=str(sorted(listed)[:5]))
    return AtSteps(listed)
