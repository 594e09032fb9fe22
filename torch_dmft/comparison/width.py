"""How the gap between networks and theory shrinks with their width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch_dmft.comparison.comparison import Comparison
from torch_dmft.core.errors import InvalidInputError, NotRecordedError


@dataclass(frozen=True)
class Gap:
    """The relative error |X - Y| / |Y| of one network's kernels, averaged over weights and steps.

    Attributes:
        width: N of the network.
        forward: of Phi^1..Phi^L.
        backward: of G^1..G^L.
        ntk: of the whole NTK; NaN if it was not recorded.
    """

    width: int
    forward: float
    backward: float
    ntk: float


def gap(comparison: Comparison) -> Gap:
    """The gap between the measured network and the comparison's first prediction.

    Kernels that are given are left out: Phi of the first weight is the data's, G of the readout is the identity.

    Raises:
        NotRecordedError: if the measured run does not know its width.
    """
    width = comparison.measured.width
    if width is None:
        raise NotRecordedError("The width of the measured run is not known.", remedy="measure it with a Recorder")
    deviations = comparison.deviations[0]
    forward = torch.stack([layer.forward.relative_error for layer in deviations.layers[1:]])
    backward = torch.stack([layer.backward.relative_error for layer in deviations.layers[:-1]])
    ntk = math.nan if deviations.ntk is None else float(deviations.ntk.relative_error.mean())
    return Gap(width, float(forward.mean()), float(backward.mean()), ntk)


def slope(gaps: Sequence[Gap], kind: str) -> float:
    """The exponent of a gap in the width, by least squares in log-log; about -1/2 for single networks.

    Args:
        gaps: of networks of different widths, at least two.
        kind: ``"forward"``, ``"backward"`` or ``"ntk"``.

    Raises:
        InvalidInputError: for fewer than two widths.
    """
    if len({one.width for one in gaps}) < 2:
        raise InvalidInputError("A slope needs networks of at least two widths.", got=f"{len(gaps)} gaps")
    x = torch.tensor([math.log(one.width) for one in gaps], dtype=torch.float64)
    y = torch.tensor([math.log(getattr(one, kind)) for one in gaps], dtype=torch.float64)
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
