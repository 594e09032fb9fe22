"""The mean-field scaling that a model has by itself: read from its initial weights and its learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from torch_dmft.architecture import Role, describe
from torch_dmft.core.arguments import checked, typed
from torch_dmft.core.errors import InvalidInputError, Place, UnsupportedModelError
from torch_dmft.core.numbers import require_number
from torch_dmft.parameterization.rules import parameter_rules
from torch_dmft.parameterization.scheme import mean_field


@typed
@dataclass(frozen=True)
class EffectiveScaling:
    """The mean-field network with the same function and the same SGD steps.

    Attributes:
        gamma0: 1 / (std of the readout * N_L): small is lazy, 1/sqrt(N_L) is the scale of NTK parameterization.
        lr: the base learning rate eta of the readout.
        lrs: the base learning rate of every trained parameter, by name; in a mean-field network all equal ``lr``.
        gains: the forward multiplier g of the unit form of every input and hidden weight, by name.
        width: N_L.
    """

    gamma0: float
    lr: float
    lrs: Mapping[str, float]
    gains: Mapping[str, float]
    width: int

    @property
    def mismatch(self) -> dict[str, float]:
        """The learning rate of every trained parameter relative to what the mean-field network gives it: 1 if it agrees."""
        return {name: lr / self.lr for name, lr in self.lrs.items()}


@checked
def effective_scaling(
    model: nn.Module, example_input: Tensor, param_groups: float | Iterable[Mapping[str, Any]]
) -> EffectiveScaling:
    r"""Which gamma0 and which base learning rate a model trains with that nobody has wrapped.

    A weight of standard deviation m is m times a unit-form weight, and moves m^2 times as fast as that one does. Matching the
    readout's f = w . x / (gamma0 N_L) and every parameter's SGD rate with m^2 eta gamma0^2 N_L gives

    .. math:: \gamma_0 = \frac{1}{m_{readout} N_L}, \qquad \eta_p = \frac{lr_p}{m_p^2 \gamma_0^2 N_L}.

    The two are the same network, so that f(t) and all kernels agree with theory at this gamma0 exactly as far as all
    ``lrs`` agree. PyTorch's own initialisation has m^2 = 1 / (3 fan-in): gamma0 = sqrt(3 / N_L) falls with the width, and
    one learning rate for all trains the input layer D / N_L times too slowly.

    Args:
        model: an untrained model; only read.
        example_input: a batch it accepts.
        param_groups: ``optimizer.param_groups`` of SGD, or one learning rate for all parameters.

    Returns:
        The scaling. Standard deviations are estimated from the weights, so gamma0 is known to 1 / sqrt(2 C N_L) of itself.

    Raises:
        InvalidInputError: if all entries of a weight are zero, or the groups miss the readout.
        UnsupportedModelError: if the model is none that can be scaled.
    """
    architecture = describe(model, example_input)
    tied = [layer for layer in architecture.layers if layer.multiplier is not None]
    if tied:
        reason = f"its weight is {tied[0].weight}, which makes features as well, at the size of these"
        remedy = "parameterize(model, ...), which multiplies what it puts out"
        raise UnsupportedModelError(
            "This model is no other one in the mean-field scaling:", [Place(tied[0].path, reason, remedy)]
        )
    width = architecture.width
    rules = parameter_rules(architecture, model, scheme="standard")
    readout = next(rule for rule in rules if rule.role is Role.READOUT)
    zeros = [rule.name for rule in rules if rule.role in (Role.INPUT, Role.HIDDEN, Role.READOUT) and rule.std == 0]
    if zeros:
        raise InvalidInputError(
            "Weights must not start at zero, as zeros fit every scaling.",
            got=", ".join(zeros),
            remedy="parameterize(model, ..., gamma0=...), which sets their scale",
        )
    gamma0 = 1 / (readout.std * width)
    rates = _rates(model, param_groups)
    lrs, gains = {}, {}
    for rule in rules:
        if rule.role in (Role.INPUT, Role.HIDDEN):
            gains[rule.name] = rule.std * math.sqrt(rule.fan_in)
        if rule.name in rates:
            gain = rule.std or 1.0 if rule.role is Role.EMBEDDING else gains.get(rule.name, 1.0)
            scaling = mean_field(rule.role, fan_in=rule.fan_in, width=width, gamma0=gamma0, gain=gain)
            lrs[rule.name] = rates[rule.name] / scaling.lr
    if readout.name not in lrs:
        raise InvalidInputError(
            "The parameter groups must contain the readout, whose learning rate sets the base rate.",
            got=", ".join(lrs) or "no parameters",
            remedy="the param_groups of an optimizer that trains this model, its readout included",
        )
    return EffectiveScaling(gamma0, lrs[readout.name], lrs, gains, width)


def _rates(model: nn.Module, param_groups: float | Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The SGD learning rate of every trained parameter, by name."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if isinstance(param_groups, int | float):
        require_number("param_groups", param_groups, above=0)
        return dict.fromkeys(trained, float(param_groups))
    groups = [] if isinstance(param_groups, Tensor) else list(param_groups)
    if not groups or not all(isinstance(group, Mapping) and {"lr", "params"} <= set(group) for group in groups):
        raise InvalidInputError(
            "`param_groups` must be the groups of an optimizer, or one learning rate.",
            got=f"{type(param_groups).__name__} of {len(groups)}",
            remedy="optimizer.param_groups, or a number > 0",
        )
    for group in groups:
        require_number("lr", float(group["lr"]), at_least=0)
    by_id = {id(parameter): float(group["lr"]) for group in groups for parameter in group["params"]}
    return {name: by_id[id(parameter)] for name, parameter in trained.items() if id(parameter) in by_id}
