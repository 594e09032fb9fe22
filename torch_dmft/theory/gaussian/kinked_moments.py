"""Gaussian averages <phi(u) phi(v)> and <phi'(u) phi'(v)> of activations with kinks, to quadrature accuracy.

Let u = a x and v = b y with x, y ~ N(0, 1) of correlation rho.

*One kink, at zero, between any smooth pieces*: polar coordinates x = r cos t, y = r cos(t - t0) with rho = cos t0 give

    <F(u) H(v)> = (1 / 2 pi) int dt int r dr e^(-r^2/2) F(a r cos t) H(b r cos(t - t0)),

smooth but for the four directions in which u or v changes sign.

*Straight pieces between any kinks k, where the slope jumps by J_k*: as d<F H>/d rho = a b <F' H'> (Price) and phi'' is a
sum of delta functions, with h = k / a, h' = k' / b and rho = sin t,

    <phi' phi'> = <phi'>_a <phi'>_b + (1 / 2 pi) sum_kk' J_k J_k' int_0^{asin rho} e^(-q(t)) dt,
    <phi phi> = <phi>_a <phi>_b + a b rho <phi'>_a <phi'>_b
                + (a b / 2 pi) sum_kk' J_k J_k' int_0^{asin rho} e^(-q(t)) (rho - sin t) dt,
    q(t) = (h^2 + h'^2 - 2 h h' sin t) / (2 cos^2 t),

which for one kink at zero, q = 0, are the arc-cosine kernels. Nothing is singular at rho = +-1.

*Variables with a mean*, phi(u + s) and phi(v + t), have their kinks at k - s and k - t. They are integrated over x and,
given x, over v, both cut where they meet a kink.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.activation import Activation

_REACH = 9.0  # beyond, the weight is below round-off
_RADII = (0.0, 0.3, 1.5, 3.5, 6.0, _REACH)  # pieces of integrals over the distance from the origin
_NODES = 24  # in each piece
_STEEPEST, _PANELS = 36.0, 18  # sin t = tanh s for s up to the first, in so many pieces
_NUMBERS = 2**20  # in one array
_FEW = 12  # in each piece of the plane, where variables have a mean


def pair_averages(
    phi: Activation,
    left: Float[Tensor, " m"],
    right: Float[Tensor, " n"],
    rho: Float[Tensor, "m n"],
    means: tuple[Float[Tensor, " m"], Float[Tensor, " n"]] | None = None,
) -> tuple[Tensor, Tensor]:
    """<phi(u) phi(v)> and <phi'(u) phi'(v)> for every pair: two ``(m, n)`` arrays.

    Args:
        phi: an activation with one kink at zero, or with straight pieces between its kinks.
        left: standard deviations a of the u.
        right: standard deviations b of the v.
        rho: their correlations.
        means: s and t; None for centred variables.
    """
    every = [*torch.broadcast_tensors(left[:, None], right), rho]
    average: Callable[..., tuple[Tensor, Tensor]] = _in_sectors
    size = 4 * (len(_RADII) - 1) * _NODES**2
    if means is not None:
        average, size = _in_cells, 200 * _FEW**2
        every += torch.broadcast_tensors(means[0][:, None], means[1])
    elif phi.kinks != (0.0,):
        average, size = _between_straight_pieces, len(phi.kinks) ** 2 * _PANELS * _NODES
    columns = (x.reshape(-1).split(max(1, _NUMBERS // size)) for x in every)
    parts = [average(phi, *some) for some in zip(*columns, strict=True)]
    values, slopes = (torch.cat(each).reshape(rho.shape) for each in zip(*parts, strict=True))
    return values, slopes


def mean_square(
    phi: Activation, std: Float[Tensor, " row"], mean: Float[Tensor, " row"] | None = None
) -> Float[Tensor, " row"]:
    """<phi(u)^2> of every variable, piece by piece."""
    u, weight = _piecewise(phi, std, torch.zeros_like(std) if mean is None else mean)
    return (weight * phi.function(u).square()).sum(-1)


def mean_slope(phi: Activation, std: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """<phi'(u)> of every centred variable; of one without variance phi'(0), as torch differentiates there."""
    u, weight = _piecewise(phi, std, torch.zeros_like(std))
    return torch.where(std > 0, (weight * phi.first(u)).sum(-1), phi.first(torch.zeros_like(std)))


def _piecewise(phi: Activation, std: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Values of Gaussian variables between their kinks, and their weights: two ``(row, point)`` arrays."""
    kinks = (std.new_tensor(phi.kinks) - mean[:, None]) / std[:, None].clamp_min(1e-150)
    fixed = std.new_tensor([*(-r for r in _RADII), *_RADII]).expand(len(std), -1)
    x, weight = gauss(torch.cat([fixed, kinks.clamp(-_REACH, _REACH)], dim=-1).sort(dim=-1).values)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    return mean[:, None] + std[:, None] * x, weight * density


