"""Prints: a few numbers by which two data sets, or two losses, are told apart without keeping either."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Print = tuple[float, ...]
"""A few numbers; the empty print tells nothing."""

_ROWS = 256
"""Rows of a data set that its print looks at."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ENTRIES = 64
"""Entries that are looked at of a tensor."""


def printed_rows(count: int) -> Tensor:
    """The rows that a print looks at: all of them, or 256 that are evenly spaced, ``(row,)`` integers on the CPU."""
    return torch.linspace(0, count - 1, min(count, _ROWS), dtype=torch.float64, device="cpu").round().long()


def data_print(count: int, *columns: Tensor) -> Print:
    """The print of a data set: its length, and size and projection on a fixed direction of every column.

    Order matters. A column x and its copy in another precision or shape have one print.

    Args:
        count: rows of the data set.
        *columns: the inputs, and if there are any the targets, of the rows ``printed_rows(count)``, each ``(row, ...)``.
    """
    numbers = [float(count)]
    for column in columns:
        x = column.detach().to("cpu", torch.complex128 if column.is_complex() else torch.float64).reshape(-1)
        x = torch.view_as_real(x).reshape(-1) if x.is_complex() else x
        size = float(x.norm())
        # Irrational frequency: no two places of a row, and no two rows, are weighted alike.
        direction = torch.cos(math.sqrt(2) * torch.arange(1, len(x) + 1, dtype=torch.float64, device="cpu") ** 1.5)
        numbers += [size, float(x @ direction) / (size or 1.0)]
    return tuple(numbers)


def prints_agree(mine: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether two prints are of the same thing, up to the rounding of float32; so says an empty one, which tells nothing."""
    if not mine or not theirs:
        return True
    return len(mine) == len(theirs) and all(
        math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-5) for a, b in zip(mine, theirs, strict=True)
    )


def checksum(tensor: Tensor) -> tuple[int, int]:
    """Two sums of the bits of a tensor, the second weighted by rows: equal numbers in equal order have equal sums."""
    values = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    bits = values.contiguous().view(_INTEGERS[values.element_size()]).reshape(len(values), -1).sum(1, dtype=torch.int64)
    places = torch.arange(1, len(bits) + 1, device=bits.device)
    return int(bits.sum()), int((bits * places).sum())  # integers wrap around, and so do not round


def some_entries(tensor: Tensor) -> Tensor:
    """A few entries of a tensor, evenly spaced: a view where its memory is contiguous."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # of a tensor spread over processes
    flat = local.detach().flatten()
    stride, columns = max(1, len(flat) // _ENTRIES), max(1, local.shape[-1]) if local.ndim else 1
    if stride > columns:  # to another column each time, by the golden ratio
        stride += round(columns * 0.618) - stride % columns
    return flat[:: max(1, stride)]
