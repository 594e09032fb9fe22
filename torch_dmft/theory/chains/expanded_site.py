"""The single-site fields of one hidden layer, expanded in gamma0 to second order.

With k^l = gamma0 N_L df/dh^l, write h = u + gamma0 h1 + gamma0^2 h2, z = r + gamma0 z1 + gamma0^2 z2 and k = phi'(h) z.
For I_a(t) = sum_{s<t} dI_a(s), dI_a(s) = eta Delta_a(s) the field equations in discrete time become

    h1_m(t) = sum_a H_ma I_a(t) k0_a                    h2_m(t) = sum_a H_ma sum_{s<t} dI_a(s) k1_a(s)
    z1_m(t) = sum_a Z_ma I_a(t) phi_a + e_m(t) phi_m    e_m(t) = sum_a E_ma I_a(t)
    z2_m(t) = sum_a Z_ma sum_{s<t} dI_a(s) phi'_a h1_a(s) + e_m(t) phi'_m h1_m(t)

H and Z join what the weights learned and the responses A and B to first order in gamma0, e is the response B at equal
times; H, Z and E are averages over Gaussian pairs. As in the paper, time enters through sums of Delta and of Delta Delta.

Secants: f(t+1) - f(t) is *exactly* sum_l <k~^{l+1}(t) dW^l(t) phi^l(t+1)> when k~ is backpropagated with the secant slopes
(phi(h(t+1)) - phi(h(t))) / (h(t+1) - h(t)). Its response to u is spread over t and t + 1; so the parts of Z and E that
are responses (``late``) act at the middle of the step, and E gains a term in the square of the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.activation import Activation
from torch_dmft.theory.gaussian.latents import Population
from torch_dmft.theory.gaussian.moments import correlation, mehler, project
from torch_dmft.theory.gaussian.shifted import moved, shifts

_CHUNK = 2**17  # numbers per field that are expanded at once: a megabyte, so that they stay in cache


@dataclass(frozen=True)
class PairAverages:
    """<phi^(i)(u_m) phi^(j)(u_n)> for derivatives of an activation, ``(sample, sample)`` each."""

    slopes: Tensor  # i, j = 1, 1
    curvatures: Tensor  # 2, 2
    bent: Tensor  # 2, 0
    twisted: Tensor  # 3, 1

    @staticmethod
    def of(phi: Activation, covariance: Float[Tensor, "sample sample"], bound: float = 0.0) -> PairAverages:
        """Average over u ~ N(0, covariance), plus a bias uniform on (-bound, bound)."""
        std = covariance.diagonal().sqrt()
        rho = correlation(covariance, torch.outer(std, std))
        totals = [torch.zeros_like(rho) for _ in range(4)]
        for shift, weight in zip(*shifts(bound, rho), strict=True):
            zeroth, first, second, third = (project(moved(f, shift.expand_as(std)), std) for f in derivatives(phi))
            pairs = ((first, first), (second, second), (second, zeroth), (third, first))
            totals = [total + weight * mehler(*pair, rho) for total, pair in zip(totals, pairs, strict=True)]
        return PairAverages(*totals)


@dataclass(frozen=True)
class ExpandedSite:
    """One hidden layer at order gamma0.

    Attributes:
        phi: the activation.
        covariance: of the Gaussian part of u, ``(sample, sample)``.
        bound: b of a bias uniform on (-b, b) that is the rest of it; 0 for none.
        noise: of r, for each output, ``(sample, sample)``.
        averages: over pairs of u.
        forward: H.
        early, late: the parts of Z at the start of a step and, in a secant, at its middle; Z = early + late.
        equal_early, equal_late: the same for E.
        equal_step: what the secant's E adds in the square of the step.
    """

    phi: Activation
    covariance: Tensor
    bound: float
    noise: Tensor
    averages: PairAverages
    forward: Tensor
    early: Tensor
    late: Tensor
    equal_early: Tensor
    equal_late: Tensor
    equal_step: Tensor


@dataclass(frozen=True)
class Drive:
    """The training at order zero.

    Attributes:
        steps: dI = eta Delta, ``(step, sample, output)``.
        total: I at the states 0..steps, ``(step + 1, sample, output)``.
    """

    steps: Tensor
    total: Tensor


@dataclass(frozen=True)
class SecondMoments:
    """Averages of products of fields at order gamma0^2, at fixed covariances of u and r.

    Rows are samples (features) or (sample, output) pairs (gradients).

    Attributes:
        features: phi(t) phi(t), ``(state, row, row)``.
        features_next: phi(t + 1) phi(t), ``(step, row, row)``.
        secants: (secant k)(t) k(t), ``(step, row, row)``.
        features_recorded: phi phi at the recorded times, ``(time, row, row)`` or ``(time, row, time, row)``.
        gradients_recorded: k k likewise.
    """

    features: Tensor
    features_next: Tensor
    secants: Tensor
    features_recorded: Tensor
    gradients_recorded: Tensor


def derivatives(phi: Activation) -> tuple:
    """phi, phi', phi'' and phi''' as functions."""

    def third(x: Tensor) -> Tensor:
        return torch.func.jvp(phi.second, (x,), (torch.ones_like(x),))[1]

    return phi.function, phi.first, phi.second, third


def sample(
    site: ExpandedSite,
    drive: Drive,
    neurons: int,
    generator: torch.Generator,
    record: Tensor,
    *,
    two_time: bool | float,
) -> SecondMoments:
    """Monte Carlo averages over draws of (u, r).

    Args:
        site: the layer.
        drive: training at order zero.
        neurons: how many draws; their first two moments are exact.
        generator: source of randomness.
        record: ``(time,)`` states at which kernels are wanted.
        two_time: whether between all pairs of them.
    """
    samples, outputs = drive.total.shape[1:]
    like = site.covariance
    population = Population(neurons, law="limit", generator=generator, dtype=like.dtype, device=like.device)
    latents = population.draw(samples * (1 + outputs)).T
    u = latents[:, :samples] @ _root(site.covariance).T
    if site.bound:
        u = u + site.bound / math.sqrt(3) * population.draw(1, uniform=True).T
    r = torch.einsum("mk,nkc->nmc", _root(site.noise), latents[:, samples:].reshape(neurons, samples, outputs))
    chunk = max(1, _CHUNK // drive.total.numel())
    parts = (
        _products(site, drive, part_u, part_r, record, two_time)
        for part_u, part_r in zip(u.split(chunk), r.split(chunk), strict=True)
    )
    totals = next(parts)
    for found in parts:
        for total, more in zip(totals, found, strict=True):
            total.add_(more)
    return SecondMoments(*(total / neurons for total in totals))


def _products(
    site: ExpandedSite, drive: Drive, u: Tensor, r: Tensor, record: Tensor, two_time: bool | float
) -> list[Tensor]:
    """Sums over neurons of all products, in the order of ``SecondMoments``."""
    phi, slope, bend, twist = (f(u) for f in derivatives(site.phi))
    k0 = slope[..., None] * r
    in_time = [x[:, None] for x in (phi, slope, bend, twist)]
    _, slope_t, bend_t, twist_t = in_time
    total, steps = drive.total, drive.steps

    h1 = torch.einsum("tac,nac->nta", total, k0) @ site.forward.T
    early, late = (_first(z, e, total, phi) for z, e in ((site.early, site.equal_early), (site.late, site.equal_late)))
    equal_early, equal_late = (torch.einsum("ma,tac->tmc", e, total) for e in (site.equal_early, site.equal_late))
    k1 = (bend_t * h1)[..., None] * r[:, None] + slope_t[..., None] * (early + late)
    h2 = _before((steps * k1[:, :-1]).sum(-1)) @ site.forward.T
    pushed = _before(steps * (slope_t * h1)[:, :-1, :, None])

    def second(h: Tensor, h2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
        curved = (bend_t * h2 + twist_t * h.square() / 2)[..., None] * r[:, None]
        return slope_t[..., None] * z2 + (bend_t * h)[..., None] * z1 + curved

    z2 = torch.einsum("ma,ntac->ntmc", site.early + site.late, pushed)
    z2 = z2 + (equal_early + equal_late) * (slope_t * h1)[..., None]
    k2 = second(h1, h2, early + late, z2)

    h_mid, change = _middle(h1), h1.diff(dim=1)
    z1_secant = early[:, :-1] + _middle(late)
    k1_secant = (bend_t * h_mid)[..., None] * r[:, None] + slope_t[..., None] * z1_secant
    z2_secant = torch.einsum("ma,ntac->ntmc", site.early, pushed[:, :-1])
    z2_secant = z2_secant + torch.einsum("ma,ntac->ntmc", site.late, _middle(pushed))
    equal = equal_early[:-1] + (equal_late[:-1] + equal_late[1:]) / 2
    z2_secant = z2_secant + equal * (slope_t * h_mid)[..., None]
    z2_secant = z2_secant + torch.einsum("ma,tac->tmc", site.equal_step, steps) * (slope_t * change)[..., None] / 12
    k2_secant = second(h_mid, _middle(h2), z1_secant, z2_secant)
    k2_secant = k2_secant + (twist_t * change.square() / 24)[..., None] * r[:, None]

    features = (phi, slope_t * h1, slope_t * h2 + bend_t * h1.square() / 2)
    gradients = (k0.flatten(1), k1.flatten(2), k2.flatten(2))
    secants = (k0.flatten(1), k1_secant.flatten(2), k2_secant.flatten(2))
    start, end = slice(None, -1), slice(1, None)
    average = _two_times if two_time else _equal_times
    return [
        _equal_times(features, features),
        _equal_times(_at(features, end), _at(features, start)),
        _equal_times(secants, _at(gradients, start)),
        average(_at(features, record), _at(features, record)),
        average(_at(gradients, record), _at(gradients, record)),
    ]


_Orders = tuple[Tensor, Tensor, Tensor]
"""A field at orders 0 (neuron, row), 1 and 2 (neuron, time, row)."""


def _first(z: Tensor, equal: Tensor, total: Tensor, phi: Tensor) -> Tensor:
    """sum_a Z_ma I_a(t) phi_a + e_m(t) phi_m."""
    spread = torch.einsum("ma,tac,na->ntmc", z, total, phi)
    return spread + torch.einsum("ma,tac,nm->ntmc", equal, total, phi)


def _before(x: Tensor) -> Tensor:
    """Sums over all earlier steps, at the states 0..steps."""
    return torch.cat([x.new_zeros(len(x), 1, *x.shape[2:]), x.cumsum(1)], dim=1)


def _middle(x: Tensor) -> Tensor:
    return (x[:, :-1] + x[:, 1:]) / 2


def _at(orders: _Orders, times: slice | Tensor) -> _Orders:
    return orders[0], orders[1][:, times], orders[2][:, times]


def _equal_times(left: _Orders, right: _Orders) -> Tensor:
    """The order gamma0^2 of sum left(t) right(t): ``(time, row, row)``."""
    first = left[1].permute(1, 2, 0) @ right[1].permute(1, 0, 2)
    return first + torch.einsum("nti,nj->tij", left[2], right[0]) + torch.einsum("ni,ntj->tij", left[0], right[2])


def _two_times(left: _Orders, right: _Orders) -> Tensor:
    """The order gamma0^2 of sum left(t) right(s): ``(time, row, time, row)``."""
    first = torch.tensordot(left[1], right[1], dims=([0], [0]))
    second = torch.einsum("nti,nj->tij", left[2], right[0])[:, :, None, :]
    return first + second + torch.einsum("ni,nsj->isj", left[0], right[2])


def _root(covariance: Tensor) -> Tensor:
    """R with R R^T = covariance, also for singular ones."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()
