"""Network: what a problem trains, without a width: a dense chain, or a wrapped model that shows its architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from torch_dmft.architecture import Architecture, Role
from torch_dmft.architecture.widen import widened
from torch_dmft.parameterization import Plan
from torch_dmft.parameterization.plan import function_of
from torch_dmft.theory.chain import Chain, chain_of
from torch_dmft.theory.coverage import refuse_unsupported, refuse_unwidenable


@dataclass(frozen=True)
class ChainNetwork:
    """A dense chain.

    Attributes:
        chain: the chain.
        paths: module paths of the weights l = 0..L, as answers and trainings name them.
    """

    chain: Chain
    paths: tuple[str, ...]

    @classmethod
    def unnamed(cls, chain: Chain) -> ChainNetwork:
        """A chain that was posed without a model; its weights are called as in ``Chain.build``."""
        return cls(chain, built_paths(chain))

    @property
    def outputs(self) -> int:
        """C."""
        return self.chain.outputs

    @property
    def functions(self) -> tuple[str, ...]:
        """Activation and gain of every hidden layer, as ``Plan.functions`` tells them."""
        return tuple(function_of(layer.activation, layer.gain) for layer in self.chain.hidden)

    @property
    def shown(self) -> Architecture | None:
        """The architecture at the width of the wrapped model; None for a chain, which is the same at every width."""
        return None

    @property
    def depth(self) -> str | None:
        """What residual branches are multiplied by; None for 1."""
        return None

    @property
    def gains(self) -> dict[str, float]:
        """The forward multiplier g of every input and hidden weight, by its path in the model that ``build`` makes."""
        return {path: layer.gain for path, layer in zip(built_paths(self.chain), self.chain.hidden, strict=False)}

    @property
    def bias_stds(self) -> dict[str, float]:
        """The standard deviation of the initial biases of hidden layers, by path likewise."""
        return {
            path: layer.bias_std or 0.0 for path, layer in zip(built_paths(self.chain), self.chain.hidden, strict=False)
        }

    @property
    def names(self) -> dict[str, str]:
        """The names of the weights, by their paths in the model that ``build`` makes."""
        return dict(zip(built_paths(self.chain), self.paths, strict=True))

    @property
    def source(self) -> Callable[[int], nn.Module] | Plan:
        """The model or factory that ``infinite_width`` makes a twin of."""
        return self.chain.build

    def build(self, width: int) -> nn.Module:
        """The network with ``width`` neurons in the last hidden layer, parameters on "meta"."""
        with torch.device("meta"):
            return self.chain.build(width)

    def require_law(self) -> None:
        """Refuse a network without an infinite-width law: chains have one."""

    def require_widenable(self) -> None:
        """Refuse a network that cannot be built at another width: chains can."""


@dataclass(frozen=True, eq=False)
class ModelNetwork:
    """A wrapped model of any width.

    Attributes:
        plan: the model and its scaling.
    """

    plan: Plan

    chain: None = None

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Module paths of the weights, in forward order."""
        return tuple(layer.path for layer in self.plan.architecture.layers)

    @property
    def outputs(self) -> int:
        """C."""
        return self.plan.architecture.outputs

    @property
    def functions(self) -> tuple[str, ...]:
        """Activation and gain behind every weight but the readout."""
        return self.plan.functions

    @property
    def shown(self) -> Architecture | None:
        """The architecture at the width of the plan."""
        return self.plan.architecture

    @property
    def depth(self) -> str | None:
        """What residual branches are multiplied by; None for 1."""
        return self.plan.depth

    @property
    def gains(self) -> dict[str, float]:
        """The forward multiplier g of every input and hidden weight, by module path."""
        return {rule.path: rule.gain for rule in self.plan.rules if rule.role in (Role.INPUT, Role.HIDDEN)}

    @property
    def bias_stds(self) -> dict[str, float]:
        """The standard deviation of the initial biases of hidden layers, by module path."""
        return {rule.path: rule.std for rule in self.plan.rules if rule.role is Role.VECTOR}

    @property
    def names(self) -> Mapping[str, str]:
        """The names of the weights, by their paths, which are the same."""
        return {path: path for path in self.paths}

    @property
    def source(self) -> Callable[[int], nn.Module] | Plan:
        """The model or factory that ``infinite_width`` makes a twin of."""
        return self.plan

    def build(self, width: int) -> nn.Module:
        """The network with ``width`` neurons in the last hidden layer, parameters on "meta"."""
        return widened(self.plan.model, self.plan.architecture, width)

    def require_law(self) -> None:
        """Refuse a network without an infinite-width law.

        Raises:
            UnsupportedModelError: naming every place.
        """
        refuse_unsupported(self.plan.model, self.plan.architecture)

    def require_widenable(self) -> None:
        """Refuse a network that cannot be built at another width.

        Raises:
            UnsupportedModelError: naming every place.
        """
        refuse_unwidenable(self.plan.model, self.plan.architecture)


Network = ChainNetwork | ModelNetwork


def network_in(plan: Plan) -> Network:
    """The network of a wrapped model: a chain if it is one."""
    chain = chain_of(plan)
    if chain is None:
        return ModelNetwork(plan)
    return ChainNetwork(chain, tuple(layer.path for layer in plan.architecture.layers))


def built_paths(chain: Chain) -> tuple[str, ...]:
    """Module paths of the weights in ``Chain.build``, which puts an activation behind each of them."""
    return tuple(str(2 * weight) for weight in range(chain.depth + 1))
