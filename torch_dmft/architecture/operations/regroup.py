"""Which axes of a reshaped tensor came from which."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from operator import mul

Group = tuple[tuple[int, ...], tuple[int, ...]]


@lru_cache(maxsize=1024)  # the same few in every block of a model
def regroup(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[Group, ...]:
    """The finest grouping of axes in which each group of ``new`` holds the entries of one group of ``old``.

    A group ends wherever the products of sizes agree. Axes of size 1 belong to no group.

    Args:
        old: shape before.
        new: shape after, with as many entries.

    Returns:
        Pairs (axes of ``old``, axes of ``new``), in order: ``regroup((2, 3, 4), (2, 12))`` is
        ``(((0,), (0,)), ((1, 2), (1,)))``.
    """
    olds = [axis for axis, size in enumerate(old) if size != 1]
    news = [axis for axis, size in enumerate(new) if size != 1]
    old_ends = list(accumulate((old[axis] for axis in olds), mul))
    new_ends = list(accumulate((new[axis] for axis in news), mul))
    groups: list[Group] = []
    i = j = 0
    for end in sorted(set(old_ends) & set(new_ends)):
        after_i, after_j = old_ends.index(end) + 1, new_ends.index(end) + 1
        groups.append((tuple(olds[i:after_i]), tuple(news[j:after_j])))
        i, j = after_i, after_j
    return tuple(groups)
