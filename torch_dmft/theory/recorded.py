"""The steps of a run that are kept: all, one, or those of a list, each once and in order."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.memory import require_memory

_MANY = 10**7
"""Steps whose numbers alone take memory."""


def recorded_steps(record: Iterable[int] | int | Tensor | None, steps: int) -> Tensor:
    """The steps to keep, sorted and each once: ``(time,)`` integers in 0..steps; None for all.

    Args:
        record: what is asked for.
        steps: length of the run.

    Raises:
        InvalidInputError: if one lies outside the run.
        InsufficientMemoryError: if the numbers of all steps do not fit.
    """
    if record is None:
        if steps >= _MANY:
            remedy = "record=, the steps to keep, such as range(0, steps + 1, 1000)"
            require_memory(32 * steps, torch.device("cpu"), what=f"A record of all {steps} steps", remedy=remedy)
        return torch.arange(steps + 1, device="cpu")
    try:
        wanted = [record] if isinstance(record, int) else record
        if isinstance(wanted, range) and len(wanted):
            wanted = torch.arange(wanted.start, wanted.stop, wanted.step, device="cpu")
        kept = wanted if isinstance(wanted, Tensor) else torch.as_tensor(list(wanted))
        if kept.ndim > 1:
            raise ValueError
        if kept.ndim != 1 or bool((kept[1:] <= kept[:-1]).any()):  # sorting millions takes a second
            kept = torch.unique(kept)
    except (TypeError, ValueError, RuntimeError):
        kept = torch.zeros(0)
    is_list = record is not True and len(kept) > 0 and kept.dtype == torch.int64
    if not is_list or int(kept[0]) < 0 or int(kept[-1]) > steps:
        raise InvalidInputError(
            f"Steps to record must be integers in 0..{steps}.",
            got=f"{record!r}",
            remedy="record=range(0, steps + 1, 10)",
        )
    return kept


def count_recorded(record: Iterable[int] | int | Tensor | None, steps: int) -> int:
    """How many steps ``recorded_steps`` would keep; those of a range, and all, are not listed.

    Raises:
        InvalidInputError: if one lies outside the run.
    """
    if record is None:
        return steps + 1
    if isinstance(record, range) and len(record) > 1:
        recorded_steps([record[0], record[-1]], steps)
        return len(record)
    return len(recorded_steps(record, steps))
