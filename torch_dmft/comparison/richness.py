"""How much was learned: the movement of a kernel away from its beginning (``core.kernel``), and towards the task."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from torch_dmft.comparison.metrics import target_alignment
from torch_dmft.core.arguments import checked
from torch_dmft.core.kernel import Kernel, movement

__all__ = ["movement", "target_alignments"]


@checked
def target_alignments(kernel: Kernel, targets: Shaped[Tensor, "sample ..."]) -> Float[Tensor, " time"]:
    """The alignment A(K(t), Y Y^T) of a kernel with the task at every recorded time.

    Args:
        kernel: any layout; output axes are averaged over equal outputs first.
        targets: ``(sample, output)`` or ``(sample,)`` floats, or ``(sample,)`` integer classes.

    Returns:
        One float64 number per time.
    """
    matrices = kernel.per_sample().equal_time
    return torch.tensor([target_alignment(matrix, targets) for matrix in matrices], dtype=torch.float64)
