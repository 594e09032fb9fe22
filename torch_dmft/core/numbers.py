"""Settings of a user: a number that is none, not finite or out of range, and an unknown word, are refused before any work."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real

from torch_dmft.core.errors import InvalidInputError

LARGEST = 1e15
"""Size that no setting exceeds: its square, and its products with widths, are numbers in float32."""
SMALLEST = 1 / LARGEST
"""What positive settings are at least that are divided by."""
MOST = 2**63
"""What integers stay below: torch stores no larger ones."""


def is_usual(value: Real) -> bool:
    """Whether a number is finite, and of a size of at most ``LARGEST``."""
    return bool(-LARGEST <= value <= LARGEST)  # type: ignore[operator]


def require_number(
    name: str,
    value: object,
    *,
    at_least: int | float | None = None,
    above: int | float | None = None,
    below: int | float | None = None,
    remedy: str | None = None,
) -> None:
    """Refuse anything but a finite real number in a range, of a size of at most ``LARGEST``.

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
    is_number = isinstance(value, Real) and not isinstance(value, bool) and is_usual(value)
    if not is_number or not _within(value, at_least, above, below):
        _refuse(name, "a finite number", value, at_least, above, below, remedy)


def require_whole(
    name: str, value: object, *, at_least: int, at_most: int = MOST - 1, remedy: str | None = None
) -> None:
    """Refuse anything but an integer in a range.

    Args:
        name: what the user calls it.
        value: what was given.
        at_least: the smallest allowed value.
        at_most: the largest one.
        remedy: how to do better; None for the range itself.

    Raises:
        InvalidInputError: naming the range.
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if is_whole and at_least <= value <= at_most:  # type: ignore[operator]
        return
    too_large = is_whole and value > at_most  # type: ignore[operator]
    _refuse(name, "an integer", value, at_least, None, at_most + 1 if too_large else None, remedy)


def require_seed(name: str, value: object) -> None:
    """Refuse anything but a seed that every source of random numbers takes, 0..2^63 - 1.

    Raises:
        InvalidInputError: naming the range.
    """
    require_whole(name, value, at_least=0, at_most=MOST - 2)  # whoever needs a second seed takes the next


def require_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse anything but one of some words.

    Raises:
        InvalidInputError: listing them.
    """
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        listed = ", ".join(f'"{one}"' for one in known)
        raise InvalidInputError(f"`{name}` must be one of {listed}.", got=f"{name}={shown(value)}", remedy=listed)


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
    is_huge = isinstance(value, Real) and not isinstance(value, bool) and not is_usual(value)
    limits = {">=": at_least, ">": above, "<": LARGEST if below is None and is_huge else below}
    ranges = [f"{sign} {limit:g}" for sign, limit in limits.items() if limit is not None]
    wanted = " and ".join([kind, *ranges]).replace(" and ", " ", 1)
    raise InvalidInputError(
        f"{name} must be {wanted}.",
        got=f"{name}={shown(value)}",
        remedy=remedy or f"{wanted}, as a plain Python number",
    )


def shown(value: object) -> str:
    """A value in a line; integers of many digits by their size."""
    if isinstance(value, Integral) and abs(int(value)) >= MOST:
        return f"an integer of {int(value).bit_length()} bits"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
