"""What python objects hold, remembered so that it can be put back: attributes, containers, tensors, generators."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_WITHOUT_STATE = (
    *(str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device),
    *(FunctionType, BuiltinFunctionType, MethodType, ModuleType, nn.Parameter, nn.Module),
)
_PLAIN = frozenset({bool, int, float, str, type(None)})
"""The types of most attributes, which are looked up faster than a list of classes is gone through."""

_OF_MODULES = frozenset(vars(nn.Module()))
"""Attributes that every module has: its mode, parameters and buffers are somebody else's care, and running it adds no hooks."""


class Held:
    """Remembers what objects hold, and puts it back.

    Of a module that is its plain attributes; containers among them are remembered with their entries, tensors with their
    numbers, generators of torch, numpy and python with their states, and other objects with their attributes but not with what
    is behind these (a trainer holds half the world).
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], Any]] = []
        self._seen: dict[int, Any] = {}  # kept alive, so that no other object gets the number

    def module(self, module: nn.Module) -> None:
        """Remember the plain attributes of a module, apart from its submodules."""
        kept = {name: value for name, value in vars(module).items() if name not in _OF_MODULES}
        self._attributes(module, kept)
        for value in kept.values():
            self._note(value)

    def restore(self) -> None:
        """Put everything back."""
        for undo in reversed(self._undo):
            undo()

    def _note(self, value: Any) -> None:
        if type(value) in _PLAIN or isinstance(value, _WITHOUT_STATE) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, torch.Generator):
            state = value.get_state()
            self._undo.append(lambda: value.set_state(state))
        elif isinstance(value, random.Random):
            drawn = value.getstate()
            self._undo.append(lambda: value.setstate(drawn))
        elif hasattr(value, "bit_generator"):
            numbers = value.bit_generator.state
            self._undo.append(lambda: setattr(value.bit_generator, "state", numbers))
        elif hasattr(value, "get_state") and hasattr(value, "set_state") and type(value).__module__.startswith("numpy"):
            legacy = value.get_state()
            self._undo.append(lambda: value.set_state(legacy))
        elif isinstance(value, dict):
            self._entries(value, dict(value), value.update, value.values())
        elif isinstance(value, list | deque):
            self._entries(value, list(value), value.extend, value)
        elif isinstance(value, set):
            self._entries(value, set(value), value.update, ())
        elif isinstance(value, tuple):
            for entry in value:
                self._note(entry)
        elif hasattr(value, "__dict__"):
            self._attributes(value, dict(vars(value)))

    def _attributes(self, owner: Any, kept: dict[str, Any]) -> None:
        others = _OF_MODULES if isinstance(owner, nn.Module) else frozenset()

        def undo() -> None:
            now = vars(owner)
            for name in [name for name in now if name not in kept and name not in others]:
                del now[name]
            for name, value in kept.items():
                if now.get(name, owner) is not value:
                    now[name] = value

        self._undo.append(undo)

    def _entries(self, owner: Any, kept: Any, fill: Callable[[Any], Any], entries: Any) -> None:
        def undo() -> None:
            if not _same(owner, kept):
                owner.clear()
                fill(kept)

        self._undo.append(undo)
        for entry in list(entries):
            self._note(entry)

    def _tensor(self, tensor: Tensor) -> None:
        if tensor.is_inference() or tensor.requires_grad:
            return
        value, version = tensor.detach().clone(), tensor._version

        def undo() -> None:
            if tensor._version != version:
                with torch.no_grad():
                    tensor.copy_(value)

        self._undo.append(undo)


def _same(one: Any, other: Any) -> bool:
    """Whether two containers hold the very same objects in the same order."""
    if len(one) != len(other):
        return False
    if isinstance(one, dict):
        return all(a is b and one[a] is other[b] for a, b in zip(one, other, strict=True))
    return all(a is b for a, b in zip(one, other, strict=True))
