"""Refuse a measurement that would not fit in memory, before allocating it."""

from __future__ import annotations

import psutil
import torch

from torch_dmft.core.errors import InsufficientMemoryError


def require_memory(needed: int, device: torch.device, *, what: str, remedy: str) -> None:
    """Check an estimate against what is free now.

    Args:
        needed: bytes about to be allocated.
        device: where.
        what: what needs them, for the message.
        remedy: how to need less.

    Raises:
        InsufficientMemoryError: if more is needed than is free; the message has both numbers.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise InsufficientMemoryError(
            f"{what} needs about {needed / 2**30:.1f} GiB of memory.", got=f"{free / 2**30:.1f} GiB free", remedy=remedy
        )
