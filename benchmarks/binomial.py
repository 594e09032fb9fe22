"""Shares of a count, with exact bounds."""

from __future__ import annotations


def bounds(hits: int, trials: int, level: float = 0.05) -> tuple[float, float]:
    """Exact bounds of a probability (Clopper and Pearson, Biometrika 26:404, 1934).

    Beyond each of them, as many hits as there were, or more extreme ones, have a probability below ``level / 2``.

    Args:
        hits: successes that were counted.
        trials: of how many.
        level: probability that the bounds miss, at most.
    """
    from scipy.special import betaincinv  # slow to import

    lower = float(betaincinv(hits, trials - hits + 1, level / 2)) if hits else 0.0
    upper = float(betaincinv(hits + 1, trials - hits, 1 - level / 2)) if hits < trials else 1.0
    return lower, upper


def share(hits: int, trials: int) -> str:
    """A share in words, with its bounds."""
    if not trials:
        return "of none"
    lower, upper = bounds(hits, trials)
    return f"{hits / trials:.1%} ({lower:.1%} to {upper:.1%})"
