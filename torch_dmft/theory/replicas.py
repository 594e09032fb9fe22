"""Averages over independent replicas of a stochastic method, with their standard errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.trajectory import Fields, Trajectory, combine
from torch_dmft.measurement.fields import MOST

_PRIOR_DEGREES = 8
"""Weight of the variance pooled over entries against each entry's own, in degrees of freedom."""
_LOSS_DEGREES = 2
"""The same of the variance that independent outputs would give a loss: their errors are correlated, so it counts for less."""


def replica_generators(generator: torch.Generator | None, count: int) -> list[torch.Generator]:
    """One source of randomness per replica, so that what one draws does not depend on how much another has drawn.

    Args:
        generator: where the replicas' seeds come from; None for a fresh one with seed 0.
        count: number of replicas.
    """
    parent = torch.Generator().manual_seed(0) if generator is None else generator
    seeds = torch.randint(2**62, (count,), generator=parent, device=parent.device)
    return [torch.Generator(parent.device).manual_seed(int(seed)) for seed in seeds]


def average(
    runs: Sequence[Trajectory],
    *,
    origin: str,
    metadata: Mapping[str, str | int | float | bool | None],
    loss: Callable[[Tensor], Tensor] | None = None,
) -> Trajectory:
    """The mean of independent runs of one problem, with its standard error.

    The variance of an entry is estimated from few replicas, so it is moderated by the variance pooled over all entries of
    the same array and time: s^2 = (nu s_entry^2 + nu_0 s_pool^2) / (nu + nu_0), nu = replicas - 1.
    One run has no standard error.

    Args:
        runs: one trajectory per replica.
        origin: what a legend calls the answer.
        metadata: facts of the run.
        loss: what a loss is a function of where all runs approach one limit: outputs ``(sample, output)`` to a number. The
            mean outputs' loss is then the answer, as noise alone would raise the mean of losses. None for networks that
            differ, whose mean loss is the answer.
    """
    mean = combine(runs, lambda values: torch.stack(list(values)).mean(0))
    fields = tuple(_joined_fields([run.layers[index].fields for run in runs]) for index in range(len(mean.layers)))
    layers = tuple(replace(layer, fields=f) for layer, f in zip(mean.layers, fields, strict=True))
    stderr = combine(runs, standard_error) if len(runs) > 1 else None
    if loss is not None and stderr is not None:
        losses, errors = _losses([run.outputs for run in runs], loss)
        stderr = replace(stderr, losses=errors.to(mean.losses))
        mean = replace(mean, losses=losses.to(mean.losses))
    return replace(mean, layers=layers, origin=origin, stderr=stderr, metadata=metadata)


def standard_error(values: Sequence[Tensor]) -> Tensor:
    """Moderated standard error of the mean of arrays ``(time, ...)``, in the arrays' layout.

    A deviation divided by an estimated standard error follows Student's t, which is wider than a Gaussian by
    sqrt(nu / (nu - 2)). That factor is included, so that z-scores have unit variance.
    """
    stacked = torch.stack(list(values)).double()
    variance, degrees = _moderated(stacked)
    return _error_of_mean(variance, degrees, len(stacked)).to(values[0].dtype)


def _moderated(values: Float[Tensor, "replica time ..."]) -> tuple[Tensor, int]:
    """The variance of every entry over replicas and its degrees of freedom."""
    variance, degrees = values.var(0), len(values) - 1
    if variance.ndim == 1:
        return variance, degrees
    pooled = variance.flatten(1).mean(1).reshape(-1, *[1] * (variance.ndim - 1))
    return (degrees * variance + _PRIOR_DEGREES * pooled) / (degrees + _PRIOR_DEGREES), degrees + _PRIOR_DEGREES


def _error_of_mean(variance: Tensor, degrees: int, count: int) -> Tensor:
    degrees = max(degrees, 3)  # the variance of t is infinite below
    return (variance / count * degrees / (degrees - 2)).sqrt()


def _losses(
    outputs: Sequence[Float[Tensor, "time sample output"]], loss: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, " time"], Float[Tensor, " time"]]:
    """The loss of the mean outputs and its standard error.

    To first order a replica's loss is off by dL/df . (f - mean f), whose variance has one number per replica to be estimated
    from. It is moderated by sum over entries of (dL/df)^2 s^2, what it were if the errors s of outputs were independent.
    """
    every = torch.stack(list(outputs))
    mean = every.mean(0).requires_grad_()
    with torch.enable_grad():
        losses = torch.stack([loss(at) for at in mean]).to(mean.device)
        (slope,) = torch.autograd.grad(losses.sum(), mean)
    variance_of_one = ((every - mean.detach()) * slope).double().flatten(2).sum(2).var(0)
    independent = (slope.double().square() * _moderated(every.double())[0]).flatten(1).sum(1)
    degrees = len(every) - 1
    variance = (degrees * variance_of_one + _LOSS_DEGREES * independent) / (degrees + _LOSS_DEGREES)
    return losses.detach(), _error_of_mean(variance, degrees + _LOSS_DEGREES, len(every))


def _joined_fields(fields: Sequence[Fields | None]) -> Fields | None:
    """Replicas' neurons side by side, as many as are kept: more draws from the same density."""
    known = [f for f in fields if f is not None]
    if len(known) < len(fields):
        return None
    first = known[0]
    if len(known) == 1:
        return first
    known = known[: max(1, MOST // first.gradient[0].numel())]
    h, g = (torch.cat([getattr(f, name) for f in known], dim=-1) for name in ("preactivation", "gradient"))
    return Fields(first.steps, h, g, first.activation)
