"""Whether tensors are what they were when last seen: a few entries of each, which cost microseconds and no synchronisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_dmft.core.prints import some_entries

_PENDING = 256
"""Comparisons that wait on their device before they are read."""


class Untouched:
    """Tells which tensors were changed between two moments, ``left`` and ``seen_again``, of which there may be many pairs.

    Of every tensor 64 evenly spaced entries are compared. A change of fewer entries than that may be missed once, and is
    found when it is made again and again.
    """

    def __init__(self) -> None:
        self._before: dict[str, int] = {}  # names and numbers of entries of what was left
        self._entries: Tensor | None = None
        self._pending: list[tuple[dict[str, int], Tensor]] = []
        self._changed: dict[str, None] = {}
        self._views: dict[str, tuple[int, Tensor]] = {}  # where a tensor's memory was, and some of its entries

    def left(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember tensors, by name."""
        self._before, self._entries = self._sample(tensors)

    def seen_again(self, tensors: Mapping[str, Tensor]) -> None:
        """Compare tensors with what was remembered of them."""
        if self._entries is None:
            return
        lengths, before = self._before, self._entries
        now_lengths, now = self._sample(tensors)
        if lengths != now_lengths:
            same = {name: length for name, length in now_lengths.items() if lengths.get(name) == length}
            self._changed |= dict.fromkeys(name for name in now_lengths if name not in same)
            before, now = _only(same, lengths, before), _only(same, now_lengths, now)
            lengths = same
        if now.is_cpu and before.is_cpu and torch.equal(now, before):
            return
        before = before.to(now.device)  # a model may have moved
        changed = (now != before) & ~((now != now) & (before != before))  # NaN stays NaN
        self._pending.append((lengths, changed))
        if len(self._pending) >= _PENDING or now.is_cpu:
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

    def _sample(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, int], Tensor]:
        """How many entries of every tensor, and the entries, one tensor after the other."""
        views = {}
        for name, tensor in tensors.items():
            at, view = self._views.get(name, (0, None))
            if view is None or at != tensor.data_ptr() or not tensor.is_contiguous():
                at, view = tensor.data_ptr(), some_entries(tensor)
                self._views[name] = at, view
            views[name] = view
        lengths = {name: len(view) for name, view in views.items()}
        if not views:
            return lengths, torch.empty(0, device="cpu")
        parts = tuple(views.values())
        devices = {part.device for part in parts}
        return lengths, torch.cat(parts if len(devices) == 1 else [part.to(parts[0].device) for part in parts])

    def state_dict(self) -> dict[str, Any]:
        """What is remembered and what was found, as plain containers."""
        entries = None if self._entries is None else self._entries.cpu()
        return {"before": dict(self._before), "entries": entries, "changed": list(self.changed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what was remembered elsewhere."""
        self._before, self._entries = dict(state["before"]), state["entries"]
        self._changed = dict.fromkeys(state["changed"])


def _only(names: Mapping[str, int], lengths: Mapping[str, int], entries: Tensor) -> Tensor:
    """The entries of some of the tensors of a sample."""
    parts = dict(zip(lengths, entries.split(list(lengths.values())), strict=True))
    return torch.cat([entries[:0], *(parts[name] for name in names)])
