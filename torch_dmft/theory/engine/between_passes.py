"""What is recorded between two passes of a run by strides: kernels along straight lines."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torch_dmft.core.kernel import Kernel
from torch_dmft.core.trajectory import Trajectory


def interpolated(
    trajectory: Trajectory,
    steps: Int[Tensor, " time"],
    outputs: Float[Tensor, "time sample output"],
    shares: Float[Tensor, " time"],
) -> Trajectory:
    """A run at other steps: its kernels along straight lines between those recorded, outputs as given.

    Kernels stay positive: each is a mean of two with positive weights or, at two times, the Gram matrix of such means of
    fields.

    Args:
        trajectory: a run.
        steps: recorded steps, and others between two recorded ones.
        outputs: f at these steps.
        shares: how far each step lies between the recorded ones before and after it, from 0 to 1.
    """
    known, wanted = trajectory.steps.double(), steps.to(trajectory.steps.device).double()
    mix = torch.ones(len(wanted), 1, dtype=known.dtype, device=known.device)
    if len(known) > 1:
        lower = (torch.searchsorted(known, wanted) - 1).clamp(min=0)
        share = torch.where(wanted == known[lower], 0.0, shares.to(known))
        one_hot = torch.eye(len(known), dtype=known.dtype, device=known.device)
        mix = (1 - share)[:, None] * one_hot[lower] + share[:, None] * one_hot[lower + 1]

    def kernel(old: Kernel) -> Kernel:
        array = torch.tensordot(mix.to(old.array), old.array, 1)
        factors = None if old.factors is None else old.factors.mixed(mix)
        if old.is_two_time:
            half = array.ndim // 2
            array = torch.tensordot(mix.to(array), array.movedim(half, 0), 1).movedim(0, half)
        return Kernel(array, factors)

    layers = tuple(layer.each(kernel) for layer in trajectory.layers)
    steps = steps.to(trajectory.steps)
    losses = outputs.new_full((len(steps),), torch.nan)  # nobody asked
    return replace(
        trajectory,
        steps=steps,
        outputs=outputs,
        losses=losses,
        layers=layers,
        ntk=kernel(trajectory.known_ntk),
        curvature=None,
    )
