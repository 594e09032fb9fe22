"""Probe: the fixed data on which a network is looked at while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.prints import Print, data_print, printed_rows


@dataclass(frozen=True, eq=False)
class Probe:
    """The data points mu = 1..P at which outputs and kernels are recorded, training and test points together.

    Attributes:
        inputs: ``(sample, ...)``, whatever the model takes, samples first: vectors, images, token ids.
        targets: ``(sample, output)`` or ``(sample,)`` floats, ``(sample,)`` integer classes, or None. Kept as they are
            given; ``target_values`` has them as floats ``(sample, output)``.
        train: ``(sample,)`` bool, the rows that the model is trained on; the loss is recorded on these. Default: all.

    Raises:
        InvalidInputError: for fewer than two samples, NaN or infinity, or lengths that do not fit.
    """

    inputs: Tensor
    targets: Tensor | None = None
    train: Tensor | None = None

    def __repr__(self) -> str:
        """One line."""
        targets = "no targets" if self.targets is None else f"targets {tuple(self.targets.shape)}"
        return f"Probe(inputs {tuple(self.inputs.shape)}, {targets}, {int(self.train_rows.sum())} rows trained on)"

    def __post_init__(self) -> None:
        """Refuse data that would give undefined kernels, and bring targets and train into one form."""
        for name in ("inputs", "targets", "train"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) and not (value is None and name != "inputs"):
                raise InvalidInputError(
                    f"The {name} of a probe are a tensor.", got=type(value).__name__, remedy="torch.as_tensor(...)"
                )
        if self.inputs.ndim == 0 or len(self.inputs) < 2:
            raise InvalidInputError(
                "A probe needs at least two samples: centered kernels and alignments are undefined for fewer.",
                got=f"inputs of shape {tuple(self.inputs.shape)}",
                remedy="inputs of shape (sample, ...) with two samples or more",
            )
        if self.inputs[0].numel() == 0:
            raise InvalidInputError("The samples of a probe are empty.", got=f"shape {tuple(self.inputs.shape)}")
        _require_finite("inputs", self.inputs)
        if self.targets is not None:
            _check_targets(self.targets, len(self.inputs))
        train = torch.ones(len(self.inputs), dtype=torch.bool, device="cpu") if self.train is None else self.train
        if train.dtype != torch.bool or train.shape != (len(self.inputs),) or not bool(train.any()):
            raise InvalidInputError(
                "train is a bool mask with one entry per sample, at least one of them True.",
                got=f"shape {tuple(train.shape)}, {train.dtype}, {len(self.inputs)} samples",
                remedy="train=torch.arange(len(inputs)) < number_of_training_rows",
            )
        object.__setattr__(self, "train", train.cpu())

    def __len__(self) -> int:
        """P, the number of samples."""
        return len(self.inputs)

    @property
    def train_rows(self) -> Tensor:
        """``(sample,)`` bool on the CPU; never None, unlike the argument ``train``."""
        assert self.train is not None  # set in __post_init__
        return self.train

    @cached_property
    def print(self) -> Print:
        """What tells these inputs from others."""
        return data_print(len(self), self.inputs[printed_rows(len(self)).to(self.inputs.device)])

    def target_values(self, outputs: int | None = None) -> Tensor | None:
        """The targets as floats: ``(sample, output)``, one-hot for integer classes, or None without targets.

        Args:
            outputs: number of classes; default the largest class + 1.
        """
        if self.targets is None or self.targets.is_floating_point():
            return None if self.targets is None else self.targets.reshape(len(self), -1)
        dtype = self.inputs.dtype if self.inputs.is_floating_point() else torch.get_default_dtype()
        return nn.functional.one_hot(self.targets.long(), -1 if outputs is None else outputs).to(dtype)


def _check_targets(targets: Tensor, samples: int) -> None:
    if targets.ndim == 0 or len(targets) != samples:
        raise InvalidInputError(
            "A probe needs one target per sample.", got=f"targets {tuple(targets.shape)} for {samples} samples"
        )
    if targets.is_floating_point():
        if targets.ndim > 2:
            raise InvalidInputError(
                "Float targets have the shape (sample, output) or (sample,).", got=f"shape {tuple(targets.shape)}"
            )
        _require_finite("targets", targets)
    elif targets.ndim != 1 or targets.dtype == torch.bool or targets.is_complex() or int(targets.min()) < 0:
        raise InvalidInputError(
            "Targets that are not floats are classes: integers >= 0 of shape (sample,).",
            got=f"shape {tuple(targets.shape)}, {targets.dtype}",
            remedy="class numbers of shape (sample,), or floats of shape (sample, output)",
        )


def _require_finite(name: str, values: Tensor) -> None:
    if not values.is_floating_point():
        return
    bad = (~torch.isfinite(values)).reshape(len(values), -1).any(1).nonzero()
    if len(bad):
        raise InvalidInputError(
            f"The probe's {name} hold NaN or infinity.",
            got=f"sample {int(bad[0])} (and {len(bad) - 1} more)",
            remedy="clean the data first",
        )
