"""One call of a torch function, with the state of its arguments before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def tensors_in(arguments: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and mappings, in order (a fast stand-in for ``tree_leaves``)."""
    if isinstance(arguments, Tensor):
        return [arguments]
    if not isinstance(arguments, tuple | list):
        if not isinstance(arguments, Mapping):
            return []
        arguments = arguments.values()
    tensors: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            tensors.append(argument)
        elif type(argument) not in _SINGLE and isinstance(argument, _NESTS):
            tensors += tensors_in(argument)
    return tensors


_NESTS = (tuple, list, Mapping)
_SINGLE = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})
"""What most arguments that are no tensors are: to see that they hold none, their type is enough."""


def version(tensor: Tensor) -> int:
    """How often a tensor was written in place, through itself or through any view of it."""
    try:
        return tensor._version
    except RuntimeError:  # tensors of inference mode do not count
        return -1


@dataclass(eq=False, slots=True)  # not frozen: a pass makes thousands, and frozen ones take five times as long to make
class Call:
    """One call of a torch function, with its plain name (``add`` for ``Tensor.__iadd__``, ``relu`` for ``relu_``).

    Attributes:
        function: the function.
        name: its plain name.
        args: its arguments by position.
        kwargs: its arguments by name.
        tensors: every tensor among the arguments.
        result: what it returned.
        results: every tensor in it.
        attached: whether gradients flow into one of the arguments.
        graded: whether gradients were on.
        written: the arguments that it changed in place.
    """

    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    result: Any
    results: list[Tensor]
    attached: bool
    graded: bool
    written: list[Tensor]

    @classmethod
    def made(
        cls,
        function: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
    ) -> Call:
        """Make the call and note the state of its arguments before and after."""
        attached = True in [tensor.requires_grad for tensor in tensors]
        before = [version(tensor) for tensor in tensors]
        result = function(*args, **kwargs)
        written = [tensor for tensor, old in zip(tensors, before, strict=True) if version(tensor) != old]
        graded = torch.is_grad_enabled()
        return cls(function, name, args, kwargs, tensors, result, tensors_in(result), attached, graded, written)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    @property
    def input(self) -> Tensor:
        """The first argument."""
        return self.argument(0, "input")
