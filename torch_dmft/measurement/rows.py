"""Which rows of the training set every step saw: noted by the user, or by a loader that knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.prints import Print, checksum, data_print, printed_rows
from torch_dmft.core.random_state import random_state_kept
from torch_dmft.uses.outputs import Example, count, plain, tensors
from torch_dmft.uses.outputs import rows as rows_of

_BOTH = "(inputs, targets) with as many rows, or a torch.utils.data.Dataset of such pairs"


class Indexed(Dataset[tuple[int, Any]]):
    """A data set whose items come with their row numbers: ``(row, item)``.

    With ``torch.utils.data.DataLoader``, shuffling and workers included, batches are then ``(rows, batch)``; give the rows to
    ``Recorder.batch``, or let ``Recorder.batches`` do both.

    Args:
        dataset: any data set with a length.

    Example:
        >>> for rows, (images, labels) in DataLoader(Indexed(dataset), batch_size=64, shuffle=True):  # doctest: +SKIP
        ...     recorder.batch(rows)
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or isinstance(dataset, str | type):
            raise InvalidInputError(
                "A data set must have items and a length.",
                got=type(dataset).__name__,
                remedy="a torch.utils.data.Dataset of pairs (input, target)",
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, row: int) -> tuple[int, Any]:
        return int(row), self.dataset[row]


class _Collate:
    """Batches items as a loader would, beside their row numbers; a class, so that workers can be sent it."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, pairs: Sequence[tuple[int, Any]]) -> tuple[Tensor, Any]:
        return torch.tensor([row for row, _ in pairs], device="cpu"), self.collate([item for _, item in pairs])


def indexed(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader of the same batches in the same order, each with its row numbers: ``(rows, batch)``.

    It draws from the same sources of randomness as the loader itself would, so that training goes on bit for bit.

    Raises:
        InvalidInputError: if the loader's data set has no rows to number.
    """
    if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__:
        raise InvalidInputError(
            "Rows are known of a torch.utils.data.DataLoader, and not of one that iterates in a way of its own.",
            got=type(loader).__name__,
            remedy="give the loader Indexed(dataset), and each batch's row numbers to recorder.batch(rows) before "
            "optimizer.step()",
        )
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        raise InvalidInputError(
            "This loader's batches have no row numbers: its data set is iterated, or it makes no batches.",
            got=f"{type(loader.dataset).__name__}, batch_size={loader.batch_size}",
            remedy="a data set with __getitem__ and a batch size, or recorder.batch(rows) in the loop",
        )
    settings: dict[str, Any] = {
        name: getattr(loader, name)
        for name in (
            *("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator"),
            *("prefetch_factor", "persistent_workers", "pin_memory_device", "in_order"),
        )
        if hasattr(loader, name)
    }
    collate = _Collate(loader.collate_fn or default_collate)
    return DataLoader(Indexed(loader.dataset), batch_sampler=loader.batch_sampler, collate_fn=collate, **settings)


class _Pairs(Dataset[tuple[Any, Tensor]]):
    """Inputs of any structure and targets, row by row."""

    def __init__(self, inputs: Example, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Any, Tensor]:
        def of_row(leaf: Any) -> Any:
            return leaf[row] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == len(self) else leaf

        return tree_map(of_row, plain(self.inputs)), self.targets[row]


