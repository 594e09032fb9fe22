"""Views of one tensor: whether they have entries in common."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def geometry(view: Tensor) -> tuple[object, ...]:
    """Which entries of its storage a view has, and in which order: equal for equal views."""
    return view.data_ptr(), tuple(view.shape), view.stride()


def are_apart(views: Sequence[Tensor]) -> bool:
    """Whether no two views of one storage have an entry in common."""
    size = views[0].element_size()
    start = min(view.data_ptr() for view in views)
    places = []
    for view in views:
        reach = sum((n - 1) * stride for n, stride in zip(view.shape, view.stride(), strict=True)) + 1
        first = (view.data_ptr() - start) // size
        places.append((first, first + reach, view))
    places.sort(key=lambda place: place[:2])
    if all(end <= begin for (_, end, _), (begin, _, _) in pairwise(places)):
        return True
    taken = torch.zeros(max(end for _, end, _ in places), dtype=torch.int32, device="cpu")
    for first, _, view in places:
        strides = [stride if n > 1 else 1 for n, stride in zip(view.shape, view.stride(), strict=True)]
        entries = torch.zeros_like(taken)
        entries[first:].as_strided(view.shape, strides).fill_(1)
        taken += entries
    return int(taken.max()) <= 1
