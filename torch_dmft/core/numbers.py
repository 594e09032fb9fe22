"""Numbers that a user sets: anything that is not a number, not finite or out of range is refused before any work."""

from __future__ import annotations

import math
from numbers import Integral, Real

from torch_dmft.core.errors import InvalidInputError


def require_number(
    name: str,
    value: object,
    *,
    at_least: int | float | None = None,
    above: int | float | None = None,
    below: int | float | None = None,
    remedy: str | None = None,
) -> None:
    """Refuse anything but a finite real number in a range.

    Args:
        name: what the user calls it.
        value: what was given.
        at_least: the smallest allowed value.
        above: what the value must exceed.
        below: what must exceed the value.
        remedy: how to do better; None for the range itself.

    Raises:
        InvalidInputError: naming the range.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not _within(value, at_least, above, below):
        _refuse(name, "a finite number", value, at_least, above, below, remedy)


def require_whole(name: str, value: object, *, at_least: int, remedy: str | None = None) -> None:
    """Refuse anything but an integer of at least some size.

    Args:
        name: what the user calls it.
        value: what was given.
        at_least: the smallest allowed value.
        remedy: how to do better; None for the range itself.

    Raises:
        InvalidInputError: naming the range.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not _within(value, at_least, None, None):
        _refuse(name, "an integer", value, at_least, None, None, remedy)


def _within(value: object, at_least: int | float | None, above: int | float | None, below: int | float | None) -> bool:
    number = float(value)  # type: ignore[arg-type]
    too_small = (at_least is not None and number < at_least) or (above is not None and not number > above)
    return not too_small and (below is None or number < below)


def _refuse(
    name: str,
    kind: str,
    value: object,
    at_least: int | float | None,
    above: int | float | None,
    below: int | float | None,
    remedy: str | None,
) -> None:
    limits = {">=": at_least, ">": above, "<": below}
    ranges = [f"{sign} {limit:g}" for sign, limit in limits.items() if limit is not None]
    wanted = " and ".join([kind, *ranges]).replace(" and ", " ", 1)
    raise InvalidInputError(
        f"{name} must be {wanted}.", got=f"{name}={value!r}", remedy=remedy or f"{wanted}, as a plain Python number"
    )
