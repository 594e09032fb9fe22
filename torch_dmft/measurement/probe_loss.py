"""The loss on the training rows of a probe, in the shapes that the user's loop hands to it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.loss import (
    Loss,
    as_the_loss_takes_them,
    aside,
    default_loss,
    loss_value,
    pairs_entries,
    require_loss,
)
from torch_dmft.measurement.probe import Probe
from torch_dmft.measurement.snapshot import returns_one_number
from torch_dmft.measurement.subject import Subject


class ProbeLoss:
    """The loss on the training rows.

    Args:
        subject: the network, which tells whether the loop sees outputs ``(sample,)`` or ``(sample, output)``.
        probe: its targets and training rows.
        loss: None for the usual one.

    Attributes:
        loss: as the user's loop calls it.
    """

    def __init__(self, subject: Subject, probe: Probe, loss: Loss | None) -> None:
        self.loss = default_loss(probe.targets) if loss is None else loss
        require_loss(self.loss)
        self._subject, self._probe, self._is_usual = subject, probe, loss is None or pairs_entries(loss)
        self._squeezed: bool | None = None
        self._targets: Tensor | None = None  # of the training rows, as the loss takes them

    def number(self, outputs: Tensor) -> float:
        """The loss of all outputs ``(sample, output)``, NaN without targets.

        Raises:
            InvalidInputError: if the targets do not fit the outputs.
        """
        if self._probe.targets is None:
            return math.nan
        self._check(outputs.shape[1])
        with torch.no_grad():
            return float(self(outputs[self._probe.train_rows.to(outputs.device)]))

    def __call__(self, outputs: Tensor) -> Tensor:
        """The loss of the outputs ``(train, output)`` of the training rows."""
        if self._squeezed is None:
            self._squeezed = returns_one_number(self._subject.run, self._probe.inputs)
        shown = outputs.squeeze(1) if self._squeezed else outputs
        if self._targets is None or self._targets.device != outputs.device:
            assert self._probe.targets is not None  # asked for where there are targets
            targets = self._probe.targets[self._probe.train_rows.to(self._probe.targets.device)].to(outputs.device)
            targets = targets.to(outputs.dtype) if targets.is_floating_point() else targets
            self._targets = as_the_loss_takes_them(self.loss, shown.detach(), targets)
        return loss_value(aside(self.loss), shown, self._targets)

    def _check(self, outputs: int) -> None:
        """Refuse targets that the usual loss would fail on, or broadcast without a word."""
        values = self._probe.target_values(outputs)
        if self._is_usual and values is not None and values.shape[1] != outputs:
            raise InvalidInputError(
                "The targets of the probe must have as many numbers per sample as the model has outputs.",
                got=f"targets {tuple(values.shape)} and {outputs} outputs",
                remedy="targets (sample, output), outputs= that selects as many, or the loss= of the run",
            )
