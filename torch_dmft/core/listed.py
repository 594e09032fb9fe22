"""Names in a sentence, of which there may be many."""

from __future__ import annotations

from collections.abc import Iterable


def listed(names: Iterable[str]) -> str:
    """Up to four names, or the first three and how many more there are."""
    every = list(names)
    return ", ".join(every if len(every) <= 4 else [*every[:3], f"and {len(every) - 3} more"])


def weight_label(position: int, path: str) -> str:
    """A weight by its index and its module path: ``"weight 1 (fc2)"``; ``"weight 0 (module 1)"`` where that is a number too."""
    return f"weight {position} ({path})" if any(map(str.isalpha, path)) else f"weight {position} (module {path})"
