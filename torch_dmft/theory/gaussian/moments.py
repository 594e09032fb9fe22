"""Expectations of functions of two jointly Gaussian variables, for all pairs of many variables at once.

For centred u, v with standard deviations a, b and correlation rho, Mehler's formula turns a double integral into a sum,

    <F(u) H(v)> = sum_k rho^k F_k(a) H_k(b),        F_k(a) = <F(a x) He_k(x)> / sqrt(k!),    x ~ N(0, 1).

The one-dimensional projections belong to the variables, not to the pairs, and nothing is singular at rho = +-1.
Piecewise linear activations (arc-cosine kernels: Cho & Saul 2009) and erf (Williams 1997) use their closed forms. Other
activations with kinks, whose sums would converge slowly, are integrated piece by piece (``kinked_moments``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.activation import Activation
from torch_dmft.core.errors import ConvergenceError
from torch_dmft.theory.gaussian.kinked_moments import mean_slope, mean_square, pair_averages

# The projections integrate over |x| < _REACH by the trapezoidal rule: beyond, every Hermite polynomial times its weight
# is below round-off, and the rule converges geometrically for analytic integrands.
_REACH = 12.0
_ENOUGH, _TOO_MUCH = 1e-14, 1e-6  # tail of the series: stop adding terms; refuse the result


class Marginals(ABC):
    """Centred Gaussian variables, each seen through one activation."""

    @abstractmethod
    def mean_square(self) -> Float[Tensor, " row"]:
        """<phi(u)^2> of every variable."""

    @abstractmethod
    def pair(self, left: slice, right: slice, covariance: Float[Tensor, "m n"]) -> tuple[Tensor, Tensor]:
        """<phi(u) phi(v)> and <phi'(u) phi'(v)> for every u on the left and v on the right: two ``(m, n)`` arrays."""


def marginals(activation: Activation, variance: Float[Tensor, " row"], *, order: int = 1024) -> Marginals:
    """Prepare Gaussian variables for pair expectations of an activation: closed forms, Mehler's sum, or quadrature.

    Args:
        activation: phi.
        variance: ``(row,)`` variances, float64.
        order: the largest number of terms of the sum; as many are taken as the activation needs.

    Returns:
        Variables to be paired by ``Marginals.pair``.

    Raises:
        ConvergenceError: if ``order`` terms are not enough.
    """
    std = variance.clamp_min(0).sqrt()
    if activation.kinks:
        is_straight = activation.homogeneous == 1
        found = PiecewiseLinear.of(activation, variance) if is_straight else Kinked(std, activation)
        return AtRest.of(found, activation, std)
    if activation.homogeneous == 1:
        return PiecewiseLinear.of(activation, variance)
    if activation.name == "erf":
        return ErrorFunction(variance)
    return Smooth(std, project(activation.function, std, order=order), project(activation.first, std, order=order))


@dataclass(frozen=True)
class PiecewiseLinear(Marginals):
    """phi(x) = p x for x > 0 and q x for x < 0: linear, ReLU and leaky ReLU.

    With s = (p + q)/2, d = (p - q)/2 and phi = s x + d |x| the odd and even parts do not mix:

        <phi phi> = s^2 c + d^2 (2 a b / pi) (sqrt(1 - rho^2) + rho asin rho),
        <phi' phi'> = s^2 + d^2 (2 / pi) asin rho.
    """

    variance: Tensor
    odd: float
    even: float

    @classmethod
    def of(cls, activation: Activation, variance: Float[Tensor, " row"]) -> PiecewiseLinear:
        """Read the two slopes off the activation."""
        up, down = activation.function(variance.new_tensor([1.0, -1.0])).tolist()
        return cls(variance, odd=(up - down) / 2, even=(up + down) / 2)

    def mean_square(self) -> Float[Tensor, " row"]:
        """<phi(u)^2> = (s^2 + d^2) a^2."""
        return (self.odd**2 + self.even**2) * self.variance

    def pair(self, left: slice, right: slice, covariance: Float[Tensor, "m n"]) -> tuple[Tensor, Tensor]:
        """<phi(u) phi(v)> and <phi'(u) phi'(v)>."""
        if self.even == 0:
            return self.odd**2 * covariance, torch.full_like(covariance, self.odd**2)
        scale = torch.outer(self.variance[left].sqrt(), self.variance[right].sqrt())
        rho = correlation(covariance, scale)
        angle = torch.asin(rho)
        absolute = 2 / math.pi * scale * (torch.sqrt(1 - rho**2) + rho * angle)
        return (
            self.odd**2 * covariance + self.even**2 * absolute,
            self.odd**2 + self.even**2 * 2 / math.pi * angle,
        )


@dataclass(frozen=True)
class ErrorFunction(Marginals):
    """phi = erf, with D^2 = (1 + 2 a^2) (1 + 2 b^2).

    <phi phi> = (2/pi) asin(2 c / D),    <phi' phi'> = (4/pi) / sqrt(D^2 - 4 c^2).
    """

    variance: Tensor

    def mean_square(self) -> Float[Tensor, " row"]:
        """<phi(u)^2> = (2/pi) asin(2 a^2 / (1 + 2 a^2))."""
        return 2 / math.pi * torch.asin(2 * self.variance / (1 + 2 * self.variance))

    def pair(self, left: slice, right: slice, covariance: Float[Tensor, "m n"]) -> tuple[Tensor, Tensor]:
        """<phi(u) phi(v)> and <phi'(u) phi'(v)>."""
        squared = torch.outer(1 + 2 * self.variance[left], 1 + 2 * self.variance[right])
        return (
            2 / math.pi * torch.asin(2 * covariance / squared.sqrt()),
            4 / math.pi / torch.sqrt(squared - 4 * covariance**2),
        )


@dataclass(frozen=True)
class Smooth(Marginals):
    """A smooth phi by Mehler's sum.

    Attributes:
        std: ``(row,)``.
        features: projections of phi, ``(row, k)``.
        slopes: projections of phi', ``(row, k)``.
    """

    std: Tensor
    features: Tensor
    slopes: Tensor

    def mean_square(self) -> Float[Tensor, " row"]:
        """<phi(u)^2>."""
        return self.features.square().sum(-1)

    def pair(self, left: slice, right: slice, covariance: Float[Tensor, "m n"]) -> tuple[Tensor, Tensor]:
        """<phi(u) phi(v)> and <phi'(u) phi'(v)>."""
        rho = correlation(covariance, torch.outer(self.std[left], self.std[right]))
        features = mehler(self.features[left], self.features[right], rho)
        return features, mehler(self.slopes[left], self.slopes[right], rho)


@dataclass(frozen=True)
class Kinked(Marginals):
    """A phi with kinks, integrated over the pieces between them.

    Attributes:
        std: ``(row,)``.
        phi: the activation.
    """

    std: Tensor
    phi: Activation

    def mean_square(self) -> Float[Tensor, " row"]:
        """<phi(u)^2>."""
        return mean_square(self.phi, self.std)

    def pair(self, left: slice, right: slice, covariance: Float[Tensor, "m n"]) -> tuple[Tensor, Tensor]:
        """<phi(u) phi(v)> and <phi'(u) phi'(v)>."""
        a, b = self.std[left], self.std[right]
        return pair_averages(self.phi, a, b, correlation(covariance, torch.outer(a, b)))


@dataclass(frozen=True)
class AtRest(Marginals):
    """Variables some of which have no variance and lie exactly on a kink, where torch takes the slope of one side.

    Of u = 0 and any v, <phi'(u) phi'(v)> = phi'(0) <phi'(v)>, phi' as torch has it: 0 of ReLU, and not 1/2.

    Attributes:
        found: averages of phi phi, and of phi' phi' of the other variables.
        rests: ``(row,)``, which variables have no variance.
        slope: ``(row,)``, <phi'>.
    """

    found: Marginals
    rests: Tensor
    slope: Tensor

    @classmethod
    def of(cls, found: Marginals, phi: Activation, std: Float[Tensor, " row"]) -> Marginals:
        """The averages as they are, unless a variable rests."""
        rests = std == 0
        return cls(found, rests, mean_slope(phi, std)) if bool(rests.any()) else found

    def mean_square(self) -> Float[Tensor, " row"]:
        """<phi(u)^2>."""
        return self.found.mean_square()

    def pair(self, left: slice, right: slice, covariance: Float[Tensor, "m n"]) -> tuple[Tensor, Tensor]:
        """<phi(u) phi(v)> and <phi'(u) phi'(v)>."""
        features, slopes = self.found.pair(left, right, covariance)
        rests = self.rests[left, None] | self.rests[right]
        return features, torch.where(rests, torch.outer(self.slope[left], self.slope[right]), slopes)


def correlation(covariance: Float[Tensor, "m n"], scale: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """The correlation c / (a b), zero for a variable without variance."""
    rho = torch.where(scale > 0, covariance / scale.clamp_min(torch.finfo(scale.dtype).tiny), 0.0)
    return rho.clamp(-1, 1)


def mehler(
    first: Float[Tensor, "m k"], second: Float[Tensor, "n k2"], rho: Float[Tensor, "m n"]
) -> Float[Tensor, "m n"]:
    """<F(u) H(v)> = sum_k rho^k F_k H_k for every pair.

    Args:
        first: projections of F for m variables, see ``project``.
        second: projections of H for n variables.
        rho: ``(m, n)`` correlations.
    """
    terms = min(first.shape[1], second.shape[1])
    total = torch.zeros_like(rho)
    for k in reversed(range(terms)):
        total.mul_(rho).addr_(first[:, k], second[:, k])
    return total


def project(
    function: Callable[[Tensor], Tensor], std: Float[Tensor, " row"], *, order: int = 1024
) -> Float[Tensor, "row k"]:
    """The normalised Hermite coefficients F_k = <F(a x) He_k(x)> / sqrt(k!).

    Args:
        function: F, smooth, elementwise.
        std: ``(row,)``, a, float64.
        order: the largest number of coefficients; as many are taken as hold all of <F^2> to round-off.

    Raises:
        ConvergenceError: if ``order`` coefficients miss a millionth of <F^2>, as for a nearly discontinuous F.
    """
    terms, tail = min(64, order), torch.zeros(())
    while True:
        points, weights = _nodes(std, terms)
        values = function(std[:, None] * points)
        coefficients = (values * weights) @ _hermite(points, terms).T
        square = (values.square() * weights).sum(-1)
        tail = (1 - coefficients.square().sum(-1) / square.clamp_min(torch.finfo(square.dtype).tiny)).clamp_min(0)
        tail = torch.where(square > 0, tail, 0.0)
        if float(tail.max()) < _ENOUGH or terms == order:
            break
        terms = min(2 * terms, order)
    if not float(tail.max()) < _TOO_MUCH:
        worst = int(tail.argmax())
        raise ConvergenceError(
            f"{order} terms of the Hermite series miss {float(tail.max()):.1e} of a Gaussian average.",
            got=f"a pre-activation of standard deviation {float(std[worst]):.3g}",
            remedy="a larger `order`, or smaller inputs, gains and biases",
        )
    return coefficients


def _nodes(like: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """Trapezoidal points, fine enough for He_k with k < terms, and their weights under N(0, 1)."""
    points = torch.linspace(-_REACH, _REACH, 512 + 4 * terms, dtype=like.dtype, device=like.device)
    spacing = 2 * _REACH / (len(points) - 1)
    return points, spacing / math.sqrt(2 * math.pi) * torch.exp(-points.square() / 2)


def _hermite(points: Tensor, terms: int) -> Tensor:
    """He_k(x) / sqrt(k!) for k < terms: ``(terms, point)``."""
    table = torch.ones(terms, len(points), dtype=points.dtype, device=points.device)
    if terms > 1:
        table[1] = points
    for k in range(2, terms):
        table[k] = (points * table[k - 1] - math.sqrt(k - 1) * table[k - 2]) / math.sqrt(k)
    return table
