"""Means over many finite networks with honest standard errors, and their limit at infinite width.

    limit = extrapolate(chain, training, {64: 2048, 128: 1024, 256: 512}, generator)
    assert limit.goodness["forward.1"] < 2
    z = z_scores(limit, observables(solve(...)))
    assert z["forward.1"].abs().max() < 5

Entries of one observable are strongly correlated with each other, and so are times: a z-score is N(0, 1) entry by entry
only, and the mean of many z^2 is 1 on average but fluctuates more than for independent ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tests.reference.networks import Chain, Observables, Training, initialise, train

# Weights trained side by side: fewer pay for the calls of small operations, more fall out of the cache.
_WEIGHTS_AT_ONCE = 2**21


@dataclass(frozen=True)
class Estimate:
    """The mean of every observable over networks of one width.

    Attributes:
        width: N_L.
        units: the number of independent draws: networks, or antithetic pairs.
        mean: by observable, without the network axis.
        stderr: the standard error of ``mean``.
        draws: by observable, the value of every unit on the leading axis, if kept (a pair's value is its mean).
    """

    width: int
    units: int
    mean: Observables
    stderr: Observables
    draws: Observables | None = None


@dataclass(frozen=True)
class Limit:
    """The fit a + b/N (+ c/N^2 ...) of every entry of every observable.

    Attributes:
        mean: a, the limit of infinite width.
        stderr: its standard error.
        chi_squared: sum over widths of (residual / standard error)^2.
        degrees: of freedom of ``chi_squared``, the number of widths less that of coefficients.
        estimates: what was fitted, one for each width.
    """

    mean: Observables
    stderr: Observables
    chi_squared: Observables
    degrees: int
    estimates: tuple[Estimate, ...]

    @property
    def goodness(self) -> dict[str, float]:
        """Chi-squared per degree of freedom averaged over entries: about 1 if the fit is good."""
        if not self.degrees:
            raise ValueError("As many widths as coefficients: the fit is exact and says nothing. Add a width.")
        return {name: float(entries.mean()) / self.degrees for name, entries in self.chi_squared.items()}


@dataclass
class _Moments:
    """Mean and sum of squared deviations in float64, merged chunk by chunk (Chan, Golub and LeVeque)."""

    count: int
    mean: Tensor
    squares: Tensor

    @staticmethod
    def of(values: Tensor) -> _Moments:
        mean = values.mean(0)
        return _Moments(len(values), mean, (values - mean).square().sum(0))

    def merge(self, other: _Moments) -> _Moments:
        count, gap = self.count + other.count, other.mean - self.mean
        return _Moments(
            count,
            self.mean + gap * other.count / count,
            self.squares + other.squares + gap.square() * self.count * other.count / count,
        )

    @property
    def stderr(self) -> Tensor:
        return (self.squares / (self.count - 1) / self.count).sqrt()


def ensemble(
    chain: Chain,
    training: Training,
    width: int,
    networks: int,
    generator: torch.Generator,
    *,
    antithetic: bool = False,
    dtype: torch.dtype = torch.float32,
    record: Sequence[int] | None = None,
    two_time: bool = False,
    keep: bool = False,
    chunk: int | None = None,
) -> Estimate:
    """Train many networks of one width and average.

    Args:
        chain: the network.
        training: data, loss and optimiser.
        width: N_L.
        networks: how many; even if ``antithetic``.
        generator: the source of all draws.
        antithetic: draw in pairs of opposite readout. Each network is still a valid draw, so means stay unbiased; the
            mean of a pair is the independent unit of the standard error. It removes the part of an observable that is
            odd in f at step 0 (all of E[f(0)], the noise of lazy networks) and leaves kernels at step 0 as they are.
        dtype: of the networks; averages are always float64.
        record: increasing steps in 0..T to record, before the update of that step; None: 0..T-1.
        two_time: kernels between all pairs of recorded steps.
        keep: whether to keep the value of every unit.
        chunk: networks trained side by side (memory and speed; it changes the draws); None: a fast number.
    """
    sizes = (training.inputs.shape[1], *chain.widths(width), chain.outputs)
    weights = sum(fan_in * fan_out for fan_in, fan_out in pairwise(sizes))
    chunk = chunk or max(2, 2 * (_WEIGHTS_AT_ONCE // (2 * weights)))
    moments: dict[str, _Moments] = {}
    kept: list[Observables] = []
    for start in range(0, networks, chunk):
        size = min(chunk, networks - start)
        parameters = initialise(
            chain, width, size, training.inputs.shape[1], generator, dtype=dtype, antithetic=antithetic
        )
        found = train(chain, training, parameters, record=record, two_time=two_time)
        found = {name: values.double() for name, values in found.items()}
        if antithetic:
            found = {name: values.unflatten(0, (2, -1)).mean(0) for name, values in found.items()}
        for name, values in found.items():
            new = _Moments.of(values)
            moments[name] = moments[name].merge(new) if name in moments else new
        if keep:
            kept.append(found)
    return Estimate(
        width,
        networks // 2 if antithetic else networks,
        {name: each.mean for name, each in moments.items()},
        {name: torch.maximum(each.stderr, _round_off(each.mean, dtype)) for name, each in moments.items()},
        {name: torch.cat([found[name] for found in kept]) for name in moments} if keep else None,
    )


def extrapolate(
    chain: Chain,
    training: Training,
    networks: Mapping[int, int],
    generator: torch.Generator,
    *,
    order: int = 1,
    antithetic: bool = True,
    **options: Any,
) -> Limit:
    """The limit of infinite width, from ensembles of several widths.

    Args:
        chain: the network.
        training: data, loss and optimiser.
        networks: width N_L -> number of networks; more than ``order + 1`` widths for a test of the fit.
        generator: the source of all draws.
        order: highest power of 1/N in the fit.
        antithetic: as in ``ensemble``.
        **options: further options of ``ensemble``.
    """
    estimates = tuple(
        ensemble(chain, training, width, count, generator, antithetic=antithetic, **options)
        for width, count in networks.items()
    )
    return fit(estimates, order=order)


def fit(estimates: Sequence[Estimate], *, order: int = 1) -> Limit:
    """Weighted least squares of a polynomial in 1/N through every entry, each width weighted by its standard error."""
    widths = torch.tensor([estimate.width for estimate in estimates], dtype=torch.float64)
    powers = (widths.min() / widths)[:, None] ** torch.arange(order + 1)  # (width, coefficient)
    mean, stderr, chi_squared = {}, {}, {}
    for name in estimates[0].mean:
        values = torch.stack([estimate.mean[name] for estimate in estimates], dim=-1)  # (..., width)
        errors = torch.stack([estimate.stderr[name] for estimate in estimates], dim=-1)
        scaled = powers / errors[..., None]
        inverse = torch.linalg.pinv(scaled)  # (..., coefficient, width): the coefficients from values / errors
        coefficients = inverse @ (values / errors)[..., None]
        residuals = (values / errors)[..., None] - scaled @ coefficients
        mean[name] = coefficients[..., 0, 0]
        stderr[name] = inverse[..., 0, :].norm(dim=-1)
        chi_squared[name] = residuals.square().sum((-1, -2))
    return Limit(mean, stderr, chi_squared, len(estimates) - order - 1, tuple(estimates))


def z_scores(
    reference: Estimate | Limit, values: Mapping[str, Tensor], stderr: Mapping[str, Tensor] | None = None
) -> Observables:
    """(value - mean) / standard error for every observable in ``values``, their own errors added in quadrature."""
    scores = {}
    for name, value in values.items():
        if value.shape != reference.mean[name].shape:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, not {tuple(reference.mean[name].shape)}.")
        own = 0.0 if stderr is None else stderr[name].double()
        scores[name] = (value.double() - reference.mean[name]) / (reference.stderr[name] ** 2 + own**2).sqrt()
    return scores


def observables(trajectory: Any) -> Observables:
    """The observables of a ``Trajectory`` under the names used here."""
    found = {"outputs": trajectory.outputs, "losses": trajectory.losses, "ntk": trajectory.ntk.array}
    for index, layer in enumerate(trajectory.layers):
        found[f"forward.{index}"] = layer.forward.array
        found[f"backward.{index}"] = layer.backward.array
        found[f"ntk.{index}"] = layer.ntk.array
    return found


def relative_stderr(reference: Estimate | Limit) -> dict[str, float]:
    """|standard error| / |mean| (Frobenius) of every observable: how sharp a test against it is."""
    return {
        name: math.sqrt(float(reference.stderr[name].square().mean() / reference.mean[name].square().mean()))
        for name in reference.mean
    }


def _round_off(mean: Tensor, dtype: torch.dtype) -> Tensor:
    """The least error to believe: of entries that are the same in all networks (Phi^0) only rounding is left."""
    typical = mean.square().mean().sqrt()
    return (8 * torch.finfo(dtype).eps * typical).clamp_min(torch.finfo(mean.dtype).tiny)
