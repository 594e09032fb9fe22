"""A dense chain without a width: the network that the field equations of the paper describe."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

from torch_dmft.core.activation import activation as named_activation
from torch_dmft.core.arguments import checked
from torch_dmft.core.memory import require_memory
from torch_dmft.core.numbers import require_number, require_whole

if TYPE_CHECKING:
    from torch_dmft.parameterization import Plan

MOST_LAYERS = 10_000
"""Hidden layers of a chain, beyond which it takes forever to build."""


@dataclass(frozen=True)
class HiddenLayer:
    """One hidden layer of a chain: h = gain * W x / sqrt(fan_in) + b, followed by phi(h).

    Attributes:
        activation: name of phi.
        gain: g, the forward multiplier of a unit-form weight.
        bias_std: standard deviation of the Gaussian initial bias; 0.0 is a trained bias that starts at zero, None
            no bias.
        width_ratio: N_l / N_L, this layer's width relative to the last hidden layer's.
    """

    activation: str
    gain: float = 1.0
    bias_std: float | None = None
    width_ratio: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an unknown activation and numbers outside their range."""
        named_activation(self.activation)
        require_number("gain", self.gain, above=0)
        require_number("width_ratio", self.width_ratio, above=0, remedy="positive numbers, relative to the last width")
        if self.bias_std is not None:
            require_number("bias_std", self.bias_std, at_least=0, remedy="bias_std >= 0, or None for no biases")


@checked
@dataclass(frozen=True)
class Chain:
    """A dense chain: ``hidden`` layers from the input on, then the readout f_c = w_c . phi(h^L) / (gamma0 N_L) (+ b_c).

    Attributes:
        input_dim: D.
        hidden: the L hidden layers in forward order.
        outputs: C.
        readout_bias: whether each output has a bias, zero at the start, trained with learning rate eta.
    """

    input_dim: int
    hidden: tuple[HiddenLayer, ...]
    outputs: int
    readout_bias: bool = False

    def __post_init__(self) -> None:
        """Refuse empty ends."""
        require_whole("input_dim", self.input_dim, at_least=1)
        require_whole("outputs", self.outputs, at_least=1)

    @property
    def depth(self) -> int:
        """L, the number of hidden layers."""
        return len(self.hidden)

    def build(self, width: int) -> nn.Sequential:
        """An ordinary ``nn.Sequential`` whose last hidden layer has ``width`` neurons (torch's own initialisation).

        Raises:
            InsufficientMemoryError: if its weights do not fit.
        """
        require_whole("width", width, at_least=1)
        sizes = [self.input_dim, *(max(1, round(layer.width_ratio * width)) for layer in self.hidden), self.outputs]
        weights = sum(fan_in * fan_out for fan_in, fan_out in pairwise(sizes))
        require_memory(
            torch.get_default_dtype().itemsize * weights,
            torch.device("cpu"),
            what=f"A network of width {width}",
            remedy="a smaller width",
        )
        modules: list[nn.Module] = []
        fan_in = self.input_dim
        for layer in self.hidden:
            fan_out = max(1, round(layer.width_ratio * width))
            modules += [
                nn.Linear(fan_in, fan_out, bias=layer.bias_std is not None),
                named_activation(layer.activation).module(),
            ]
            fan_in = fan_out
        return nn.Sequential(*modules, nn.Linear(fan_in, self.outputs, bias=self.readout_bias))


def chain_of(plan: Plan) -> Chain | None:
    """The plan's model as a dense chain, or None if it is something else."""
    architecture = plan.architecture
    if not architecture.is_chain:
        return None
    rules = {rule.name: rule for rule in plan.rules}
    hidden = tuple(
        HiddenLayer(
            activation=layer.activation or "linear",
            gain=rules[layer.weight].gain,
            bias_std=None if layer.bias is None else rules[layer.bias].std,
            width_ratio=layer.out_features / architecture.width,
        )
        for layer in architecture.layers[:-1]
    )
    first, last = architecture.layers[0], architecture.layers[-1]
    return Chain(first.in_features, hidden, last.out_features, readout_bias=last.bias is not None)
