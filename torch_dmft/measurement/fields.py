"""Fields of single neurons at a handful of records: what densities of h, g and z are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torch_dmft.architecture import Role
from torch_dmft.core.activation import activation
from torch_dmft.core.layer_kernels import Fields
from torch_dmft.core.memory import require_memory
from torch_dmft.measurement.normal_form import Stream
from torch_dmft.measurement.schedule import Schedule

MOST = 2**20
"""Numbers kept of one field at one step; more tell no more of a density."""


@dataclass(frozen=True, eq=False)
class FieldRecord:
    """Fields of one weight's outputs at one step, on the CPU.

    Attributes:
        preactivation: h, ``(sample, neuron)``.
        gradient: g, ``(sample, output, neuron)``.
        activation: name of the phi of g = phi'(h) z; None where it is not known or has kinks.
    """

    preactivation: Tensor
    gradient: Tensor
    activation: str | None


def handful(records: int) -> list[int]:
    """Which of so many records have their fields kept: the first, the last, and two or three evenly between.

    Before the last, multiples of the smallest power of two of which there are at most four: what a longer run keeps, a
    shorter one kept already, and two runs on one schedule keep the same.
    """
    stride = 1
    while -(-(records - 1) // stride) > 4:
        stride *= 2
    return [*range(0, records - 1, stride), records - 1]


class FieldMemory:
    """Fields at a handful of records, or at chosen steps; nothing is computed at other records.

    Args:
        chosen: which steps to keep; None for the ``handful``.
        is_chain: whether g = phi'(h) z with the z of the next weight, as in a plain chain.
    """

    def __init__(self, chosen: Schedule | None, *, is_chain: bool) -> None:
        self._chosen, self._is_chain = chosen, is_chain
        self._records = 0
        self._kept: dict[int, tuple[int, list[FieldRecord]]] = {}
        self._last: tuple[int, list[Stream]] | None = None

    def add(self, step: int, streams: Sequence[Stream]) -> None:
        """Take note of one more record.

        Raises:
            InsufficientMemoryError: if keeping its fields would not fit.
        """
        bare = [replace(stream, inputs=()) for stream in streams]
        if self._chosen is not None:
            if self._chosen(step):
                self._kept[self._records] = step, self._reduced(bare)
            self._records += 1
            return
        keep = handful(self._records + 1)
        self._settle(keep)
        self._last = step, bare
        self._records += 1

    def fields(self, layer: int) -> Fields | None:
        """What was kept of one weight, None if nothing."""
        self._settle(range(self._records))
        return self._of(layer, sorted(self._kept))

    def latest(self, layer: int) -> Fields | None:
        """What the last record has of one weight, None if it is not kept."""
        self._settle(range(self._records))
        return self._of(layer, [number for number in self._kept if number == self._records - 1])

    def _of(self, layer: int, numbers: Sequence[int]) -> Fields | None:
        if not numbers:
            return None
        steps, records = zip(*(self._kept[number] for number in numbers), strict=True)
        own = [record[layer] for record in records]
        return Fields(
            steps=torch.tensor(steps, device="cpu"),
            preactivation=torch.stack([record.preactivation for record in own]),
            gradient=torch.stack([record.gradient for record in own]),
            activation=own[0].activation,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything kept, as plain containers of tensors."""
        self._settle(range(self._records))
        kept = [(number, step, [asdict(each) for each in records]) for number, (step, records) in self._kept.items()]
        return {"records": self._records, "kept": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what another memory of the same model kept."""
        self._records, self._last = state["records"], None
        self._kept = {n: (step, [FieldRecord(**each) for each in records]) for n, step, records in state["kept"]}

    def _settle(self, keep: Sequence[int]) -> None:
        """Reduce the fields of the last record if they are to be kept, and forget those that are not."""
        if self._last is not None and self._records - 1 in keep:
            step, streams = self._last
            self._kept[self._records - 1] = step, self._reduced(streams)
        self._last = None
        self._kept = {number: kept for number, kept in self._kept.items() if number in keep}

    def _reduced(self, streams: Sequence[Stream]) -> list[FieldRecord]:
        sizes = [2 * min(MOST, sum(g.numel() for g in stream.gradients)) for stream in streams]
        require_memory(
            sum(sizes) * streams[0].gradients[0].element_size(),
            torch.device("cpu"),
            what="Keeping the fields of a record",
            remedy="Recorder(..., fields=False), or fields= at fewer steps",
        )
        return [_record(stream, is_chain=self._is_chain) for stream in streams]


def _record(stream: Stream, *, is_chain: bool) -> FieldRecord:
    h, g = stream.preactivations(), stream.gradient_fields()
    most = max(1, MOST // (g.shape[0] * g.shape[1]))
    if g.shape[2] > most:  # any would do, but channels and positions lie side by side in an order
        some = (
            torch.randperm(g.shape[2], generator=torch.Generator("cpu").manual_seed(0), device="cpu")[:most]
            .sort()
            .values
        )
        h, g = h[:, some.to(h.device)], g[:, :, some.to(g.device)]
    name = stream.layer.activation or "linear"
    known = is_chain and stream.layer.role is not Role.READOUT and activation(name).smooth
    return FieldRecord(h.cpu(), g.cpu(), name if known else None)
