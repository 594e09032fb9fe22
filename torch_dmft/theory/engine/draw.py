"""What a twin starts from: latents of the populations that its layers read and write."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torch_dmft.architecture import Layer, Role, Vector
from torch_dmft.core.torch_private import ConvBase
from torch_dmft.theory.engine.conv import InfiniteConv
from torch_dmft.theory.engine.layers import InfiniteLinear, InfiniteReadout
from torch_dmft.theory.engine.lazy_layer import LazySettings
from torch_dmft.theory.gaussian.latents import Population
from torch_dmft.theory.tables import as_it_is, without_padding


class Draw:
    """Draws the twin's layers; layers that share a width axis share its population."""

    def __init__(
        self,
        law: str,
        generator: torch.Generator,
        like: Tensor,
        gains: Mapping[str, float],
        biases: Mapping[str, float],
        uniform: Collection[str],
        *,
        quasi: bool,
    ) -> None:
        self.law, self.generator, self.like, self.gains, self.biases = law, generator, like, gains, biases
        self.uniform, self.quasi = uniform, quasi
        self.populations: dict[int, Population] = {}
        self.tables: dict[str, nn.Parameter] = {}

    def population(self, axis: int | None, size: int) -> Population:
        """The neurons of a width axis."""
        assert axis is not None  # input and hidden layers write widths, hidden and readout layers read them
        if axis not in self.populations:
            self.populations[axis] = Population(
                size,
                law=self.law,
                generator=self.generator,
                dtype=self.like.dtype,
                device=self.like.device,
                quasi=self.quasi,
            )
        return self.populations[axis]

    def layer(self, layer: Layer, module: nn.Module, std: float, settings: dict[str, Any]) -> nn.Module:
        """The layer that stands for ``module``, which is on "meta", in the twin; a readout has this standard deviation."""
        if layer.multiplier is not None:
            return self.tied(layer, module)
        if layer.role is Role.READOUT:
            inputs = self.population(layer.in_axis, layer.in_features)
            uniform = layer.weight in self.uniform
            return InfiniteReadout(inputs, layer.out_features, std=std, bias=layer.bias is not None, uniform=uniform)
        outputs = self.population(layer.out_axis, layer.out_features)
        gain = self.gains[layer.path]
        if layer.role is Role.HIDDEN:
            inputs = self.population(layer.in_axis, layer.in_features)
            bias = self.bias(layer, outputs)
            if isinstance(module, ConvBase):
                return InfiniteConv(inputs, outputs, module, LazySettings(gain=gain, **settings), bias=bias)
            return InfiniteLinear(inputs, outputs, LazySettings(gain=gain, **settings), bias=bias)
        if isinstance(module, nn.Embedding):
            rows = gain * outputs.draw(module.num_embeddings, uniform=layer.weight in self.uniform)
            self.tables[layer.weight] = nn.Parameter(without_padding(rows, module))
            module.register_parameter("weight", self.tables[layer.weight])
            return module
        latents = outputs.draw(layer.fan_in, uniform=layer.weight in self.uniform)
        weight = (gain / math.sqrt(layer.fan_in) * latents).T
        if isinstance(module, ConvBase):
            weight = weight.reshape(module.get_parameter("weight").shape).contiguous()
        # That of a linear layer stays rows of latents in memory: a few inputs meet (fan-in, S) faster than (S, fan-in).
        module.register_parameter("weight", nn.Parameter(weight))
        bias = self.bias(layer, outputs)
        module.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        return module

    def tied(self, layer: Layer, module: nn.Module) -> nn.Module:
        """A readout whose weights are the rows of an embedding, which were drawn before: w and latents are the same numbers."""
        module.register_parameter("weight", self.tables[layer.weight])
        bias = None if layer.bias is None else nn.Parameter(self.like.new_zeros(layer.out_features))
        module.register_parameter("bias", bias)
        return module

    def rows(self, vector: Vector, parameter: Tensor, std: float) -> Tensor:
        """What a parameter outside of layers starts at, in its own shape: latents of the population that it writes to.

        What is one number everywhere stays that; ``std`` is its size.
        """
        assert vector.place is not None
        if vector.start is not None:
            return self.like.new_full(parameter.shape, math.copysign(std, vector.start))
        size = parameter.shape[vector.place]
        outputs = self.population(vector.axis, size)
        drawn = outputs.draw(parameter.numel() // size, uniform=vector.name in self.uniform)
        return as_it_is(vector, std * drawn, parameter).contiguous()

    def bias(self, layer: Layer, outputs: Population) -> Tensor | None:
        """The initial bias: latents of the population."""
        if layer.bias is None:
            return None
        std = self.biases.get(layer.path, 0.0)
        zeros = self.like.new_zeros(outputs.size)
        return std * outputs.draw(1, uniform=layer.bias in self.uniform)[0] if std else zeros
