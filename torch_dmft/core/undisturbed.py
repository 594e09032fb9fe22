"""Measuring must not change training: a context that leaves the model and the random state exactly as they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch
from torch import nn

from torch_dmft.core.held import Held
from torch_dmft.core.random_state import random_state_kept
from torch_dmft.core.spread import whole
from torch_dmft.core.torch_private import (
    checkpoints_off,
    gradient_hooks_off,
    modules_of,
    own_buffers,
    own_parameters,
    parameters_of,
)
from torch_dmft.core.unwrapped import forward_unwrapped

_MEASURED: ContextVar[bool] = ContextVar("measured", default=False)


def is_measured() -> bool:
    """Whether this is the body of an ``undisturbed``: what is computed here is measured, and teaches nothing."""
    return _MEASURED.get()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the body with ``model`` in eval mode, gradients on and autocast off, and undo every trace of it afterwards.

    Parameters that ``fully_shard`` has spread over processes are whole. Autocast that accelerate has put into the forward pass
    is off as well, hooks on gradients of parameters are not called, and activation checkpoints forget nothing.
    Restored, also after an exception: the training flag of every module, every buffer bit for bit, plain attributes with
    what they hold (counters, lists, generators), and the random states of python, numpy, and torch on the CPU and on the
    devices the model is on. Calls of the model by other threads wait, and are waited for (``core.threads``). The flags are set
    directly, because ``Module.train`` may be overridden with side effects. A module that samples itself lazily says so with a
    true attribute ``keeps_what_it_reveals``: its buffers, and the attributes of the whole model, are not put back, since an
    entry once revealed must stay what it was.

    Raises:
        BusyModelError: if another thread does not come out of the model.
    """
    with whole(model):
        yield from _undisturbed(model)


def _undisturbed(model: nn.Module) -> Iterator[None]:
    """The body of ``undisturbed``, for a model with whole parameters."""
    modules = [module for _, module in modules_of(model)]
    devices = {
        one.device for module in modules for one in (*own_buffers(module).values(), *own_parameters(module).values())
    }
    with random_state_kept(devices, inside_of=modules):
        yield from _put_back(modules, {device.type for device in devices})


def _put_back(modules: list[nn.Module], kinds: set[str]) -> Iterator[None]:
    """The body of ``undisturbed``, in which nobody else runs the modules, on these kinds of devices."""
    modes = [(module, module.training) for module in modules]
    lazy = {id(module) for module in modules if getattr(module, "keeps_what_it_reveals", False)}
    parameters = {id(parameter): parameter for module in modules for parameter in own_parameters(module).values()}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in modules
        if id(module) not in lazy
        for name, buffer in own_buffers(module).items()
    ]
    held = Held()
    if not lazy:  # modules around lazily sampled ones may share what these reveal
        for module in modules:
            held.module(module)
    with ExitStack() as stack:
        for kind in {"cpu", *kinds} - {"meta"}:
            stack.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        stack.enter_context(torch.inference_mode(False))  # also turns gradients on
        stack.enter_context(forward_unwrapped(modules))
        stack.enter_context(gradient_hooks_off(parameters.values()))
        stack.enter_context(checkpoints_off())
        measured = _MEASURED.set(True)
        try:
            _set_modes((module, False) for module in modules)
            yield
        finally:
            _MEASURED.reset(measured)
            held.restore()
            _set_modes(modes)
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
                    if getattr(module, name) is not buffer:
                        setattr(module, name, buffer)


def _set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    """Set training flags where they differ, as setting an attribute of a module takes longer than reading it."""
    for module, training in modes:
        if module.training is not training:
            module.training = training


@contextmanager
def all_graded(model: nn.Module) -> Iterator[None]:
    """Let frozen parameters have gradients too, so that gradients reach whatever is computed from them."""
    frozen = [one for one in parameters_of(model).values() if not one.requires_grad and one.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
