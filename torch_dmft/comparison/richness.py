"""How much was learned: the movement of a kernel away from its beginning, and towards the task."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from torch_dmft.comparison.metrics import quotients, target_alignment
from torch_dmft.core.kernel import Kernel


def movement(kernel: Kernel) -> Float[Tensor, " time"]:
    """How far a kernel has moved since the first recorded step.

    |K(t) - K(0)| / |K(0)|, at equal times: 0 throughout in the lazy limit, of order 1 when features are learned.

    Args:
        kernel: any layout; its first time is the reference.

    Returns:
        One float64 number per time.
    """
    rows = kernel.equal_time.detach().to("cpu", torch.float64).flatten(1)
    return quotients((rows - rows[0]).norm(dim=1), rows[0].norm().expand(len(rows)))


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
