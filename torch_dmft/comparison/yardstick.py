r"""The yardstick of a deviation: what finite width alone does to a kernel.

Phi^l is an average over the features that the weight before it makes, of an average over those before, and so on; G^{l+1} over
the features that weight l makes and all behind it. So one random network deviates from the limit by a few 1 / sqrt(N), with N
the narrowest of these widths: neurons, or channels of a convolution. How many numbers a flattened image hands to the readout
does not matter. While a network learns, every kernel also gets a share of what the narrowest layer of all does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.trajectory import Trajectory

if TYPE_CHECKING:
    from torch_dmft.parameterization import Plan

Widths = tuple[int | None, ...]
"""Of weights l = 0..L: how many features each of them makes, None where they are no width."""


def widths_of(plan: Plan, run: Trajectory) -> Widths:
    """The widths of a measured network.

    Args:
        plan: of the measured model.
        run: the measured run.

    Raises:
        InvalidInputError: if the plan is of another model.
    """
    names = [layer.path for layer in plan.architecture.layers], [layer.name for layer in run.layers]
    if names[0] != names[1]:
        raise InvalidInputError(
            "`plan` must be the plan of the measured network.",
            got=f"weights {', '.join(names[0])} in the plan and {', '.join(names[1])} in the run",
            remedy="the plan that the recorder was made with, recorder.subject.plan",
        )
    return made_by(plan)


def made_by(plan: Plan) -> Widths:
    """How many features each weight of a plan's model makes."""
    return tuple(None if layer.out_axis is None else layer.out_features for layer in plan.architecture.layers)


def narrowest(widths: Sequence[int | None], kernel: str = "ntk", position: int = 0) -> int | None:
    """The narrowest width that a kernel is an average over; None if there is none.

    Args:
        widths: of all weights.
        kernel: ``"forward"``, ``"backward"`` or ``"ntk"``, of which the widths of all weights count.
        position: l.
    """
    counted = {"forward": widths[:position], "backward": widths[position:]}.get(kernel, widths)
    return min((width for width in counted if width is not None), default=None)