class TrainingSet:
    """The rows that a network is trained on.

    Args:
        data: ``(inputs, targets)``, or a data set of such pairs. Inputs are whatever the model takes, as in ``Probe``.

    Raises:
        InvalidInputError: if it is neither.
    """

    def __init__(self, data: tuple[Example, Tensor] | Sequence[Any] | Dataset[Any]) -> None:
        if isinstance(data, Dataset):
            self.dataset: Dataset[Any] = data
        elif isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[1], Tensor) and tensors(data[0]):
            inputs, targets = data
            if count(inputs) != len(targets):
                raise InvalidInputError(
                    "Every row of the training set needs its target.",
                    got=f"{count(inputs)} inputs and {len(targets)} targets",
                    remedy=_BOTH,
                )
            self.dataset = TensorDataset(inputs, targets) if isinstance(inputs, Tensor) else _Pairs(inputs, targets)
        else:
            raise InvalidInputError(
                "A training set is pairs of inputs and targets.", got=type(data).__name__, remedy=_BOTH
            )

        self._versions: tuple[int, ...] | None = None  # of its tensors, as of their sums
        self._sums: tuple[tuple[int, int], ...] = ()
        self._counted = 0

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def rows(self, rows: Tensor | None = None) -> tuple[Any, Tensor]:
        """Inputs and targets of some rows, or of all.

        Raises:
            InvalidInputError: if an item is no pair of numbers.
        """
        if isinstance(self.dataset, TensorDataset):
            inputs, targets = self.dataset.tensors
            return (
                (inputs, targets)
                if rows is None
                else (inputs[rows.to(inputs.device)], targets[rows.to(targets.device)])
            )
        if isinstance(self.dataset, _Pairs):
            pairs = self.dataset
            return (
                (pairs.inputs, pairs.targets)
                if rows is None
                else (rows_of(pairs.inputs, rows), pairs.targets[rows.to(pairs.targets.device)])
            )
        wanted = range(len(self)) if rows is None else rows.tolist()
        with random_state_kept():  # items may be augmented
            items = [self.dataset[row] for row in wanted]
        if not all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
            raise InvalidInputError(
                "The items of the training set must be pairs.", got=type(items[0]).__name__, remedy=_BOTH
            )
        inputs, targets = default_collate(items)
        if not tensors(inputs) or not isinstance(targets, Tensor):
            raise InvalidInputError(
                "Inputs and targets must be tensors or numbers.",
                got=type(targets if tensors(inputs) else inputs).__name__,
                remedy=_BOTH,
            )
        return inputs, targets

    @cached_property
    def print(self) -> Print:
        """What tells this training set from others; empty if its items are no fixed pairs of numbers."""
        try:
            inputs, targets = self.rows(printed_rows(len(self)))
            return data_print(len(self), *tensors(inputs), targets) if self.is_fixed else ()
        except Exception:  # items that are no pairs, of several lengths, or without a length
            return ()

    def glance(self) -> Print:
        """A print of a few rows as they are now, to see whether they change; empty where they are no fixed pairs.

        Of tensors it looks at up to 256 rows, and at all of them where somebody wrote to the memory; of items at eight.
        """
        rows = printed_rows(len(self))
        try:
            if isinstance(self.dataset, TensorDataset):  # whose tensors count how often they were written to
                return (*data_print(len(self), *self.rows(rows)), float(self._edits(self.dataset.tensors)))
            inputs, targets = self.rows(rows[:: max(1, len(rows) // 8)])
            return data_print(len(self), *tensors(inputs), targets) if self.is_fixed else ()
        except Exception:
            return ()

    def _edits(self, parts: Sequence[Tensor]) -> int:
        """How often these tensors were found to hold other numbers than before, after somebody had written to them."""
        versions = tuple(part._version for part in parts if not part.is_inference())
        if versions != self._versions:
            sums = tuple(checksum(part) for part in parts)
            self._counted += bool(self._sums) and sums != self._sums
            self._versions, self._sums = versions, sums
        return self._counted

    @cached_property
    def is_fixed(self) -> bool:
        """Whether a row is the same each time it is asked for; random augmentation is not."""
        if isinstance(self.dataset, TensorDataset | _Pairs):
            return True
        some = torch.arange(min(8, len(self)), device="cpu")
        # The random numbers of one order go to other rows in the other.
        first, second = (tensors(self.rows(order)[0]) for order in (some, some.flip(0)))
        return all(torch.equal(one, other.flip(0)) for one, other in zip(first, second, strict=True))


class RowsSeen:
    """The rows of every step, as far as they were noted."""

    def __init__(self) -> None:
        self.noted = False
        self._waiting: list[Tensor] = []
        self._steps: list[Tensor | None] = []

    def note(self, rows: Tensor | Sequence[int]) -> None:
        """The rows of the batch that the next step sees; several batches before one step are one.

        Raises:
            InvalidInputError: if they are no row numbers.
        """
        found = torch.as_tensor(rows)
        if found.dtype == torch.bool:
            found = found.nonzero().flatten()
        if found.ndim != 1 or not len(found) or found.is_floating_point() or int(found.min()) < 0:
            raise InvalidInputError(
                "A batch is noted by its row numbers in the training set.",
                got=f"shape {tuple(found.shape)}, {found.dtype}",
                remedy="a tensor of integers (row,), one for each row of the batch",
            )
        self.noted = True
        self._waiting.append(found.detach().cpu().long())

    @property
    def waiting(self) -> int:
        """How many batches were noted since the last step."""
        return len(self._waiting)

    def forget(self) -> None:
        """The batches noted since the last step are not trained on."""
        self._waiting = []

    def step(self) -> Tensor | None:
        """A step begins: the rows it sees, None if nobody noted any."""
        rows = torch.cat(self._waiting) if self._waiting else None
        self._waiting = []
        self._steps.append(rows)
        return rows

    @property
    def batches(self) -> tuple[Tensor, ...] | None:
        """The rows of every step; None if those of some are not known."""
        return (
            None
            if any(rows is None for rows in self._steps)
            else tuple(rows for rows in self._steps if rows is not None)
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything noted."""
        return {"noted": self.noted, "steps": list(self._steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what was noted elsewhere."""
        self.noted, self._steps, self._waiting = state["noted"], list(state["steps"]), []


def all_rows(batches: Sequence[Tensor] | None, count: int) -> tuple[Tensor, ...] | None:
    """Batches, or None if each of them holds every row once."""
    if batches is not None and all(
        len(b) == count and bool((b.sort().values == torch.arange(count, device=b.device)).all()) for b in batches
    ):
        return None
    return None if batches is None else tuple(batches)


def row_places(rows: Tensor, targets: Tensor | None, among: Tensor, among_targets: Tensor) -> tuple[int | None, ...]:
    """For every row of a tensor the number of the equal row of another, None if there is none.

    Of several rows with equal inputs it is the first one with an equal target too, if there is one.

    Args:
        rows: ``(row, ...)``.
        targets: of these rows, None if they are not known.
        among: ``(other, ...)``.
        among_targets: of these.
    """
    inputs: dict[bytes, int] = {}
    labelled: dict[tuple[bytes, bytes], int] = {}
    for number, (row, label) in enumerate(zip(_bytes(among), _bytes(among_targets), strict=True)):
        inputs.setdefault(row, number)
        labelled.setdefault((row, label), number)
    wanted = list(_bytes(rows.to(among.dtype)))
    labels = [b""] * len(wanted) if targets is None else list(_bytes(targets.to(among_targets.dtype)))
    return tuple(labelled.get((row, label), inputs.get(row)) for row, label in zip(wanted, labels, strict=True))


def _bytes(rows: Tensor) -> Iterator[bytes]:
    """Every row as bytes; equal numbers are equal bytes, also 0.0 and -0.0."""
    flat = rows.detach().cpu().reshape(len(rows), -1)
    return (row.tobytes() for row in (flat + 0 if flat.is_floating_point() else flat).contiguous().numpy())
