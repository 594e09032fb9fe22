"""CPU and wall-clock time, medians, and exponents."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

T = TypeVar("T")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Spent:
    """What something took, in seconds."""

    cpu: float
    wall: float

    def json(self) -> dict[str, float]:
        return asdict(self)


def timed(function: Callable[[], T]) -> tuple[T, Spent]:
    """A function's answer and what it took."""
    cpu, wall = time.process_time(), time.perf_counter()
    answer = function()
    return answer, Spent(time.process_time() - cpu, time.perf_counter() - wall)


def median(spent: Sequence[Spent]) -> Spent:
    """The medians of CPU and of wall-clock time."""
    return Spent(statistics.median(one.cpu for one in spent), statistics.median(one.wall for one in spent))


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The power a in y ~ x^a through all points, by least squares of the logarithms."""
    u, v = [math.log(value) for value in x], [math.log(value) for value in y]
    return statistics.linear_regression(u, v).slope
