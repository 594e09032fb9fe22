"""Two-time kernels: the fields of earlier records, and their Gram matrices with those of each new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from torch_dmft.architecture import Layer
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.layer_kernels import LayerKernels
from torch_dmft.core.memory import require_memory
from torch_dmft.measurement.normal_form import Stream, averaged_gram, backward_gram, forward_gram
from torch_dmft.measurement.snapshot import squeeze_outputs


class TwoTimeMemory:
    """One layer's fields at all records, on the model's device, and the blocks K(t, s), s <= t, on the CPU.

    Args:
        per_output: whether G is of pairs (sample, output), or averaged over equal outputs.
    """

    def __init__(self, *, per_output: bool = True) -> None:
        self._per_output = per_output
        self._streams: list[Stream] = []
        self._forward: list[list[Tensor]] = []
        self._backward: list[list[Tensor]] = []

    def require_room(self, stream: Stream) -> None:
        """Refuse a record that does not fit, before anything of it is kept.

        Raises:
            InsufficientMemoryError: if keeping its fields would not fit.
        """
        tensors = [*stream.inputs, *stream.gradients]
        require_memory(
            sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            tensors[0].device,
            what=f"Keeping the fields of record {len(self._streams)} of layer {stream.layer.path} for two-time kernels",
            remedy="a tolerance (two_time=0.01), fewer records (schedule=log_spaced(20)), a smaller probe, or two_time=False",
        )

    def add(self, stream: Stream) -> None:
        """Remember one more record."""
        self._streams.append(stream)
        self._forward.append([forward_gram(stream, earlier).cpu() for earlier in self._streams])
        gram = backward_gram if self._per_output else averaged_gram
        blocks = (gram(stream, earlier) for earlier in self._streams)
        self._backward.append([(squeeze_outputs(block) if self._per_output else block).cpu() for block in blocks])

    def completed(self, layer: LayerKernels) -> LayerKernels:
        """A layer's kernels with Phi and G between all pairs of recorded times."""
        return replace(layer, forward=join_times(self._forward), backward=join_times(self._backward))

    def state_dict(self) -> dict[str, Any]:
        """Everything remembered, as plain containers of tensors."""
        streams = [(stream.inputs, stream.outputs, stream.gradients) for stream in self._streams]
        return {"streams": streams, "forward": self._forward, "backward": self._backward}

    def load_state_dict(self, state: Mapping[str, Any], layer: Layer, gamma0: float) -> None:
        """Take over what another memory of the same layer remembered."""
        self._streams = [Stream(layer, gamma0, *parts) for parts in state["streams"]]
        self._forward = [list(row) for row in state["forward"]]
        self._backward = [list(row) for row in state["backward"]]


def join_times(blocks: Sequence[Sequence[Tensor]]) -> Kernel:
    """A two-time kernel from its blocks at times s <= t.

    Args:
        blocks: ``blocks[t][s]``, ``(sample, sample)`` or ``(sample, output, sample, output)``.
    """
    times, half = len(blocks), blocks[0][0].ndim // 2
    array = blocks[0][0].new_empty(times, times, *blocks[0][0].shape)
    for t, row in enumerate(blocks):
        for s, block in enumerate(row):
            array[t, s] = block
            array[s, t] = block.movedim(tuple(range(half)), tuple(range(half, 2 * half)))
    return Kernel(array.movedim(1, 1 + half))
