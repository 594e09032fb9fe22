"""What a picture shows when there is more than fits, and in which order."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from torch_dmft.comparison import Comparison


def sample_order(comparison: Comparison) -> tuple[Int[Tensor, " sample"], str]:
    """Samples sorted by target, so that what the task makes alike is side by side; and what to call the axis."""
    samples = comparison.measured.outputs.shape[1]
    return by_target(comparison.targets, samples), "sample" if comparison.targets is None else "sample, by target"


def by_target(targets: Float[Tensor, "sample output"] | None, samples: int) -> Int[Tensor, " sample"]:
    """Samples sorted by target; as they are without targets."""
    return torch.arange(samples) if targets is None else labels(targets).argsort(stable=True)


def labels(targets: Float[Tensor, "sample output"]) -> Shaped[Tensor, " sample"]:
    """One number for each sample: its target, or the class with the largest of several."""
    return targets[:, 0] if targets.shape[1] == 1 else targets.argmax(1)


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
