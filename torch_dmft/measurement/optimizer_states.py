"""What optimizers hold of the parameters of a network: momenta and moments, gradients that wait for a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.optim import Optimizer

from torch_dmft.core.steppers import stepping


def states_of(named: Mapping[str, Tensor], optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """What optimizers remember of the parameters: momenta, moments."""
    return {
        f"{kind} of {name}": value
        for name, parameter in named.items()
        for around in optimizers
        for optimizer in stepping(around)
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def waiting_gradients(named: Mapping[str, Tensor], *optimizers: Optimizer) -> dict[str, Tensor]:
    """The gradients that wait for optimizers."""
    stepped = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    return {name: p.grad for name, p in named.items() if p.grad is not None and id(p) in stepped}


def begins_anew(optimizers: Sequence[Optimizer]) -> bool:
    """Whether an optimizer with a memory of earlier gradients is about to step a parameter that it remembers nothing of."""
    return any(
        parameter.grad is not None and not optimizer.state.get(parameter)
        for around in optimizers
        for optimizer in stepping(around)
        for group in optimizer.param_groups
        if group.get("momentum") or "betas" in group
        for parameter in group["params"]
    )
