"""Whether tensors are what they were when last seen: a few entries of each, which cost microseconds and no synchronisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_ENTRIES = 64
"""Entries looked at of every tensor."""
_PENDING = 256
"""Comparisons that wait on their device before they are read."""


class Untouched:
    """Tells which tensors were changed between two moments, ``left`` and ``seen_again``, of which there may be many pairs.

    Of every tensor 64 evenly spaced entries are compared. A change of fewer entries than that may be missed once, and is
    found when it is made again and again.
    """

    def __init__(self) -> None:
        self._before: tuple[dict[str, int], Tensor] | None = None
        self._pending: list[tuple[dict[str, int], Tensor]] = []
        self._changed: dict[str, None] = {}

    def left(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember tensors, by name."""
        self._before = _sample(tensors)

    def seen_again(self, tensors: Mapping[str, Tensor]) -> None:
        """Compare tensors with what was remembered of them."""
        if self._before is None:
            return
        lengths, before = self._before
        now_lengths, now = _sample(tensors)
        if lengths != now_lengths:
            same = {name: length for name, length in now_lengths.items() if lengths.get(name) == length}
            self._changed |= dict.fromkeys(name for name in now_lengths if name not in same)
            before, now = (_only(same, *both) for both in (self._before, (now_lengths, now)))
            lengths = same
        before = before.to(now.device)  # a model may have moved
        changed = (now != before) & ~((now != now) & (before != before))  # NaN stays NaN
        self._pending.append((lengths, changed))
        if len(self._pending) >= _PENDING or not now.is_cuda:
            self._read()

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the tensors that were changed."""
        self._read()
        return tuple(self._changed)

    def _read(self) -> None:
        for lengths, changed in self._pending:
            if bool(changed.any()):
                parts = changed.cpu().split(list(lengths.values()))
                self._changed |= dict.fromkeys(name for name, part in zip(lengths, parts, strict=True) if part.any())
        self._pending = []

    def state_dict(self) -> dict[str, Any]:
        """What is remembered and what was found, as plain containers."""
        before = None if self._before is None else (dict(self._before[0]), self._before[1].cpu())
        return {"before": before, "changed": list(self.changed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what was remembered elsewhere."""
        self._before, self._changed = state["before"], dict.fromkeys(state["changed"])


def _only(names: Mapping[str, int], lengths: Mapping[str, int], entries: Tensor) -> Tensor:
    """The entries of some of the tensors of a sample."""
    parts = dict(zip(lengths, entries.split(list(lengths.values())), strict=True))
    return torch.cat([entries[:0], *(parts[name] for name in names)])


@torch.no_grad()
def _sample(tensors: Mapping[str, Tensor]) -> tuple[dict[str, int], Tensor]:
    """Some entries of every tensor, one after the other, and how many of each."""
    parts = {}
    for name, tensor in tensors.items():
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # of a tensor spread over processes
        entries = local.detach().flatten()
        parts[name] = entries[:: max(1, len(entries) // _ENTRIES) | 1]  # an odd stride does not stay in one column
    lengths = {name: len(part) for name, part in parts.items()}
    if not parts:
        return lengths, torch.empty(0, device="cpu")
    device = next(iter(parts.values())).device
    return lengths, torch.cat([part.to(device) for part in parts.values()])
