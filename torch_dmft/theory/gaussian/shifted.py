r"""Gaussian variables plus a uniform one that all of them share: the bias of a neuron as torch draws it.

With u, v centred Gaussian and beta uniform on (-b, b), the same number for both,

.. math:: \langle F(u + \beta) H(v + \beta) \rangle
          = \int_{-b}^{b} \frac{d\beta}{2 b} \langle F(u + \beta) H(v + \beta) \rangle_{u, v} ,

Gauss-Legendre quadrature of Gaussian averages of shifted functions, whose kinks then lie at k - beta. Weight decay shrinks u
and beta alike, so a variable may see c beta. A variable without variance has kinks in beta, at which the interval is cut.

Between straight pieces the integral of Price's theorem (``kinked_moments``) is over a density that is Gaussian in beta, too:

.. math:: \int_{-b}^{b} \frac{d\beta}{2 b}\, e^{-(A \beta^2 - B \beta + C)}
          = \frac{\sqrt \pi}{4 b \sqrt A}\, e^{m^2 - C} [\mathrm{erf}(b \sqrt A - m) + \mathrm{erf}(b \sqrt A + m)],
          \qquad m = B / 2 \sqrt A .
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.activation import Activation
from torch_dmft.theory.gaussian.kinked_moments import (
    gauss,
    is_straight,
    jumps_of,
    mean_square,
    pair_averages,
    price_points,
    straight_means,
)
from torch_dmft.theory.gaussian.moments import Marginals, Smooth, correlation, marginals, project

_NUMBERS = 2**20
"""In one array."""
_NODES = 16
"""Values of the shift in each piece of its range, no longer than two: the poles of tanh are 1.6 away."""


def shifted_marginals(
    activation: Activation,
    variance: Float[Tensor, " row"],
    bound: Float[Tensor, " row"],
    *,
    order: int = 1024,
) -> Marginals:
    """Prepare Gaussian variables with a shared uniform shift for pair expectations of an activation.

    Args:
        activation: phi.
        variance: ``(row,)`` variances of the Gaussian parts, float64.
        bound: ``(row,)``, b as every variable sees it; proportional to each other.
        order: the largest number of Hermite terms of smooth activations.

    Raises:
        ConvergenceError: if ``order`` terms are not enough.
    """
    if not bool(bound.any()):
        return marginals(activation, variance, order=order)
    std, largest = variance.clamp_min(0).sqrt(), float(bound.max())
    kinks = [kink / largest for kink in activation.kinks if abs(kink) < largest]
    cuts = sorted({*_panels(largest), *kinks})
    points, weights = gauss(variance.new_tensor(cuts), crowded=bool(activation.kinks), nodes=_NODES)
    if activation.kinks and is_straight(activation, std):
        return _Straight(std, bound, activation, points, weights / 2)
    parts: list[Marginals] = []
    for point in points:
        shift = point * bound
        if activation.kinks:
            parts.append(_Kinked(std, shift, activation))
        else:
            first, second = (
                project(moved(function, shift), std, order=order)
                for function in (activation.function, activation.first)
            )
            parts.append(Smooth(std, first, second))
    return Mixture(tuple(parts), tuple((weights / 2).tolist()))


@dataclass(frozen=True)
class Mixture(Marginals):
    """Averages over several laws.

    Attributes:
        parts: the same variables under each of them.
        weights: their probabilities.
    """

    parts: tuple[Marginals, ...]
    weights: tuple[float, ...]

    def mean_square(self) -> Float[Tensor, " row"]:
        """<phi(u)^2>."""
        terms = [weight * part.mean_square() for part, weight in zip(self.parts, self.weights, strict=True)]
        return torch.stack(terms).sum(0)

    def pair(self, left: slice, right: slice, covariance: Float[Tensor, "m n"]) -> tuple[Tensor, Tensor]:
        """<phi(u) phi(v)> and <phi'(u) phi'(v)>."""
        values, slopes = torch.zeros_like(covariance), torch.zeros_like(covariance)
        for part, weight in zip(self.parts, self.weights, strict=True):
            value, slope = part.pair(left, right, covariance)
            values, slopes = values + weight * value, slopes + weight * slope
        return values, slopes


@dataclass(frozen=True)
class _Straight(Marginals):
    """Price's theorem between straight pieces; what is left of beta is in the means of single variables."""

    std: Tensor
    bound: Tensor
    phi: Activation
    points: Tensor
    weights: Tensor

    def mean_square(self) -> Float[Tensor, " row"]:
        squares = [mean_square(self.phi, self.std, point * self.bound) for point in self.points]
        return self.weights @ torch.stack(squares)

    def pair(self, left: slice, right: slice, covariance: Float[Tensor, "m n"]) -> tuple[Tensor, Tensor]:
        a, b = self.std[left], self.std[right]
        rho, scale = correlation(covariance, torch.outer(a, b)), torch.outer(a, b)
        means = [straight_means(self.phi, self.std, point * self.bound) for point in self.points]
        value, slope = (torch.stack(each) for each in zip(*means, strict=True))  # (point, row)
        apart, slopes = ((self.weights * x[:, left].T) @ x[:, right] for x in (value, slope))
        excess, density = self._jumps(left, right, rho)
        return apart + scale * (rho * slopes + excess), slopes + density

    def _jumps(self, left: slice, right: slice, rho: Tensor) -> tuple[Tensor, Tensor]:
        """The integrals over pairs of jumps, of (rho - sin t) and of 1."""
        floor = 1e-8 * float(self.bound.max())
        std = self.std.clamp_min(floor)
        wide = [
            each.reshape(-1) for x in (std, self.bound) for each in torch.broadcast_tensors(x[left, None], x[right])
        ]
        a, b, share_a, share_b = wide
        chunk = max(1, _NUMBERS // 432)
        columns = [x.split(chunk) for x in (a, b, share_a, share_b, rho.reshape(-1))]
        parts = [self._some_jumps(*some) for some in zip(*columns, strict=True)]
        excess, density = (torch.cat(each).reshape(rho.shape) for each in zip(*parts, strict=True))
        return excess, density

    def _some_jumps(self, a: Tensor, b: Tensor, share_a: Tensor, share_b: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
        kinks, jumps = jumps_of(self.phi, a)
        sine, cosine, weight = price_points(rho)
        sign = torch.where(rho < 0, -1.0, 1.0).to(a)  # (-u, v) for rho < 0
        p, q = (share_a / a)[:, None], (sign * share_b / b)[:, None]
        square = ((p - q) / cosine).square() / 2 + p * q / (1 + sine)
        root, total = square.sqrt(), torch.zeros_like(sine)
        for k, jump in zip(kinks.tolist(), jumps.tolist(), strict=True):
            for other_k, other in zip(kinks.tolist(), jumps.tolist(), strict=True):
                h, g = (k / a)[:, None], (sign * other_k / b)[:, None]
                middle = ((h - g) * (p - q) / cosine.square() + (h * q + g * p) / (1 + sine)) / (2 * root)
                constant = ((h - g) / cosine).square() / 2 + h * g / (1 + sine)
                height = torch.exp((middle.square() - constant).clamp(max=0))
                total += jump * other * height * (torch.erf(root - middle) + torch.erf(root + middle))
        total *= weight * math.sqrt(math.pi) / (4 * root)
        return (total * (rho.abs()[:, None] - sine)).sum(-1), sign * total.sum(-1)


@dataclass(frozen=True)
class _Kinked(Marginals):
    """Quadrature between shifted kinks."""

    std: Tensor
    shift: Tensor
    phi: Activation

    def mean_square(self) -> Float[Tensor, " row"]:
        return mean_square(self.phi, self.std, self.shift)

    def pair(self, left: slice, right: slice, covariance: Float[Tensor, "m n"]) -> tuple[Tensor, Tensor]:
        a, b = self.std[left], self.std[right]
        rho = correlation(covariance, torch.outer(a, b))
        return pair_averages(self.phi, a, b, rho, (self.shift[left], self.shift[right]))


def shifts(bound: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Values of a number that is uniform on (-bound, bound), where functions of it are smooth, and their probabilities."""
    if not bound:
        return like.new_zeros(1), like.new_ones(1)
    points, weights = gauss(like.new_tensor(_panels(bound)), nodes=_NODES)
    return bound * points, weights / 2


def _panels(bound: float) -> list[float]:
    """The ends of equal parts of (-1, 1), none longer than two in units in which it is (-bound, bound)."""
    count = max(1, math.ceil(bound))
    return [2 * end / count - 1 for end in range(count + 1)]


def moved(function: Callable[[Tensor], Tensor], shift: Float[Tensor, " row"]) -> Callable[[Tensor], Tensor]:
    """The function of x + shift, for x of shape ``(row, point)``."""
    return lambda x: function(x + shift[:, None])
