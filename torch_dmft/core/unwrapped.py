"""The forward passes of modules without what accelerate has put around them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def forward_unwrapped(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run the body without the autocast that accelerate's ``prepare`` wraps around ``forward``: none outside reaches it."""
    put_back: list[tuple[nn.Module, Any]] = []
    for module in modules:
        own = vars(module)
        original = own.get("_original_forward")
        if original is not None and _is_around(own.get("forward"), original):
            put_back.append((module, own["forward"]))
            own["forward"] = original
    try:
        yield
    finally:
        for module, wrapped in put_back:
            vars(module)["forward"] = wrapped


def _is_around(wrapped: Any, original: Any) -> bool:
    """Whether a function is nothing but wrappers around another."""
    innermost = getattr(original, "__func__", original)
    for _ in range(8):
        wrapped = getattr(wrapped, "__func__", wrapped)
        if wrapped is innermost:
            return True
        wrapped = getattr(wrapped, "__wrapped__", getattr(wrapped, "model_forward", None))
    return False
