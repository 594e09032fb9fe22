"""Calling a module with other tensors in the place of its parameters, inside the transforms of ``torch.func``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


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


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention as its formula has it: fused kernels know neither forward derivatives nor batches of gradients."""
    is_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)
