"""Which optimizer it is that steps: what facades of libraries forward to, and what optimizers around optimizers hold."""

from __future__ import annotations

from collections.abc import Iterable

from torch.optim import Optimizer

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.torch_private import is_followed

_FACADES = {"accelerate", "lightning", "lightning_fabric", "pytorch_lightning"}
"""Libraries whose optimizers hold another as ``.optimizer``, step it or leave it out, and do nothing else to weights."""


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer that steps, where a library has put its own around it, as accelerate, Lightning and Fabric do.

    Raises:
        InvalidInputError: if what is inside is no optimizer of torch, as with DeepSpeed.
    """
    if type(optimizer).__module__.split(".")[0] not in _FACADES or is_followed(optimizer):
        return optimizer
    inner = getattr(optimizer, "optimizer", None)
    if not isinstance(inner, Optimizer):
        raise InvalidInputError(
            "A recorder is attached to optimizers of torch.",
            got=f"{type(optimizer).__name__} around {type(inner).__name__}",
            remedy="train this run without the engine that replaces the optimizer (DeepSpeed), or measure at chosen moments by "
            "recorder.record() after setting recorder.step",
        )
    return unwrapped(inner)


def held_by(optimizer: Optimizer) -> tuple[Optimizer, ...]:
    """The optimizers that another one steps in its own steps, as sharpness-aware minimisation and Lookahead do."""
    return tuple(unwrapped(one) for one in vars(optimizer).values() if isinstance(one, Optimizer))


def all_of(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer and all that it holds, from the outermost inwards."""
    return [optimizer, *(one for inner in held_by(optimizer) for one in all_of(inner))]


def outermost(optimizers: Iterable[Optimizer]) -> tuple[Optimizer, ...]:
    """Optimizers without their facades, each once, and without those that another of them holds."""
    every = dict.fromkeys(map(unwrapped, optimizers))
    held = {id(one) for optimizer in every for one in all_of(optimizer)[1:]}
    return tuple(optimizer for optimizer in every if id(optimizer) not in held)


def stepping(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizers that hold no other: those that move weights by gradients and remember momenta."""
    return [one for one in all_of(optimizer) if not held_by(one)]
