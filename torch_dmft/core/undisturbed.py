"""Measuring must not change training: a context that leaves the model and the random state exactly as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from torch_dmft.core.held import Held
from torch_dmft.core.random_state import random_state_kept
from torch_dmft.core.spread import whole
from torch_dmft.core.torch_private import checkpoints_off, forward_unwrapped, gradient_hooks_off


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the body with ``model`` in eval mode, gradients on and autocast off, and undo every trace of it afterwards.

    Parameters that ``fully_shard`` has spread over processes are whole. Autocast that accelerate has put into the forward pass
    is off as well, hooks on gradients of parameters are not called, and activation checkpoints forget nothing.
    Restored, also after an exception: the training flag of every module, every buffer bit for bit, plain attributes with
    what they hold (counters, lists, generators), and the random states of python, numpy, and torch on the CPU and on the
    devices the model is on. The flags are set directly, because ``Module.train`` may be overridden with side effects. A
    module that samples itself lazily says so with a true attribute ``keeps_what_it_reveals``: its buffers, and the attributes
    of the whole model, are not put back, since an entry once revealed must stay what it was.
    """
    with whole(model):
        yield from _undisturbed(model)


def _undisturbed(model: nn.Module) -> Iterator[None]:
    """The body of ``undisturbed``, for a model with whole parameters."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        if not getattr(module, "keeps_what_it_reveals", False)
        for name, buffer in module.named_buffers(recurse=False)
    ]
    held = Held()
    # Modules around lazily sampled ones may share what these reveal.
    if not any(getattr(module, "keeps_what_it_reveals", False) for module, _ in modes):
        for module, _ in modes:
            held.module(module)
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    accelerators = [device for device in devices if device.type not in ("cpu", "meta")]
    with ExitStack() as stack:
        stack.enter_context(random_state_kept(devices))
        for kind in {"cpu", *(device.type for device in accelerators)}:
            stack.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        stack.enter_context(torch.inference_mode(False))  # also turns gradients on
        stack.enter_context(forward_unwrapped(model))
        stack.enter_context(gradient_hooks_off(model))
        stack.enter_context(checkpoints_off())
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            held.restore()
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
                    if getattr(module, name) is not buffer:
                        setattr(module, name, buffer)


@contextmanager
def all_graded(model: nn.Module) -> Iterator[None]:
    """Let frozen parameters have gradients too, so that gradients reach whatever is computed from them."""
    frozen = [one for one in model.parameters() if not one.requires_grad and one.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
