"""Networks side by side in antithetic pairs, the first half and the second: what oracles of further architectures share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from tests.reference.ensembles import Estimate, Limit, fit


def gram(rows: Tensor) -> Tensor:
    """Sums over everything but network and sample: ``(network, sample, sample)``."""
    flat = rows.flatten(2)
    return flat @ flat.mT


def descend(parameters: Iterable[Tensor], losses: Tensor, rate: float) -> None:
    """One step of gradient descent of every network on its own loss, in place."""
    parameters = list(parameters)
    gradients = torch.autograd.grad(losses.sum(), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= rate * gradient


def estimate(width: int, found: Mapping[str, Tensor]) -> Estimate:
    """Mean over networks and its standard error, from the means of pairs: arrays ``(network, ...)``."""
    pairs = {name: values.unflatten(0, (2, -1)).mean(0).double() for name, values in found.items()}
    mean = {name: values.mean(0) for name, values in pairs.items()}
    stderr = {name: values.std(0) / math.sqrt(len(values)) + 1e-6 for name, values in pairs.items()}
    return Estimate(width, len(next(iter(pairs.values()))), mean, stderr)


def limit_of(train: Callable[[int, int], Mapping[str, Tensor]], networks: Mapping[int, int], most: int) -> Limit:
    """Infinite width, from ensembles of several widths trained a few at a time.

    Args:
        train: the arrays ``(network, ...)`` of so many networks of a width, given ``(width, count)``.
        networks: how many networks of each width, by width.
        most: pairs times N^2 that are trained at a time.
    """
    estimates = []
    for width, count in networks.items():
        at_once = max(2, 2 * (most // width**2))
        parts = [train(width, min(at_once, count - start)) for start in range(0, count, at_once)]
        # A part holds whole pairs, so its halves belong to the halves of the ensemble.
        halves = [{name: values.unflatten(0, (2, -1)) for name, values in part.items()} for part in parts]
        joined = {name: torch.cat([half[name] for half in halves], dim=1).flatten(0, 1) for name in halves[0]}
        estimates.append(estimate(width, joined))
    return fit(estimates)
