"""Networks side by side in antithetic pairs, the first half and the second: what oracles of further architectures share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from tests.reference.ensembles import Estimate


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
