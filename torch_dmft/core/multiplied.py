"""Modules whose output is multiplied by a number until that is taken back: a forward hook, which copies and pickles keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torch_dmft.core.torch_private import forward_hooks_of, is_compiled, modules_of


@dataclass(frozen=True)
class Multiplies:
    """A forward hook that multiplies what a module returns.

    Attributes:
        number: by what.
    """

    number: float
    is_part_of_model: ClassVar[bool] = True

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """The module's output times the number."""
        return output * self.number


def multiplier_of(module: nn.Module) -> float | None:
    """What a module's output is multiplied by; None if it is not."""
    return next((hook.number for hook in forward_hooks_of(module).values() if isinstance(hook, Multiplies)), None)


def multiplied(model: nn.Module) -> dict[str, float]:
    """The modules of a model whose output is multiplied, by path, and by what."""
    numbers = {path: multiplier_of(module) for path, module in modules_of(model)}
    return {path: number for path, number in numbers.items() if number is not None}


def multiply(model: nn.Module, numbers: Mapping[str, float]) -> None:
    """Multiply the outputs of these modules, by path, in place of whatever was multiplied in the model before."""
    if multiplied(model) == dict(numbers):
        return
    for _, module in modules_of(model):
        hooks = forward_hooks_of(module)
        for key in [key for key, hook in hooks.items() if isinstance(hook, Multiplies)]:
            del hooks[key]
    for path, number in numbers.items():
        model.get_submodule(path).register_forward_hook(Multiplies(number))
    if any(is_compiled(module) for module in model.modules()):
        torch.compiler.reset()  # what was compiled before does not look for hooks


@contextmanager
def unmultiplied(model: nn.Module) -> Iterator[None]:
    """Run the body with no output multiplied."""
    before = multiplied(model)
    multiply(model, {})
    try:
        yield
    finally:
        multiply(model, before)
