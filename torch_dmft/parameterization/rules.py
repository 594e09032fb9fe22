"""One rule for every parameter of a model: its role, and its scaling by the scheme."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from torch import nn

from torch_dmft.architecture import Architecture, Layer, Role
from torch_dmft.core.arguments import typed
from torch_dmft.core.numbers import SMALLEST, require_number
from torch_dmft.parameterization.scheme import (
    DEPTHS,
    STANDARD,
    Scaling,
    at_depth,
    behind,
    effective_gamma0,
    mean_field,
    tied_as_it_is,
    tied_multiplier,
)
from torch_dmft.parameterization.uniform import own_bound, root_mean_square, size_of, size_of_rows

NOTHING: Mapping[str, float] = MappingProxyType({})
_SQRT2 = frozenset({"relu", "relu6", "leaky_relu", "gelu", "gelu_tanh", "silu", "mish"})


@typed
@dataclass(frozen=True)
class ParameterRule:
    """How one parameter is scaled.

    Attributes:
        name: the parameter's name in the model.
        path: path of the module that owns it.
        role: its role.
        fan_in: inputs per neuron; 1 for vectors, embeddings and output biases.
        gain: the forward multiplier g of its unit form, or 1.
        std: initial standard deviation of a weight; for a parameter that keeps its own init, the root mean square it
            had when the plan was made (a bias of N(0, s_b^2) has s_b, one of U(-b, b) has b / sqrt(3), rows of N(0, 1) have 1).
        lr: SGD learning rate in units of the base rate eta; 0 for a frozen parameter.
        adam_lr: Adam and AdamW learning rate in units of eta; 0 for a frozen parameter.
        gradient: size of the gradient in width, depth and gamma0; Adam's eps is multiplied by it.
        start: what its own init was multiplied by, if it keeps that.
        part: where it stands to a residual stream whose branches are scaled, in words; "" if it stands in none.
    """

    name: str
    path: str
    role: Role
    fan_in: int
    gain: float
    std: float
    lr: float
    adam_lr: float
    gradient: float
    start: float = 1.0
    part: str = ""

    @property
    def decay(self) -> float:
        """Weight decay per unit of lambda, for SGD and Adam: eta/lr, so that lambda acts alike on every parameter."""
        return 1 / self.lr if self.lr else 0.0

    @property
    def adamw_decay(self) -> float:
        """Weight decay per unit of lambda for AdamW, which multiplies it by its own learning rate."""
        return 1 / self.adam_lr if self.adam_lr else 0.0


def parameter_rules(
    architecture: Architecture,
    model: nn.Module,
    *,
    gamma0: float = 1.0,
    scheme: str = "mean_field",
    gain: float | str = "auto",
    keeps_sizes: bool = False,
    depth: str | None = None,
) -> tuple[ParameterRule, ...]:
    """A rule for every parameter of a model, in the order of its parameters.

    Args:
        architecture: what ``describe`` found in the model.
        model: the model; only read. Parameters that keep their own init are measured as they are now.
        gamma0: richness of the scheme "mean_field".
        scheme: "mean_field", "ntk" or "standard".
        gain: g of input and hidden weights; "auto" is sqrt(2) before relu, gelu, silu and their kin, 1 otherwise.
        keeps_sizes: whether all weights stay as they are, as frozen ones do; their sizes then enter as gains.
        depth: what branches of the architecture's streams are multiplied by, "1/sqrt(L)" or "1/L"; None for 1.

    Returns:
        The rules.
    """
    width = architecture.width
    gamma0 = effective_gamma0(scheme, gamma0, width)
    found = {entry[0]: entry[1:] for entry in _roles(architecture)}
    factors = {} if keeps_sizes else architecture.factors
    multiplied = {layer.weight: layer for layer in architecture.layers if layer.multiplier is not None}
    rules: list[ParameterRule] = []
    for name, parameter in model.named_parameters():
        path, role, layer, fan_in = found[name]
        is_weight = role not in OWN_INIT and role is not Role.OUTPUT_BIAS
        is_bias = role is Role.VECTOR and layer is not None
        drawn_by = own_bound(layer.fan_in) if layer is not None and is_bias else None
        own = size_of(parameter, own=drawn_by) if is_bias else root_mean_square(parameter)
        weight_gain = _gain(layer, gain) if is_weight and role is not Role.READOUT else 1.0
        keeps = (keeps_sizes or not parameter.requires_grad) and is_weight and role is not Role.READOUT
        is_table = layer is not None and layer.kind == "embedding" and name == layer.weight
        own = size_of_rows(parameter) if is_table else own
        is_drawn = name in architecture.bare and architecture.bare[name].start is None
        own = size_of_rows(parameter.reshape(-1, 1)) if is_drawn else own
        if is_table and role in (Role.EMBEDDING, Role.INNER) and own:
            weight_gain = own
        if keeps and own:  # a weight that stays as it is: its gain is what its size amounts to
            weight_gain = own * (fan_in if role is Role.CODE else math.sqrt(fan_in))
        if scheme == "standard":
            scaling = STANDARD
            weight_gain = own * (gamma0 * fan_in if role is Role.READOUT else math.sqrt(fan_in)) if is_weight else 1.0
        else:
            scaling = mean_field(
                role,
                fan_in=fan_in,
                width=width,
                gamma0=gamma0,
                gain=weight_gain,
                fold=factors.get(name, 1.0),
                is_read_by_zeros=layer is not None and layer.is_read_by_zeros,
            )
            tied = multiplied.get(name)
            if keeps_sizes and tied is not None and tied.multiplier is not None:
                scaling = tied_as_it_is(scaling, width=width, present=tied.multiplier.present)
        scaling = in_streams(scaling, name, architecture, depth)
        start = scaling.start if parameter.requires_grad and not keeps_sizes else 1.0
        rules.append(
            ParameterRule(
                name=name,
                path=path,
                role=role,
                fan_in=fan_in,
                gain=weight_gain,
                std=own * start if scaling.std is None or keeps_sizes else scaling.std,
                lr=scaling.lr if parameter.requires_grad else 0.0,
                adam_lr=scaling.adam_lr if parameter.requires_grad else 0.0,
                gradient=scaling.gradient,
                start=start,
                part=next((str(stream.parts[name]) for stream in architecture.streams if name in stream.parts), ""),
            )
        )
    if scheme == "standard" or keeps_sizes:
        return tuple(rules)
    return behind_ties(rules, architecture, gamma0, factors)


def behind_ties(
    rules: Iterable[ParameterRule], architecture: Architecture, gamma0: float, factors: Mapping[str, float] = NOTHING
) -> tuple[ParameterRule, ...]:
    """The rules with the rates of the biases that are multiplied with a readout whose weight is tied.

    Args:
        rules: of all parameters.
        architecture: what the model is made of.
        gamma0: as it enters theory.
        factors: see ``number_of``.
    """
    rules = tuple(rules)
    tied = [layer for layer in architecture.layers if layer.multiplier is not None and layer.bias is not None]
    numbers = {layer.bias: number_of(layer, rules, gamma0, factors) for layer in tied}
    return tuple(_behind(rule, numbers[rule.name]) if rule.name in numbers else rule for rule in rules)


def with_multipliers(
    architecture: Architecture, rules: Sequence[ParameterRule], gamma0: float, factors: Mapping[str, float] = NOTHING
) -> Architecture:
    """The architecture with the numbers by which readouts are multiplied whose weights are tied; see ``number_of``."""
    layers = []
    for layer in architecture.layers:
        if layer.multiplier is not None:
            multiplier = replace(layer.multiplier, number=number_of(layer, rules, gamma0, factors))
            layer = replace(layer, multiplier=multiplier)
        layers.append(layer)
    return replace(architecture, layers=tuple(layers))


def number_of(layer: Layer, rules: Iterable[ParameterRule], gamma0: float, factors: Mapping[str, float]) -> float:
    """What a readout is multiplied by whose weight is tied; 1 for any other.

    Args:
        layer: the readout.
        rules: of all parameters.
        gamma0: as it enters theory.
        factors: of numbers that parameters hold for the forward pass, which other parameters undo at the readout.
    """
    if layer.multiplier is None:
        return 1.0
    std = next(rule.std for rule in rules if rule.name == layer.weight)
    return (
        tied_multiplier(std / factors.get(layer.weight, 1.0), gamma0=gamma0, width=layer.fan_in)
        / layer.multiplier.present
    )


def _behind(rule: ParameterRule, number: float) -> ParameterRule:
    scaling = behind(mean_field(Role.OUTPUT_BIAS, fan_in=1, width=1), number)
    rates = (scaling.lr, scaling.adam_lr) if rule.lr else (0.0, 0.0)
    return replace(rule, lr=rates[0], adam_lr=rates[1], gradient=scaling.gradient)


def in_streams(scaling: Scaling, name: str, architecture: Architecture, depth: str | None) -> Scaling:
    """The scaling of a parameter with what its place in a residual stream adds.

    Args:
        scaling: that of its role.
        name: the parameter.
        architecture: with its streams.
        depth: what their branches are multiplied by; None for 1.
    """
    for stream in architecture.streams:
        if depth is not None and name in stream.parts:
            shared = stream.shared.get(name, 1)
            return at_depth(scaling, stream.parts[name], branches=stream.branches, alpha=DEPTHS[depth], shared=shared)
    return scaling


OWN_INIT = frozenset({Role.VECTOR, Role.EMBEDDING, Role.INNER, Role.OUTER})
"""Roles of parameters that keep their own init."""

_BIASES = {Role.READOUT: Role.OUTPUT_BIAS, Role.CODE: Role.INNER, Role.INNER: Role.INNER, Role.OUTER: Role.OUTER}


def _roles(architecture: Architecture) -> Iterator[tuple[str, str, Role, Layer | None, int]]:
    """Name, path, role and fan-in of every parameter, with the layer whose weight or bias it is."""
    for layer in architecture.layers:
        if layer.multiplier is None:  # else the weight has the role of its other use
            yield layer.weight, layer.path, layer.role, layer, 1 if layer.role in OWN_INIT else layer.fan_in
        if layer.bias is not None:
            yield layer.bias, layer.path, _BIASES.get(layer.role, Role.VECTOR), layer, 1
    for vector in architecture.vectors:
        yield vector.name, vector.path, vector.role, None, vector.fan_in


def require_gain(gain: float | str, name: str = "gain") -> None:
    """Refuse anything but a positive number or "auto".

    Raises:
        InvalidInputError: for anything else.
    """
    if gain != "auto":
        require_number(name, gain, at_least=SMALLEST, remedy='a positive number, or "auto"')


def usual_gain(activation: str | None) -> float:
    """Gain before an activation by name: sqrt(2) if half of what comes is passed (relu, gelu, silu, their kin), else 1."""
    return math.sqrt(2) if activation in _SQRT2 else 1.0


def _gain(layer: Layer | None, gain: float | str) -> float:
    if gain != "auto":
        return float(gain)
    return 1.0 if layer is None else usual_gain(layer.activation)
