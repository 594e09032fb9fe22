"""Equality by value for dataclasses that hold tensors, where the generated ``==`` would raise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Number
from typing import Any, TypeVar

import torch
from torch import Tensor

_C = TypeVar("_C", bound=type)

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def by_value(cls: _C) -> _C:
    """Class decorator, above ``@dataclass(frozen=True)``: ``==`` is ``same_value``, and equal objects have equal hashes.

    Against an object of another class ``==`` is False. A subclass that is a dataclass of its own needs the decorator again.
    """

    def equals(self: Any, other: object) -> bool:
        return same_value(self, other)  # not NotImplemented: numpy would compare every element of its array with self

    def hashed(self: Any) -> int:
        return hash_of_value(self)

    for name, method in (("__eq__", equals), ("__hash__", hashed)):
        method.__name__, method.__qualname__ = name, f"{cls.__qualname__}.{name}"
        setattr(cls, name, method)
    return cls


def same_value(a: object, b: object) -> bool:
    """Whether two values are equal in every part; never raises.

    - Tensors: equal dtype, shape and bits, where NaN equals any NaN and 0.0 differs from -0.0. Device, memory layout and
      ``requires_grad`` do not count.
    - Dataclasses: one class, and every field that takes part in comparison. Tuples, lists, mappings: every item.
    - Numbers and strings: ``==``, where NaN equals NaN.
    - Anything else, callables among them: identity, or one class and ``==``.

    Args:
        a: any value.
        b: any value.
    """
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and _same_tensor(a, b)
    if _has_fields(a):
        return type(a) is type(b) and all(same_value(getattr(a, name), getattr(b, name)) for name in _compared(a))
    for sequence in (tuple, list):
        if isinstance(a, sequence):
            return isinstance(b, sequence) and len(a) == len(b) and all(map(same_value, a, b))
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(same_value(a[key], b[key]) for key in a)
    if type(a) is not type(b) and not (isinstance(a, Number) and isinstance(b, Number)):
        return False
    try:
        return bool(a == b) or bool(a != a and b != b)
    except Exception:  # `==` of a foreign class may raise, or return a value without a truth value
        return False


def hash_of_value(value: object) -> int:
    """A hash that agrees with ``same_value``: equal values have equal hashes.

    It is cheap and coarse: for tensors only dtype and shape count, and for values without a hash only the class.

    Args:
        value: any value.
    """
    if isinstance(value, Tensor):
        return hash((value.dtype, tuple(value.shape)))
    if _has_fields(value):
        return hash((type(value), *(hash_of_value(getattr(value, name)) for name in _compared(value))))
    if isinstance(value, tuple | list):
        return hash((isinstance(value, tuple), *map(hash_of_value, value)))
    if isinstance(value, Mapping):
        return hash(frozenset((key, hash_of_value(item)) for key, item in value.items()))
    try:
        return hash(value) if value == value else hash(Number)  # hash(nan) differs from nan to nan
    except Exception:
        return hash(type(value))


def _has_fields(value: object) -> bool:
    """Whether a value is an instance of a dataclass that compares by fields."""
    return is_dataclass(value) and not isinstance(value, type) and type(value).__dataclass_params__.eq  # type: ignore[attr-defined]


def _compared(value: object) -> list[str]:
    return [f.name for f in fields(value) if f.compare]  # type: ignore[arg-type]


def _same_tensor(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape or a.layout != b.layout:
        return False
    if a.is_meta or b.is_meta:
        return a.is_meta and b.is_meta
    try:
        a, b = _plain(a), _plain(b)
    except Exception:  # quantized and other layouts without plain numbers
        return False
    bits = _BITS[a.element_size()]
    same = a.view(bits) == b.view(bits)
    if bool(same.all()):
        return True
    if not a.is_floating_point():
        return False
    # Only numbers that differ in bits are converted: no float8 has an isnan of its own.
    return bool((a[~same].double().isnan() & b[~same].double().isnan()).all())


def _plain(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in a row on the CPU, complex ones as pairs."""
    tensor = tensor.detach().cpu().to_dense().resolve_conj().resolve_neg()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)
