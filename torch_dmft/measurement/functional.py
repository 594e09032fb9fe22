"""Calling a module with other tensors in the place of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def called_with(module: nn.Module, values: Mapping[str, Tensor], inputs: Any) -> Any:
    """What a module returns with other tensors in the place of some parameters.

    A parameter that several modules share is replaced in all of them. ``functional_call`` alone replaces the parameters of a
    module that is found under two paths twice, and then leaves a plain tensor behind.

    Args:
        module: the module.
        values: by the names of ``named_parameters``.
        inputs: its one argument.
    """
    primary = {id(parameter): name for name, parameter in module.named_parameters()}
    everywhere = {}
    for path, part in module.named_modules():  # every module once
        for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            value = values.get(primary[id(parameter)])
            if value is not None:
                everywhere[f"{path}.{name}" if path else name] = value
    return functional_call(module, everywhere, (inputs,), tie_weights=False)
