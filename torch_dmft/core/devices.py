"""Devices that a user names."""

from __future__ import annotations

import torch

from torch_dmft.core.errors import InvalidInputError


def usable(device: torch.device | str, *, remedy: str = '"cpu", or "cuda" where there is a GPU') -> torch.device:
    """The device of this name, on which tensors can be made here.

    Raises:
        InvalidInputError: if there is none; with the reason.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InvalidInputError(
            f"This device cannot be used: {reason}.",
            got=repr(str(device)),
            remedy=remedy,
        ) from error
