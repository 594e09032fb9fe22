"""Named elementwise activations with first and second derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_dmft.core.errors import InvalidInputError


@dataclass(frozen=True)
class Activation:
    """An elementwise activation phi.

    Attributes:
        name: the name users give.
        function: phi.
        first: phi'.
        second: phi'' as a function; distributional parts (ReLU's delta) are left out and told by ``smooth``.
        module: builds the nn.Module.
        smooth: whether phi is twice differentiable everywhere.
        homogeneous: degree kappa with phi(c x) = c^kappa phi(x) for c > 0, or None.
        first_of_value: phi' as a function of phi(h) rather than of h, where there is one.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    first: Callable[[Tensor], Tensor]
    second: Callable[[Tensor], Tensor]
    module: Callable[[], nn.Module]
    smooth: bool = True
    homogeneous: int | None = None
    first_of_value: Callable[[Tensor], Tensor] | None = None

    def slope(self, h: Tensor, value: Tensor) -> Tensor:
        """phi'(h), given phi(h) too, from whichever costs less."""
        return self.first(h) if self.first_of_value is None else self.first_of_value(value)


class Erf(nn.Module):
    """Elementwise error function, erf(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply erf elementwise."""
        return torch.erf(x)


def _gaussian(x: Tensor) -> Tensor:
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _normal_cdf(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


def _tanh_first(x: Tensor) -> Tensor:
    return 1 - torch.tanh(x) ** 2


def _silu_first(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _silu_second(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _sigmoid_first(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s)


def _sigmoid_second(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s) * (1 - 2 * s)


ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation("linear", lambda x: x, torch.ones_like, torch.zeros_like, nn.Identity, homogeneous=1),
        Activation(
            "relu",
            torch.relu,
            lambda x: (x > 0).to(x.dtype),
            torch.zeros_like,
            nn.ReLU,
            smooth=False,
            homogeneous=1,
            first_of_value=lambda value: (value > 0).to(value.dtype),
        ),
        Activation(
            "tanh",
            torch.tanh,
            _tanh_first,
            lambda x: -2 * torch.tanh(x) * _tanh_first(x),
            nn.Tanh,
            first_of_value=lambda value: torch.addcmul(value.new_ones(()), value, value, value=-1),
        ),
        Activation(
            "erf",
            torch.erf,
            lambda x: 2 / math.sqrt(math.pi) * torch.exp(-x * x),
            lambda x: -4 * x / math.sqrt(math.pi) * torch.exp(-x * x),
            Erf,
        ),
        Activation(
            "sigmoid",
            torch.sigmoid,
            _sigmoid_first,
            _sigmoid_second,
            nn.Sigmoid,
            first_of_value=lambda value: value * (1 - value),
        ),
        Activation(
            "gelu",
            F.gelu,
            lambda x: _normal_cdf(x) + x * _gaussian(x),
            lambda x: (2 - x * x) * _gaussian(x),
            nn.GELU,
        ),
        Activation("silu", F.silu, _silu_first, _silu_second, nn.SiLU),
        Activation("softplus", F.softplus, torch.sigmoid, _sigmoid_first, nn.Softplus),
    )
}


def activation(name: str) -> Activation:
    """The activation with this name.

    Raises:
        InvalidInputError: if there is none; the message lists those there are.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise InvalidInputError(f"No activation is called {name!r}.", remedy=f"one of {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]
