"""Series: a number that is one for all steps, or one for every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Number = float | Tensor
"""A setting: one number, or one for every step: ``(steps,)`` float64."""
Numbers = Mapping[str, Number]

CLOSE = 1e-6
"""Relative difference of two numbers that are the same: plans and schedulers compute them in different orders."""


def series(value: float | Sequence[float] | Tensor) -> Number:
    """A number as a float, or ``(steps,)`` float64 if it has one for every step and they differ."""
    if isinstance(value, int | float):
        return float(value)
    values = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    if values.ndim == 0:
        return float(values)
    return float(values[0]) if len(values) and bool((values == values[0]).all()) else values


def shown(value: Number) -> str:
    """A number in a few characters: ``"0.1"``, or ``"0.1 to 0.001"`` of one that changes."""
    if not isinstance(value, Tensor):
        return f"{value:g}"
    return f"{value.min():.3g} to {value.max():.3g}" if len(value) else "none"


def constant(value: Number) -> float | None:
    """The number if it is one; None if it changes from step to step."""
    return None if isinstance(value, Tensor) else value


def is_ever(value: Number) -> bool:
    """Whether a number is in any step not zero."""
    return bool(value.any()) if isinstance(value, Tensor) else bool(value)


def at_step(value: Number, step: int) -> float:
    """What a number is in a step."""
    return float(value[step]) if isinstance(value, Tensor) else value


def first_difference(mine: Number, theirs: Number, horizon: int) -> int | None:
    """The first of the steps 0..horizon - 1 in which two numbers differ."""
    if not isinstance(mine, Tensor) and not isinstance(theirs, Tensor):
        return (
            None
            if math.isclose(mine, theirs, rel_tol=CLOSE, abs_tol=1e-300) or (math.isnan(mine) and math.isnan(theirs))
            else 0
        )
    a, b = (
        each[:horizon] if isinstance(each, Tensor) else torch.full((horizon,), each, dtype=torch.float64, device="cpu")
        for each in (mine, theirs)
    )
    length = min(len(a), len(b))
    off = (~torch.isclose(a[:length], b[:length], rtol=CLOSE, atol=1e-300, equal_nan=True)).nonzero()
    return int(off[0]) if len(off) else None
