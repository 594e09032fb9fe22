"""The gradients that optimizers are given, held against those of the loss at some of the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from torch_dmft.core.loss import Loss
from torch_dmft.core.torch_private import backward_pass
from torch_dmft.measurement.gradient_check import TOLERANCE, GradientCheck, is_due
from torch_dmft.measurement.subject import Subject
from torch_dmft.uses.outputs import Example

_SMALL = 0.2
"""Gradients smaller than this part of the largest one count as that large: what is left of them is rounding in bfloat16."""
_KINDS = 16
"""Kinds of batches (how many make a step, and of how many rows) whose first step is checked."""


class GradientWatch:
    """Remembers at which steps gradients were checked, and what came of it.

    A step that is taken within a backward pass is compared parameter by parameter, as each has its gradient.

    Attributes:
        errors: the relative errors of the gradients, by step.
        within: the backward pass within which the step under way is taken; None for a step after it.
    """

    def __init__(self) -> None:
        self.errors: dict[int, float] = {}
        self.within: int | None = None
        self._steepest = 0.0
        self._checked = 0  # the last step at which gradients were checked
        self._kinds: set[tuple[int, int]] = set()
        self._check: GradientCheck | None = None  # of the step that is under way

    def begins(self, step: int, kind: tuple[int, int], *, recorded: bool) -> bool:
        """Note that a step begins; whether its gradients are to be looked at.

        Args:
            step: the step.
            kind: how many batches make the step, and of how many rows.
            recorded: whether the network is measured before this step.
        """
        self._check, self.within = None, backward_pass()
        is_new = kind not in self._kinds and len(self._kinds) < _KINDS
        self._kinds.add(kind)
        return is_new or is_due(step, last=self._checked, recorded=recorded)

    def hold_against(
        self, step: int, subject: Subject, optimizers: Sequence[Optimizer], loss: Loss, inputs: Example, targets: Tensor
    ) -> None:
        """Take the gradients of the loss on the rows of a step, to compare with those that optimizers are given."""
        self._checked = step
        self._check = GradientCheck.of_loss(subject, optimizers, loss, inputs, targets)

    def meets(self, optimizers: Sequence[Optimizer]) -> None:
        """Compare with the gradients that wait for optimizers."""
        if self._check is not None:
            self._check.meet(optimizers)

    def ends(self, step: int) -> None:
        """Note what the comparisons of a step came to."""
        difference = None if self._check is None else self._check.error()
        self._check = None
        if difference is None:
            return
        error, size = difference
        self._steepest = max(self._steepest, size)
        self.errors[step] = error / max(size, _SMALL * self._steepest) if self._steepest else 0.0

    @property
    def wrong(self) -> dict[int, float]:
        """The errors of the steps whose gradients were others than those of the loss."""
        return {step: error for step, error in self.errors.items() if error > TOLERANCE}

    def state_dict(self) -> dict[str, Any]:
        """What was found, as plain containers."""
        return {"errors": dict(self.errors), "steepest": self._steepest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what was found elsewhere."""
        self.errors, self._steepest = dict(state["errors"]), state["steepest"]
