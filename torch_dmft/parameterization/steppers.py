"""The optimizers that train a plan's model, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim import AdamW, Optimizer

from torch_dmft.parameterization.muon import MuonGroups, muon_class
from torch_dmft.parameterization.optimizer import OPTIMIZERS

if TYPE_CHECKING:
    from torch_dmft.parameterization.plan import Plan


def steppers(plan: Plan, lr: float, optimizer: str) -> tuple[Optimizer, ...]:
    """The optimizers of torch.optim that train a plan's model at a base rate, with all else as torch has it.

    Args:
        plan: the model.
        lr: the base rate eta.
        optimizer: one of ``NAMES``; "muon" gives two, or Muon alone if all that is trained are hidden matrices.

    Raises:
        InvalidInputError: if this version of torch has no Muon.
    """
    groups = plan.param_groups(lr, optimizer=optimizer)
    if isinstance(groups, MuonGroups):
        muon = muon_class()(groups.muon)
        return (muon, AdamW(groups.adamw)) if groups.adamw else (muon,)
    return (OPTIMIZERS[optimizer](groups),)
