"""What a picture shows when there is more than fits, and in which order."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from torch_dmft.comparison import Comparison


def sample_order(comparison: Comparison) -> tuple[Int[Tensor, " sample"], str]:
    """Samples sorted by target, so that what the task makes alike is side by side; and what to call the axis."""
    targets = comparison.targets
    if targets is None:
        return torch.arange(comparison.measured.outputs.shape[1]), "sample"
    keys = targets[:, 0] if targets.shape[1] == 1 else targets.argmax(1)
    return keys.argsort(stable=True), "sample, by target"


def shown_weights(count: int, kernel: str, most: int = 8) -> list[int]:
    """The weights whose kernels are drawn: at most so many, evenly spaced from the first to the last.

    Kernels that are given rather than predicted are left out: Phi of the first weight, G of the last.

    Args:
        count: L + 1, how many weights there are.
        kernel: ``"forward"``, ``"backward"`` or ``"ntk"``.
        most: how many fit.
    """
    first, last = {"forward": (1, count - 1), "backward": (0, count - 2)}.get(kernel, (0, count - 1))
    if last < first:  # a model with a single weight has nothing but given kernels
        first, last = 0, count - 1
    positions = torch.linspace(first, last, min(last - first + 1, most), dtype=torch.float64)
    return [int(position) for position in positions.round()]
