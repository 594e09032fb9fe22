"""Network: what a problem trains, without a width: a dense chain, or a wrapped model that shows its architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_dmft.architecture import Architecture, Role
from torch_dmft.architecture.widen import widened
from torch_dmft.core.errors import UnsupportedModelError
from torch_dmft.core.undisturbed import undisturbed
from torch_dmft.parameterization import Plan
from torch_dmft.parameterization.plan import function_of
from torch_dmft.theory.chain import Chain, chain_of
from torch_dmft.theory.coverage import beyond_theory, readouts_of_own_size, refuse_unsupported, refuse_unwidenable
from torch_dmft.uses.outputs import Example, Runs, Selection, moved, output_rows, rows
from torch_dmft.uses.outputs import count as samples_in


@dataclass(frozen=True)
class ChainNetwork:
    """A dense chain.

    Attributes:
        chain: the chain.
        paths: module paths of the weights l = 0..L, as answers and trainings name them.
        plan: the wrapped model that it is, if it was posed of one.
    """

    chain: Chain
    paths: tuple[str, ...]
    plan: Plan | None = field(default=None, compare=False)

    @classmethod
    def unnamed(cls, chain: Chain) -> ChainNetwork:
        """A chain that was posed without a model; its weights are called as in ``Chain.build``."""
        return cls(chain, built_paths(chain))

    selection: None = None
    """Of a chain all outputs are f."""
    batch_norm: str = "probe"
    """Chains have none."""

    @property
    def outputs(self) -> int:
        """C."""
        return self.chain.outputs

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights where there is a model."""
        return torch.get_default_dtype() if self.plan is None else dtype_of(self.plan)

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

    row_stds: ClassVar[Mapping[str, float]] = MappingProxyType({})
    """Chains have no embeddings."""

    @property
    def hidden(self) -> tuple[str, ...]:
        """The names of the weights between two widths."""
        return tuple(f"{path}.weight" for path in self.paths[1:-1])

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
        example: two rows that it runs on; None if they are one tensor of numbers.
        selection: which part of what it returns, or what function of it, is f; None for the usual one.
        count: C, if f is a part of what the model returns.
        batch_norm: whose statistics BatchNorm is measured with, as in ``Recorder``.
    """

    plan: Plan
    example: Example | None = None
    selection: Selection | None = None
    count: int | None = None
    batch_norm: str = "probe"

    chain: None = None

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Module paths of the weights, in forward order."""
        return tuple(layer.path for layer in self.plan.architecture.layers)

    @property
    def outputs(self) -> int:
        """C."""
        return self.plan.architecture.outputs if self.count is None else self.count

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return dtype_of(self.plan)

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
        """The forward multiplier g of every input and hidden weight, and the size of embeddings, by module path."""
        scaled = (Role.INPUT, Role.HIDDEN, Role.EMBEDDING)
        return {rule.path: rule.gain for rule in self.plan.rules if rule.role in scaled}

    @property
    def bias_stds(self) -> dict[str, float]:
        """The standard deviation of the initial biases of hidden layers, by module path."""
        return {rule.path: rule.std for rule in self.plan.rules if rule.role is Role.VECTOR}

    @property
    def row_stds(self) -> dict[str, float]:
        """The standard deviation of initial rows, of embeddings and of parameters outside of layers, by name."""
        bare = self.plan.architecture.bare
        return {rule.name: rule.std for rule in self.plan.rules if rule.role is Role.EMBEDDING or rule.name in bare}

    @property
    def hidden(self) -> tuple[str, ...]:
        """The names of the weights between two widths."""
        return tuple(layer.weight for layer in self.plan.architecture.layers if layer.role is Role.HIDDEN)

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
        beyond = tuple(beyond_theory(self.plan, self.example))
        refuse_unsupported(self.plan.model, self.plan.architecture, beyond, self.plan.initial)

    def require_widenable(self) -> None:
        """Refuse a network that cannot be built at another width.

        Raises:
            UnsupportedModelError: naming every place.
        """
        if self.plan.wrapping.init == "untouched" and self.plan.architecture.folds:
            raise UnsupportedModelError("This model cannot be widened:", [*beyond_theory(self.plan, self.example)])
        is_plain = isinstance(self.example, Tensor | None)
        refuse_unwidenable(self.plan, is_plain=is_plain)


Network = ChainNetwork | ModelNetwork


def network_in(plan: Plan, inputs: Example, selection: Selection | None = None, batch_norm: str = "probe") -> Network:
    """The network of a wrapped model: a chain if it is one.

    Args:
        plan: the model and its scaling.
        inputs: what it is run on.
        selection: which part of what it returns is f; None for the usual one.
        batch_norm: whose statistics BatchNorm is measured with.
    """
    is_plain = selection is None and isinstance(inputs, Tensor) and not readouts_of_own_size(plan)
    chain = chain_of(plan) if is_plain else None
    if chain is not None:
        return ChainNetwork(chain, tuple(layer.path for layer in plan.architecture.layers), plan)
    example = rows(inputs, [0, 1])
    count = None if selection is None else outputs_of(plan, example, selection).shape[1]
    return ModelNetwork(plan, example, selection, count, batch_norm)


def outputs_of(plan: Plan, inputs: Example, selection: Selection | None) -> Float[Tensor, "sample output"]:
    """F of a wrapped model as it is, in evaluation mode."""
    device = next(plan.model.parameters()).device
    with undisturbed(plan.model), torch.no_grad():
        return output_rows(Runs(plan.model, selection)(moved(inputs, device)), samples_in(inputs))


def dtype_of(plan: Plan) -> torch.dtype:
    """The floating-point type of a model's parameters."""
    return next(p.dtype for p in plan.model.parameters() if p.is_floating_point())


def built_paths(chain: Chain) -> tuple[str, ...]:
    """Module paths of the weights in ``Chain.build``, which puts an activation behind each of them."""
    return tuple(str(2 * weight) for weight in range(chain.depth + 1))
