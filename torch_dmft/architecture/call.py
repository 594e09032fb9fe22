"""One call of a torch function, with the state of its arguments before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


def tensors_in(arguments: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and mappings, in order (a fast stand-in for ``tree_leaves``)."""
    if isinstance(arguments, Tensor):
        return [arguments]
    if isinstance(arguments, Mapping):
        arguments = arguments.values()
    elif not isinstance(arguments, tuple | list):
        return []
    tensors: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            tensors.append(argument)
        elif isinstance(argument, _NESTS):
            tensors += tensors_in(argument)
    return tensors


_NESTS = (tuple, list, Mapping)


def version(tensor: Tensor) -> int:
    """How often a tensor was written in place, through itself or through any view of it."""
    return -1 if tensor.is_inference() else tensor._version


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a torch function, with its plain name (``add`` for ``Tensor.__iadd__``, ``relu`` for ``relu_``).

    Attributes:
        function: the function.
        name: its plain name.
        args: its arguments by position.
        kwargs: its arguments by name.
        tensors: every tensor among the arguments.
        result: what it returned.
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
        attached = any(tensor.requires_grad for tensor in tensors)
        before = [version(tensor) for tensor in tensors]
        result = function(*args, **kwargs)
        written = [tensor for tensor, old in zip(tensors, before, strict=True) if version(tensor) != old]
        return cls(function, name, args, kwargs, tensors, result, attached, torch.is_grad_enabled(), written)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    @property
    def input(self) -> Tensor:
        """The first argument."""
        return self.argument(0, "input")

    @cached_property
    def results(self) -> list[Tensor]:
        """Every tensor in the result."""
        return tensors_in(self.result)
