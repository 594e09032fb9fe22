"""Whether a model computes the same function of its parameters as before: numbers, functions and modules that it holds."""

from __future__ import annotations

from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from torch_dmft.core.torch_private import NormBase
from torch_dmft.core.undisturbed import undisturbed

_PLAIN = (bool, int, float, complex, str, FunctionType, BuiltinFunctionType)


class FunctionWatch:
    """Remembers what a model's forward pass depends on beside its parameters, and tells what of it changed.

    That is every number, word and function that a module has as an attribute, the buffers of all modules but norm layers, and
    the modules themselves: so an annealed gate is found, or an activation that is swapped. What changed counts only if the
    outputs are others with it than without: modules count calls, and keep losses for a log.

    Args:
        model: the model, as it begins to be trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._attributes = _attributes(model)
        self._buffers = {name: buffer.detach().clone() for name, buffer in _buffers(model).items()}

    def changed(self, model: nn.Module, inputs: Any) -> tuple[str, ...]:
        """What changed and changes the outputs.

        Args:
            model: the same model now.
            inputs: its one argument.

        Returns:
            Names as they are called from the model: ``"gate.alpha"``.
        """
        modules = dict(model.named_modules())
        replaced = {path or "(model)" for path, module in modules.items() if self._modules.get(path) is not module}
        if replaced:
            return tuple(sorted(replaced))
        now, buffers = _attributes(model), _buffers(model)
        others = {key: value for key, value in self._attributes.items() if key in now and now[key] != value}
        moved = {name: value for name, value in self._buffers.items() if not _same(buffers.get(name), value)}
        if not others and not moved:
            return ()
        with undisturbed(model), torch.no_grad():  # which puts attributes and buffers back
            outputs = model(inputs)
            for (path, name), value in others.items():
                setattr(self._modules[path], name, value)
            for name, value in moved.items():
                model.get_buffer(name).copy_(value)
            if torch.equal(outputs, model(inputs)):
                return ()
        return (*(f"{path}.{name}" if path else name for path, name in others), *moved)


def _attributes(model: nn.Module) -> dict[tuple[str, str], Any]:
    """Numbers, words and functions by path of the module and name; not what modules know of their mode."""
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, _PLAIN) and name != "training"
    }


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that training does not change as it always does."""
    return {
        f"{path}.{name}" if path else name: buffer
        for path, module in model.named_modules()
        if not isinstance(module, NormBase)
        for name, buffer in module.named_buffers(recurse=False)
    }


def _same(one: Tensor | None, other: Tensor) -> bool:
    return one is None or (one.shape == other.shape and torch.equal(one, other.to(one)))
