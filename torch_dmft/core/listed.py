"""Names in a sentence, of which there may be many."""

from __future__ import annotations

from collections.abc import Iterable


def listed(names: Iterable[str]) -> str:
    """Up to four names, or the first three and how many more there are."""
    every = list(names)
    return ", ".join(every if len(every) <= 4 else [*every[:3], f"and {len(every) - 3} more"])
