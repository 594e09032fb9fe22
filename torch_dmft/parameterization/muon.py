r"""Muon beside AdamW: which parameters Muon may have, and the rates at which its steps mean the same at every width.

Muon replaces the (averaged) gradient of a matrix W ``(out, in)`` by the nearest one with orthonormal rows or columns, whose
singular values are all 1, and takes a step of the size of the rate times a number of the shape (``adjust_lr_fn``):

.. math:: \Delta W = -r\, a(out, in)\, \mathrm{polar}(\bar G), \qquad
   a = \sqrt{\max(1, out/in)} \;\text{(original)}, \qquad a = 0.2 \sqrt{\max(out, in)} \;\text{(match\_rms\_adamw)}.

A step of spectral norm s changes the output of a layer, features x of size one, by up to s |x| = s sqrt(in) in norm, which is
s sqrt(in/out) for each of its neurons. In the mean-field scheme that change is eta gamma0, as with SGD and Adam, so

.. math:: r\, a = \eta \gamma_0 \sqrt{out/in}.

Adam's rate of a hidden weight is r_Adam = eta gamma0 / in: its steps have entries +-r_Adam, thus the norm r_Adam sqrt(out in),
which is eta gamma0 sqrt(out/in) again. So for every hidden matrix, with all that folds and the depth of residual streams put
into Adam's rate (a step of either optimizer has the size of the rate, whatever the gradient is),

.. math:: r = r_{Adam} \sqrt{out \cdot in} / a.

Without such a rate, at one r for all, the change grows with the width N like r a sqrt(in/out):

    a                   square, or all sides like N      only out like N    only in like N
    "original"          N^0                              N^0                N^(1/2)
    "match_rms_adamw"   N^(1/2)                          N^0                N
    1 (no scale)        N^0                              N^(-1/2)           N^(1/2)

"original" transfers as it is where all hidden sides grow alike, "match_rms_adamw" does not (its base rate would have to fall
like N^(-1/2)); here either one does, as the rate makes up for it. Only the momentum's beta and what Newton-Schulz iterations
leave of singular values below a thousandth of the norm remain, which do not depend on the width.

Muon may have matrices whose both sides are widths. An embedding or a readout has one side that is none: a step with singular
values that are all equal moves rare and frequent tokens alike, and AdamW's entries are what their rates were derived for.
Biases, norms, convolutions (four axes) and experts in one tensor (three) are no matrices. All of these are AdamW's.

Sources: Jordan et al. 2024 (Muon); Yang, Simon, Bernstein 2023 (spectral condition); Qiu et al. 2025, 2512.05620.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from torch_dmft.architecture import Role
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.listed import listed
from torch_dmft.core.muon import SCALES, scale_of, step_norm
from torch_dmft.core.numbers import require_choice, require_number
from torch_dmft.parameterization.optimizer import grouped
from torch_dmft.parameterization.rules import ParameterRule


class MuonGroups(NamedTuple):
    """The groups of two optimizers that train a model together.

    Attributes:
        muon: for ``torch.optim.Muon``: hidden matrices.
        adamw: for ``torch.optim.AdamW``: everything else; [] if nothing else is trained.
    """

    muon: list[dict[str, Any]]
    adamw: list[dict[str, Any]]


def muon_groups(
    model: nn.Module,
    rules: Sequence[ParameterRule],
    lr: float,
    *,
    scheme: str,
    adamw_lr: float | None = None,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    adjust_lr_fn: str | None = None,
    matrices: Iterable[str] | None = None,
) -> MuonGroups:
    """The groups of Muon and of AdamW; see ``Plan.param_groups``.

    Raises:
        InvalidInputError: if there is nothing that Muon may have, or it is to have what it may not.
    """
    adamw_lr = lr if adamw_lr is None else adamw_lr
    for name, value in (("lr", lr), ("adamw_lr", adamw_lr), ("weight_decay", weight_decay), ("eps", eps)):
        require_number(name, value, at_least=0)
    adjust = "original" if adjust_lr_fn is None else adjust_lr_fn
    require_choice("adjust_lr_fn", adjust, SCALES)
    chosen = _chosen(model, rules, matrices)

    def of_muon(rule: ParameterRule) -> dict[str, Any]:
        factor = muon_rate(rule, model.get_parameter(rule.name).shape, adjust, scheme)
        return {"lr": lr * factor, "weight_decay": weight_decay / factor, "adjust_lr_fn": adjust}

    def of_adamw(rule: ParameterRule) -> dict[str, Any]:
        rate, decay = adamw_lr * rule.adam_lr, weight_decay * rule.adamw_decay
        return {"lr": rate, "weight_decay": decay, "eps": eps * rule.gradient}

    return MuonGroups(
        grouped(model, [rule for rule in rules if rule.name in chosen], of_muon),
        grouped(model, [rule for rule in rules if rule.name not in chosen], of_adamw),
    )


def muon_rate(
    rule: ParameterRule, shape: Sequence[int], adjust_lr_fn: str = "original", scheme: str = "mean_field"
) -> float:
    """Muon's rate of a hidden matrix in units of the base rate: Adam's times sqrt(out in), over what torch multiplies it with.

    Args:
        rule: of the matrix.
        shape: of the parameter, in either order.
        adjust_lr_fn: as torch.optim.Muon takes it.
        scheme: of the plan; "standard" has one rate for all, whatever torch makes of it.
    """
    if scheme == "standard":
        return 1.0
    return step_norm(rule.adam_lr, tuple(shape)) / scale_of(tuple(shape), adjust_lr_fn)


def is_hidden_matrix(rule: ParameterRule, model: nn.Module) -> bool:
    """Whether Muon may have a parameter: both of its axes are widths."""
    return rule.role is Role.HIDDEN and model.get_parameter(rule.name).ndim == 2


def muon_class() -> Callable[..., Optimizer]:
    """``torch.optim.Muon``.

    Raises:
        InvalidInputError: if this version of torch has none.
    """
    found = getattr(torch.optim, "Muon", None)
    if found is None:
        raise InvalidInputError(
            "This version of torch has no Muon.",
            got=torch.__version__,
            remedy="torch 2.9 or newer, or another optimizer",
        )
    return found


def require_hidden_matrices(model: nn.Module, rules: Iterable[ParameterRule], names: Iterable[str]) -> None:
    """Refuse a parameter that Muon may not have.

    Args:
        model: that has them.
        rules: of all its parameters.
        names: of those that Muon is to have.

    Raises:
        InvalidInputError: naming all of them, with their roles.
    """
    by_name, wrong = {rule.name: rule for rule in rules}, []
    for name in names:
        rule = by_name.get(name)
        if rule is None:
            wrong.append(f"{name} (no parameter of the model)")
        elif not is_hidden_matrix(rule, model):
            axes = model.get_parameter(name).ndim
            wrong.append(f"{name} ({rule.role})" if rule.role is not Role.HIDDEN else f"{name} ({axes} axes)")
    if wrong:
        may = [rule.name for rule in by_name.values() if is_hidden_matrix(rule, model)]
        raise InvalidInputError(
            "Muon may have hidden matrices only, both axes of which are widths.",
            got=listed(wrong),
            remedy=f"leave these to AdamW; Muon's are {listed(may)}" if may else "train all of this model with AdamW",
        )


def _chosen(model: nn.Module, rules: Sequence[ParameterRule], matrices: Iterable[str] | None) -> set[str]:
    """The names of what Muon gets."""
    if matrices is not None:
        chosen = [matrices] if isinstance(matrices, str) else list(matrices)
        require_hidden_matrices(model, rules, chosen)
    else:
        chosen = [rule.name for rule in rules if is_hidden_matrix(rule, model)]
    trained = {rule.name for rule in rules if rule.lr}
    if not trained.intersection(chosen):
        raise InvalidInputError(
            "Muon needs at least one hidden matrix that is trained, both axes of which are widths.",
            got=", ".join(f"{rule.name} ({rule.role})" for rule in rules if rule.name in trained) or "nothing",
            remedy='optimizer="adamw", or a model with two hidden layers or more',
        )
    return set(chosen)
