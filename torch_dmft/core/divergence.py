"""Whether a run diverged, and up to where it can be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_dmft.core.listed import weight_label

if TYPE_CHECKING:
    from torch_dmft.core.trajectory import Trajectory

_EXPLODED = 30.0
"""Size of the outputs in units of what they should be, and of what they were, that no training needs."""
_WORSE = 10.0
"""Quotient of the loss and the first loss beside it."""


def diverged_at(run: Trajectory) -> int | None:
    """Position of the first recorded time at which the run has diverged, None if it has not.

    Diverged are numbers that are not finite, and outputs 30 times as large as those at the start and as the targets, together
    with a loss ten times as large as at the start.
    """
    bad = ~_finite(run) | _exploded(run)
    return int(bad.nonzero()[0]) if bool(bad.any()) else None


def last_sane(runs: Sequence[Trajectory]) -> int:
    """Position of the last time at which none of these runs has diverged; 0 if there is none."""
    first = [at for run in runs if (at := diverged_at(run)) is not None]
    return max(0, min(first) - 1) if first else len(runs[0].steps) - 1


def not_finite(run: Trajectory, time: int) -> list[str]:
    """What of a run is not finite at a recorded time, by name; a loss of NaN is one that nobody knows."""
    kernels = [run.ntk, *(kernel for layer in run.layers for kernel in (layer.forward, layer.backward, layer.ntk))]
    arrays = [run.outputs, *(kernel.equal_time for kernel in kernels if kernel is not None)]
    # A sum is finite only if all its terms are, and takes a fraction of the time; where it is not, a closer look tells.
    if all(math.isfinite(float(array[time].sum())) for array in arrays) and not bool(run.losses[time].isinf()):
        return []
    parts = {"its loss": run.losses.isinf(), "its outputs": ~_per_time(run.outputs.isfinite())}
    for position, layer in enumerate(run.layers):
        for name, kernel in (("Phi", layer.forward), ("G", layer.backward), ("the NTK", layer.ntk)):
            if kernel is not None:
                parts[f"{name} of {weight_label(position, layer.name)}"] = ~_per_time(kernel.equal_time.isfinite())
    if run.ntk is not None:
        parts["the NTK"] = ~_per_time(run.ntk.equal_time.isfinite())
    return [name for name, bad in parts.items() if bool(bad[time])]


def _finite(run: Trajectory) -> Tensor:
    kernels = [run.ntk, *(kernel for layer in run.layers for kernel in (layer.forward, layer.backward, layer.ntk))]
    arrays = [run.outputs, *(kernel.equal_time for kernel in kernels if kernel is not None)]
    return torch.stack([_per_time(array.isfinite()).cpu() for array in arrays]).all(0) & ~run.losses.isinf().cpu()


def _per_time(flags: Tensor) -> Tensor:
    return flags.flatten(1).all(1)


def is_exploded(size: float, first: float, targets: float, loss: float, first_loss: float) -> bool:
    """Whether outputs are far larger than they were and should be, together with a loss that is far worse.

    Args:
        size: root mean square of the outputs.
        first: of the first outputs.
        targets: of the targets; 1 where there are none.
        loss: the loss, NaN where it is not known.
        first_loss: the first loss.
    """
    return size > _EXPLODED * max(first, targets) and not loss <= _WORSE * first_loss


def explodes_at(run: Trajectory, start_loss: float) -> int | None:
    """Position of the first recorded time from which on the outputs of a prediction stay exploded, None if they do not.

    They may have been larger on the way: in a catapult they come back.

    Args:
        run: a run, whose first recorded time need not be the start.
        start_loss: the loss of outputs of zero.
    """
    from_start = int(run.steps[0]) == 0
    first_loss = max(start_loss, float(run.losses[0])) if from_start else start_loss
    bad = _exploded(run, None if from_start else 0.0, first_loss)
    if not bool(bad[-1]):
        return None
    sane = (~bad).nonzero()
    return int(sane[-1]) + 1 if len(sane) else 0


def _exploded(run: Trajectory, first: float | None = None, first_loss: float | None = None) -> Tensor:
    """Which recorded times are, beside the first of them or what is given."""
    sizes = run.outputs.detach().double().flatten(1).square().mean(1).sqrt().tolist()
    targets = 1.0 if run.targets is None else float(run.targets.double().square().mean().sqrt())
    losses = run.losses.detach().double().tolist()
    size, loss = sizes[0] if first is None else first, losses[0] if first_loss is None else first_loss
    return torch.tensor(
        [is_exploded(s, size, targets, l, loss) for s, l in zip(sizes, losses, strict=True)], device="cpu"
    )
