"""Named elementwise activations with first and second derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import shown


@dataclass(frozen=True)
class Activation:
    """An elementwise activation phi.

    Attributes:
        name: the name users give.
        function: phi.
        first: phi'.
        second: phi'' as a function; distributional parts (ReLU's delta) are left out and told by ``kinks``.
        module: builds the nn.Module.
        kinks: where phi is not twice differentiable.
        homogeneous: degree kappa with phi(c x) = c^kappa phi(x) for c > 0, or None.
        first_of_value: phi' as a function of phi(h) rather than of h, where there is one.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    first: Callable[[Tensor], Tensor]
    second: Callable[[Tensor], Tensor]
    module: Callable[[], nn.Module]
    kinks: tuple[float, ...] = ()
    homogeneous: int | None = None
    first_of_value: Callable[[Tensor], Tensor] | None = None

    @property
    def smooth(self) -> bool:
        """Whether phi is twice differentiable everywhere."""
        return not self.kinks

    def slope(self, h: Tensor, value: Tensor) -> Tensor:
        """phi'(h), given phi(h) too, from the cheaper of both."""
        return self.first(h) if self.first_of_value is None else self.first_of_value(value)


class Erf(nn.Module):
    """Elementwise error function, erf(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply erf elementwise."""
        return torch.erf(x)


class Sin(nn.Module):
    """Elementwise sine, sin(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply sin elementwise."""
        return torch.sin(x)


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


def _gelu_tanh_parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tanh of the approximate GELU, and the two derivatives of its argument."""
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    return torch.tanh(scale * (x + cubic * x**3)), scale * (1 + 3 * cubic * x * x), scale * 6 * cubic * x


def _gelu_tanh_first(x: Tensor) -> Tensor:
    t, slope, _ = _gelu_tanh_parts(x)
    return (1 + t + x * (1 - t * t) * slope) / 2


def _gelu_tanh_second(x: Tensor) -> Tensor:
    t, slope, bend = _gelu_tanh_parts(x)
    return (1 - t * t) * (slope + x * (bend / 2 - t * slope * slope))


def _mish_parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tanh of softplus, its derivative, and the sigmoid."""
    t, s = torch.tanh(F.softplus(x)), torch.sigmoid(x)
    return t, s * (1 - t * t), s


def _mish_first(x: Tensor) -> Tensor:
    t, slope, _ = _mish_parts(x)
    return t + x * slope


def _mish_second(x: Tensor) -> Tensor:
    t, slope, s = _mish_parts(x)
    return slope * (2 + x * (1 - s - 2 * t * s))


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


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
            kinks=(0.0,),
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
        Activation(
            "gelu_tanh",
            lambda x: F.gelu(x, approximate="tanh"),
            _gelu_tanh_first,
            _gelu_tanh_second,
            lambda: nn.GELU(approximate="tanh"),
        ),
        Activation("mish", F.mish, _mish_first, _mish_second, nn.Mish),
        Activation("sin", torch.sin, torch.cos, lambda x: -torch.sin(x), Sin),
        Activation(
            "leaky_relu",
            F.leaky_relu,
            lambda x: torch.where(x > 0, x.new_ones(()), 0.01),
            torch.zeros_like,
            nn.LeakyReLU,
            kinks=(0.0,),
            homogeneous=1,
            first_of_value=lambda value: torch.where(value > 0, value.new_ones(()), 0.01),
        ),
        Activation(
            "elu",
            F.elu,
            lambda x: torch.exp(x.clamp(max=0)),
            lambda x: torch.where(x > 0, 0.0, torch.exp(x.clamp(max=0))),
            nn.ELU,
            kinks=(0.0,),
            first_of_value=lambda value: value.clamp(max=0) + 1,
        ),
        Activation(
            "selu",
            F.selu,
            lambda x: _SELU_SCALE * torch.where(x > 0, 1.0, _SELU_ALPHA * torch.exp(x.clamp(max=0))),
            lambda x: _SELU_SCALE * torch.where(x > 0, 0.0, _SELU_ALPHA * torch.exp(x.clamp(max=0))),
            nn.SELU,
            kinks=(0.0,),
        ),
        Activation(
            "hardtanh",
            F.hardtanh,
            lambda x: (x.abs() < 1).to(x.dtype),
            torch.zeros_like,
            nn.Hardtanh,
            kinks=(-1.0, 1.0),
            first_of_value=lambda value: (value.abs() < 1).to(value.dtype),
        ),
        Activation(
            "relu6",
            F.relu6,
            lambda x: ((x > 0) & (x < 6)).to(x.dtype),
            torch.zeros_like,
            nn.ReLU6,
            kinks=(0.0, 6.0),
            first_of_value=lambda value: ((value > 0) & (value < 6)).to(value.dtype),
        ),
        Activation(
            "softsign",
            F.softsign,
            lambda x: (1 + x.abs()) ** -2,
            lambda x: -2 * x.sign() * (1 + x.abs()) ** -3,
            nn.Softsign,
            kinks=(0.0,),
            first_of_value=lambda value: (1 - value.abs()) ** 2,
        ),
    )
}


def activation(name: str) -> Activation:
    """The activation with this name.

    Raises:
        InvalidInputError: if the name is unknown; the message lists the names.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise InvalidInputError(
            "Unknown activation.", got=shown(name), remedy=f"one of {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]
