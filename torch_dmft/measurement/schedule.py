"""Schedules: which optimizer steps are recorded. A schedule is any predicate ``step -> bool``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import require_whole

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


@dataclass(frozen=True)
class Asked:
    """A predicate of the user's.

    Raises:
        InvalidInputError: if it fails.
    """

    predicate: Schedule

    def __call__(self, step: int) -> bool:
        """Whether this step is recorded."""
        try:
            return bool(self.predicate(step))
        except Exception as error:
            raise InvalidInputError(
                "`schedule` must say of every step whether it is recorded.",
                got=f"{type(error).__name__} at step {step}: {error}",
                remedy="a function step -> bool, such as every(5), log_spaced(50) or lambda step: step % 5 == 0",
            ) from error


@checked
def every(interval: int) -> Schedule:
    """The schedule 0, n, 2n, ...

    Args:
        interval: n >= 1, in optimizer steps.
    """
    require_whole("interval", interval, at_least=1, remedy="at least one step: every(1) records all of them")
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
    require_whole("points", points, at_least=2, remedy="at least two points, 1 and last among them")
    require_whole("last", last, at_least=2, remedy="at least two points, and a last step of at least 2")
    return LogSpaced(last ** (1 / (points - 1)))


@checked
def at_steps(steps: Iterable[int]) -> Schedule:
    """The schedule of exactly these steps.

    Args:
        steps: integers >= 0.
    """
    numbers = steps.tolist() if isinstance(steps, Tensor) else list(steps)
    several = numbers if isinstance(numbers, list) else [numbers]
    if not several:
        raise InvalidInputError(
            "Steps to record must be integers >= 0, at least one.",
            got="none",
            remedy="at_steps([0, 10, 100]), or every(10)",
        )
    for step in several:
        require_whole("a step to record", step, at_least=0, remedy="at_steps([0, 10, 100]), integers")
    return AtSteps(frozenset(map(int, several)))
