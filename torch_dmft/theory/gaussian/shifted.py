r"""Gaussian variables plus a uniform one that all of them share: the bias of a neuron as torch draws it.

With u, v centred Gaussian and beta uniform on (-b, b), the same number for both,

.. math:: \langle F(u + \beta) H(v + \beta) \rangle
          = \int_{-b}^{b} \frac{d\beta}{2 b} \langle F(u + \beta) H(v + \beta) \rangle_{u, v} ,

Gauss-Legendre quadrature of Gaussian averages of shifted functions, whose kinks then lie at k - beta. Weight decay shrinks u
and beta alike, so a variable may see c beta. A variable without variance has kinks in beta, at which the interval is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.activation import Activation
from torch_dmft.theory.gaussian.kinked_moments import gauss, mean_square, pair_averages
from torch_dmft.theory.gaussian.moments import Marginals, correlation, marginals, mehler, project

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
            parts.append(_Smooth(std, first, second))
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
class _Smooth(Marginals):
    """Mehler's sum of shifted functions."""

    std: Tensor
    features: Tensor
    slopes: Tensor

    def mean_square(self) -> Float[Tensor, " row"]:
        return self.features.square().sum(-1)

    def pair(self, left: slice, right: slice, covariance: Float[Tensor, "m n"]) -> tuple[Tensor, Tensor]:
        rho = correlation(covariance, torch.outer(self.std[left], self.std[right]))
        features = mehler(self.features[left], self.features[right], rho)
        return features, mehler(self.slopes[left], self.slopes[right], rho)


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
