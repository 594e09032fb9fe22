"""What functions and modules compute, as plain values that can be compared: their code, and the numbers that it reads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.Size)
_OF_MODULES = frozenset(vars(nn.Module()))
"""What every module has: tensors and modules, which are looked at by themselves, and its mode."""


def code_of(function: Callable[..., Any] | str | int) -> tuple[Any, ...]:
    """The code of a function or a module: instructions, constants, defaults, what it encloses, and functions of its own file.

    Functions that compute something else have other values, unless they differ in a function of another file, or in an object
    that is no plain value, tensor, function or module.

    Args:
        function: any callable; a plain value tells itself.
    """
    return _told(function, {})


def _told(value: Any, seen: dict[int, object]) -> tuple[Any, ...]:
    """A value as a tuple of plain values and tensors; of what is met again, only its type."""
    if isinstance(value, Tensor):
        return ("tensor", value)
    if isinstance(value, _PLAIN):
        return ("value", repr(value))
    kind = type(value)
    name = (f"{kind.__module__}.{kind.__qualname__}",)
    if id(value) in seen:
        return name
    seen[id(value)] = value  # kept, so that no other object gets its place in memory
    if isinstance(value, list | tuple):
        return (*name, *(_told(one, seen) for one in value))
    if isinstance(value, set | frozenset):
        return (*name, *sorted(map(repr, value)))
    if isinstance(value, dict):
        return (*name, *((str(key), _told(one, seen)) for key, one in value.items()))
    if isinstance(value, CodeType):
        return (value.co_code.hex(), value.co_names, *(_told(one, seen) for one in value.co_consts))
    if isinstance(value, FunctionType):
        return _of_function(value, seen)
    if isinstance(value, MethodType):
        return (_told(value.__func__, seen), _told(value.__self__, seen))
    if isinstance(value, functools.partial):
        return (*name, _told(value.func, seen), _told(value.args, seen), _told(value.keywords, seen))
    if isinstance(value, type | BuiltinFunctionType):
        return (value.__module__, value.__qualname__)
    return (*name, *_of_object(value, seen))


def _of_function(function: FunctionType, seen: dict[int, object]) -> tuple[Any, ...]:
    code, found = function.__code__, []
    for name in code.co_names:
        used = function.__globals__.get(name)
        own = isinstance(used, FunctionType) and used.__module__ == function.__module__
        if name in function.__globals__ and (own or isinstance(used, (*_PLAIN, Tensor))):
            found.append((name, _told(used, seen)))
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    parts = (code, function.__defaults__, function.__kwdefaults__, cells)
    return (*(_told(part, seen) for part in parts), *found)


def _of_object(value: object, seen: dict[int, object]) -> tuple[Any, ...]:
    own = {name: one for name, one in getattr(value, "__dict__", {}).items() if name not in _OF_MODULES}
    if isinstance(value, nn.Module):
        inside = [(name, _told(one, seen)) for name, one in value.named_children()]
        return (_told(own, seen), _told(type(value).forward, seen), *inside)
    call = getattr(type(value), "__call__", None)  # noqa: B004
    return (_told(own, seen), _told(call, seen) if isinstance(call, FunctionType) else ())