def _in_sectors(phi: Activation, a: Tensor, b: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """Averages over the plane, sector by sector."""
    turn = torch.acos(rho)
    quarter = torch.full_like(turn, math.pi / 2)
    directions = torch.stack([quarter, 3 * quarter, turn + quarter, turn - quarter], dim=-1)
    start = torch.remainder(directions, 2 * math.pi).sort(dim=-1).values
    ends = torch.cat([start, start[:, :1] + 2 * math.pi], dim=-1)
    angle, sector = gauss(ends, crowded=True)  # where u or v changes sign it stays small for all r: slow to converge
    r, ring = gauss(a.new_tensor(_RADII))
    weight = sector[..., None] * (ring * r * torch.exp(-r.square() / 2)) / (2 * math.pi)
    u, v = (a[:, None] * angle.cos())[..., None] * r, (b[:, None] * (angle - turn[:, None]).cos())[..., None] * r
    return (
        (weight * phi.function(u) * phi.function(v)).sum((-2, -1)),
        (weight * phi.first(u) * phi.first(v)).sum((-2, -1)),
    )


def _in_cells(
    phi: Activation, a: Tensor, b: Tensor, rho: Tensor, mean_a: Tensor, mean_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Averages over u and, given u, over v, cut where either meets a kink."""
    kinks, fixed = a.new_tensor(phi.kinks), a.new_tensor([*(-r for r in _RADII), *_RADII[1:]])
    spread = b * (1 - rho.square()).clamp_min(0).sqrt()
    own = (kinks - mean_a[:, None]) / a.clamp_min(1e-150)[:, None]
    middle = (kinks - mean_b[:, None]) / torch.where(rho == 0, 1e-150, b * rho)[:, None]
    ends = torch.cat([fixed.expand(len(a), -1), own, middle], dim=-1).nan_to_num().clamp(-_REACH, _REACH)
    x, weight = gauss(ends.sort(dim=-1).values, crowded=True, nodes=_FEW)
    u, center = mean_a[:, None] + a[:, None] * x, mean_b[:, None] + (b * rho)[:, None] * x
    cut = ((kinks - center[..., None]) / spread.clamp_min(1e-150)[:, None, None]).clamp(-_REACH, _REACH)
    ends = torch.cat(
        [fixed[1:-1:2].expand(*x.shape, -1), cut, (_REACH * a.new_tensor([-1, 1])).expand(*x.shape, -1)], -1
    )
    y, inner = gauss(ends.sort(dim=-1).values, nodes=_FEW)
    v = center[..., None] + spread[:, None, None] * y
    inner = inner * torch.exp(-y.square() / 2) / math.sqrt(2 * math.pi)
    weight = weight * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    return (
        (weight * phi.function(u) * (inner * phi.function(v)).sum(-1)).sum(-1),
        (weight * phi.first(u) * (inner * phi.first(v)).sum(-1)).sum(-1),
    )


def is_straight(phi: Activation, like: Tensor) -> bool:
    """Whether an activation is straight between its kinks."""
    points = torch.linspace(-7.3, 7.1, 60, dtype=like.dtype, device=like.device)
    return not bool(phi.second(points).any())


def _between_straight_pieces(phi: Activation, a: Tensor, b: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """Averages by Price's theorem."""
    kinks, jumps = jumps_of(phi, a)
    sine, cosine, weight = price_points(rho)
    left = kinks / a.clamp_min(1e-150)[:, None]
    right = kinks / b.clamp_min(1e-150)[:, None] * torch.where(rho < 0, -1.0, 1.0).to(a)[:, None]  # (-u, v) for rho < 0
    density = torch.zeros_like(sine)
    for i, jump in enumerate(jumps.tolist()):
        for j, other in enumerate(jumps.tolist()):
            h, k = left[:, i, None].clamp(-1e6, 1e6), right[:, j, None].clamp(-1e6, 1e6)
            density += jump * other * torch.exp(-((h - k) / cosine).square() / 2 - h * k / (1 + sine))
    density *= weight
    (mean_a, slope_a), (mean_b, slope_b) = (straight_means(phi, std, torch.zeros_like(std)) for std in (a, b))
    sign = torch.where(rho < 0, -1.0, 1.0).to(a)
    slopes = slope_a * slope_b + sign * density.sum(-1)
    excess = (density * (rho.abs()[:, None] - sine)).sum(-1)
    return mean_a * mean_b + a * b * (rho * slope_a * slope_b + excess), slopes


def price_points(rho: Float[Tensor, " pair"]) -> tuple[Tensor, Tensor, Tensor]:
    """Points of int_0^{asin |rho|} dt / (2 pi), over sin t = tanh s: sin t, cos t and weights, ``(pair, point)`` each."""
    end = torch.atanh(rho.abs()).clamp(max=_STEEPEST)
    s, weight = gauss(end[:, None] * torch.linspace(0, 1, _PANELS + 1).to(rho))
    cosine = 1 / torch.cosh(s)
    return torch.tanh(s), cosine, weight * cosine / (2 * math.pi)


def jumps_of(phi: Activation, like: Tensor) -> tuple[Tensor, Tensor]:
    """The kinks, and by how much the slope jumps there."""
    kinks = like.new_tensor(phi.kinks)
    return kinks, phi.first(kinks + 1e-3) - phi.first(kinks - 1e-3)


def straight_means(phi: Activation, std: Float[Tensor, " row"], shift: Float[Tensor, " row"]) -> tuple[Tensor, Tensor]:
    """<phi> and <phi'> of u + shift for phi(x) = phi(-m) + p (x + m) + sum_k J_k (x - k)_+, with -m below all kinks."""
    kinks, jumps = jumps_of(phi, std)
    low = kinks.min() - 1
    offset, slope = phi.function(low), phi.first(low)
    beyond = kinks - shift[:, None]
    h = beyond / std.clamp_min(1e-150)[:, None]
    above = torch.special.ndtr(-h)
    past = std[:, None] * torch.exp(-h.square() / 2) / math.sqrt(2 * math.pi) - beyond * above
    return offset + slope * (shift - low) + past @ jumps, slope + above @ jumps


def gauss(ends: Float[Tensor, "*batch end"], *, crowded: bool = False, nodes: int = _NODES) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points and weights on all intervals between consecutive ends, side by side; crowded there if asked."""
    places, weights = (torch.from_numpy(x).to(ends) for x in _legendre(nodes))
    if crowded:
        places, weights = places * (3 - places.square()) / 2, weights * 1.5 * (1 - places.square())
    half = ends.diff(dim=-1)[..., None] / 2
    points = (ends[..., :-1, None] + half) + half * places
    return points.flatten(-2), (half * weights).flatten(-2)


@cache
def _legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(nodes)
