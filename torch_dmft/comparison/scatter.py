"""Scatter: how far networks of one width are from their mean, kernel by kernel: the unit of what the width explains."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.comparison.deviation import deviations
from torch_dmft.core.trajectory import Trajectory

KERNELS = ("forward", "backward", "ntk")


def scatter(predicted: Trajectory) -> dict[tuple[str, int], Float[Tensor, " time"]]:
    """The relative error that a typical network of the prediction's width has in each kernel, at each time.

    Args:
        predicted: a ``FiniteWidth`` answer, the mean of at least two networks.

    Returns:
        Root mean square over networks of |K_j - mean| / |mean|, corrected so that one more network, which is not in the mean,
        has this error: ``(time,)`` by kernel (``"forward"``, ``"backward"``, ``"ntk"``) and position of the weight. Empty for a
        prediction without replicas.
    """
    count = len(predicted.replicas)
    if count < 2:
        return {}
    errors = [deviations(replica, predicted).layers for replica in predicted.replicas]
    correction = math.sqrt((count + 1) / (count - 1))
    return {
        (kernel, position): correction
        * torch.stack([getattr(layers[position], kernel).relative_error for layers in errors]).square().mean(0).sqrt()
        for position in range(len(predicted.layers))
        for kernel in KERNELS
        if kernel != "ntk" or predicted.ntk is not None
    }
