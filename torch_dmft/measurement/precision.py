"""In which precision a network multiplies, and that it does not compute in a lower one where that can be helped."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def precision_of(outputs: Iterable[Tensor], default: torch.dtype) -> torch.dtype:
    """The lowest precision in which a network multiplies."""
    dtypes = {one.dtype for one in outputs if one.is_floating_point()}
    return min(dtypes, key=lambda dtype: (dtype.itemsize, str(dtype))) if dtypes else default


def precision_note(precision: torch.dtype, model: nn.Module) -> tuple[str, ...]:
    """That a network computes in a lower precision than that of its parameters."""
    kept = precision_of(model.parameters(), precision)
    if precision.itemsize >= kept.itemsize:
        return ()
    short, long = (str(dtype).removeprefix("torch.") for dtype in (precision, kept))
    return (f"the model multiplies in {short} while its parameters are {long} (autocast inside of it)",)
