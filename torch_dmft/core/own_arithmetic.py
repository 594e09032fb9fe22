"""What is computed must not depend on where it is called from: a context without autocast and inference mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


@contextmanager
def own_arithmetic() -> Iterator[None]:
    """Run the body in the precision of its data and with gradients on, whatever contexts are open around it.

    Off are autocast on the CPU and on the accelerator, inference mode and ``no_grad``. It is a decorator too.
    """
    # Torch 2.6 raises where there is none, instead of returning None.
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    with ExitStack() as stack:
        for kind in {"cpu"} if accelerator is None else {"cpu", accelerator.type}:
            stack.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        stack.enter_context(torch.inference_mode(False))  # also turns gradients on
        yield


def ordinary(tensor: Tensor) -> Tensor:
    """A tensor that gradients can be computed with: itself, or a copy if it is one of inference mode, which must be off."""
    return tensor.clone() if tensor.is_inference() else tensor
