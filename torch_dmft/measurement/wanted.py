r"""What of a network is measured, where everything would be too large.

G and the NTK of P samples and C outputs are ``(sample, output, sample, output)``. Averaged over equal outputs,

.. math:: \bar K_{\mu\alpha} = \frac{1}{C} \sum_c K_{\mu c, \alpha c},

they are those of one output at a time, so that neither an array of pairs of outputs nor the gradients of more than one
output are ever there at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from torch_dmft.core.memory import free_memory, require_memory

Estimate = Callable[["Wanted", int], int]
"""Bytes that a measurement of so many samples needs."""


@dataclass(frozen=True)
class Wanted:
    """What is measured of a network.

    Attributes:
        ntk: whether the NTK is.
        per_output: whether G and the NTK are of pairs (sample, output), or averaged over equal outputs.
        fields: whether the gradients of single neurons by all outputs are kept, for densities and two-time kernels.
    """

    ntk: bool = True
    per_output: bool = True
    fields: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether kernels are those of everything at once."""
        return self.ntk and self.per_output

    def together(self, outputs: int) -> int:
        """The number of outputs that are measured at once."""
        return outputs if self.per_output else 1

    def blocks(self, outputs: int) -> Iterator[list[int]]:
        """The outputs that are measured at once."""
        size = self.together(outputs)
        return ([*range(start, start + size)] for start in range(0, outputs, size))


def require_room(wanted: Wanted, samples: int, outputs: int, device: torch.device, estimate: Estimate) -> None:
    """Refuse a measurement that does not fit, and name what does.

    Args:
        wanted: what is measured.
        samples: P.
        outputs: C.
        device: where.
        estimate: bytes that it needs.

    Raises:
        InsufficientMemoryError: if more is needed than is free.
    """
    require_memory(
        estimate(wanted, samples),
        device,
        what=f"Measuring {samples} samples and {outputs} outputs",
        remedy=lambda: "; or ".join(_remedies(wanted, samples, outputs, estimate, free_memory(device))),
    )


def _remedies(wanted: Wanted, samples: int, outputs: int, estimate: Estimate, free: int) -> Iterator[str]:
    """What would fit."""
    smaller = []
    if outputs > 1 and wanted.per_output:
        averaged = replace(wanted, per_output=False)
        smaller = [("per_output=False (kernels averaged over equal outputs)", averaged)]
        if wanted.fields:
            smaller.append(
                (
                    "per_output=False, fields=False (kernels averaged over equal outputs)",
                    replace(averaged, fields=False),
                )
            )
    elif outputs > 1 and wanted.fields:
        smaller = [("fields=False, two_time=False", replace(wanted, fields=False))]
    if wanted.ntk:
        smaller.append(("ntk=False (Phi and G alone)", replace(wanted, ntk=False)))
    fitting = next((name for name, less in smaller if estimate(less, samples) <= free), None)
    if fitting is not None:
        yield fitting
    rows = _largest(lambda number: estimate(wanted, number) <= free, samples)
    if rows >= 2:
        yield f"at most {rows} samples (rows= of a Recorder, or a smaller probe)"
    if outputs > 8 and wanted.per_output:
        yield "a few combinations of the outputs, outputs=torch_dmft.measurement.Projection(8)"
    if fitting is None and rows < 2:
        yield "a machine with more memory"


def _largest(fits: Callable[[int], bool], below: int) -> int:
    """The largest number that fits, 0 if none does."""
    low, high = 0, below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
