"""One training of a sweep: a set-up at one value of the axis, one learning rate and one seed."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch_dmft.referee.setup import Batches, Factory, set_up

_DIVERGED = 10.0
"""Times its first value at which a loss is given up; one that may be negative, at as much above its first value."""
_UNSTABLE = 2.0
"""Times its first value above which a loss that is finite at the end counts as unstable; likewise."""


@dataclass(frozen=True)
class Run:
    """What one training came to.

    Attributes:
        value: of the axis, a width for example.
        power: of the grid, lr = base * 2^power.
        seed: of initial weights and batches.
        loss: mean over the last quarter of the steps; infinite if training diverged or ended at twice its first loss.
        first: the loss before the first step.
        steps: that were trained; fewer than asked for if it diverged.
        seconds: what it took.
    """

    value: int
    power: int
    seed: int
    loss: float
    first: float
    steps: int
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether the rate is stable."""
        return math.isfinite(self.loss)


def takes_rate(factory: Factory) -> bool:
    """Whether a factory has an argument ``lr``; else rates of a sweep multiply those of its optimizers."""
    try:
        return "lr" in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a builtin that tells nothing
        return False


def of_value(data: Batches | None, value: int) -> Batches | None:
    """Batches of a value of the axis: where ``data`` needs two arguments, (seed, value), it is asked for these.

    A second one that has a default is an option of its own, such as a batch size.
    """
    return partial(_of_both, data, value) if callable(data) and not _takes(data, 1) and _takes(data, 2) else data


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):  # not so many, or a builtin that tells nothing
        return False
    return True


def _of_both(data: Callable[..., Any], value: int, seed: int) -> Any:
    return data(seed, value)


def trained(factory: Factory, data: Batches | None, value: int, power: int, seed: int, lr: float, steps: int) -> Run:
    """Train once.

    Args:
        factory: ``(value, lr) -> set-up``, or ``value -> set-up`` whose rates are multiplied by ``lr``.
        data: as ``set_up`` takes it, or ``(seed, value) -> batches``.
        value: of the axis.
        power: of the grid, noted.
        seed: of initial weights and batches.
        lr: the rate.
        steps: how many at most.
    """
    started = time.perf_counter()
    by_rate = takes_rate(factory)
    made: Callable[[int], Any] = (lambda value: factory(value, lr=lr)) if by_rate else factory  # type: ignore[call-arg]
    setup = set_up(made, value, seed, of_value(data, value))
    if not by_rate:
        for optimizer in setup.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * lr
    seen: list[float] = []
    with setup.draws():
        for batch in setup.batches(seed):
            seen.append(setup.step(batch))
            if len(seen) == steps or has_diverged(seen[-1], seen[0]):
                break
    return Run(value, power, seed, final_loss(seen), seen[0], len(seen), time.perf_counter() - started)


def has_diverged(loss: float, first: float) -> bool:
    """Whether a loss is given up, beside the first of its training."""
    return not loss <= _times(_DIVERGED, first)


def _times(factor: float, first: float) -> float:
    """The first loss and factor - 1 times its size."""
    return first + (factor - 1) * abs(first)


def final_loss(losses: Sequence[float]) -> float:
    """The mean over the last quarter of the steps, one at the least; infinite if training was unstable.

    Args:
        losses: before every step, up to the first at which it diverged.
    """
    last, first = losses[-max(1, len(losses) // 4) :], losses[0]
    mean = sum(last) / len(last)
    is_stable = mean <= _times(_UNSTABLE, first) and not any(has_diverged(loss, first) for loss in losses)
    return mean if is_stable else math.inf
