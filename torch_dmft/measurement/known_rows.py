"""What is known of the training set and of the rows that every step saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.prints import Print, prints_agree
from torch_dmft.measurement.probe import Probe
from torch_dmft.measurement.rows import RowsSeen, TrainingSet, indexed
from torch_dmft.uses.outputs import rows


class KnownRows(RowsSeen):
    """The rows of every step, as far as they were noted, and the training set that their numbers are of.

    Args:
        probe: its training rows are the training set, if no other is known.
        data: the training set, if it is another.
    """

    def __init__(self, probe: Probe, data: TrainingSet | None) -> None:
        super().__init__()
        self.data = data
        self.is_told = False  # the training set, afterwards, with nothing to hold it against
        self.is_mixed = False  # whether row numbers are of more than one training set
        self._probe = probe
        self._of_probe: TrainingSet | None = None
        self._print_before: Print = ()  # of the training set of the run that a checkpoint goes on with

    @property
    def training_set(self) -> TrainingSet | None:
        """The training set: the one that is known, else the training rows of the probe, if they have targets."""
        if self.data is not None:
            return self.data
        targets, train = self._probe.targets, self._probe.train_rows
        if targets is None or self._print_before:
            return None
        if self._of_probe is None:
            inputs = rows(self._probe.inputs, train.nonzero().flatten())
            self._of_probe = TrainingSet((inputs, targets[train.to(targets.device)]))
        return self._of_probe

    def note(self, rows: Tensor | Sequence[int]) -> None:
        """The rows of the batch that the next step sees; see ``RowsSeen.note``."""
        super().note(rows)
        largest = int(self._waiting[-1].max())
        if self.data is not None and hasattr(self.data.dataset, "__len__") and largest >= len(self.data):
            del self._waiting[-1]
            raise InvalidInputError(
                "A batch is noted by its row numbers in the training set.",
                got=f"row {largest} of {len(self.data)}",
                remedy=f"integers 0..{len(self.data) - 1}",
            )

    def of_loader(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """The batches of a loader, whose rows are noted as they pass; its data set becomes the training set."""
        numbered = indexed(loader)
        if self.data is None or self.data.dataset is not loader.dataset:
            new = TrainingSet(loader.dataset)
            before = self._before
            self.is_mixed |= self.noted and not (before and new.print and prints_agree(before, new.print))
            self.data = new
        for numbers, batch in numbered:
            self.note(numbers)
            try:
                yield batch
            except GeneratorExit:  # the loop was left before this batch was trained on
                self.forget()
                raise

    def tell(self, data: TrainingSet, *, checked: bool) -> bool:
        """Take a training set that was not known while the network was trained.

        Args:
            data: the training set.
            checked: whether gradients were held against those of what was taken for the training set.

        Returns:
            Whether what was taken for the training set was this one.

        Raises:
            InvalidInputError: if it differs from what is known of the training set.
        """
        before = self._before
        if not prints_agree(before, data.print):
            raise InvalidInputError(
                "`data` must be the training set of the run.",
                got=f"{len(data)} rows that differ from the {before[0]:.0f} that were trained on",
                remedy="the rows that were trained on, in their order",
            )
        if self.data is not None:
            return True
        assumed = self.training_set
        is_same = assumed is None or assumed.print == data.print
        self.is_told = not before and not (checked and is_same)
        self.data = data
        return is_same

    def require_data(self) -> None:
        """Refuse to go on from a checkpoint of a run whose training set is not known here.

        Raises:
            InvalidInputError: if the run had a training set of its own, and none was given here.
        """
        if self.data is None and self._print_before:
            raise InvalidInputError(
                "The run that was resumed has a training set of its own, which its checkpoint does not hold.",
                remedy="Recorder(..., data=(inputs, targets)), or recorder.problem(data=(inputs, targets))",
            )

    @property
    def _before(self) -> Print:
        """The print of the training set that row numbers are of so far."""
        return self.data.print if self.data is not None else self._print_before

    def state_dict(self) -> dict[str, Any]:
        """Everything noted, and the training set's print."""
        return {**super().state_dict(), "is_told": self.is_told, "is_mixed": self.is_mixed, "data_print": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what was noted elsewhere.

        Raises:
            InvalidInputError: if the training set is another.
        """
        before: Print = tuple(state["data_print"])
        if self.data is not None and not prints_agree(before, self.data.print):
            count = len(self.data)
            raise InvalidInputError(
                "The checkpoint is of a run on another training set.",
                got=f"{count} rows" + (f" instead of {before[0]:.0f}" if before[0] != count else ""),
                remedy="build the recorder with the data of that run before loading",
            )
        super().load_state_dict(state)
        self._print_before, self.is_told, self.is_mixed = before, state["is_told"], state["is_mixed"]
