"""Whether the parts of a run fit together: every array's axes, and every number, held against the others."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_dmft.core.errors import InvalidInputError

if TYPE_CHECKING:
    from torch_dmft.core.kernel import Kernel
    from torch_dmft.core.training import Training
    from torch_dmft.core.trajectory import Trajectory


def refuse_misfit(run: Trajectory) -> None:
    """Refuse a run whose parts are not of one number of times, samples and outputs.

    Args:
        run: whose ``outputs`` are ``(time, sample, output)``; all else is held against them.

    Raises:
        InvalidInputError: naming the first part that does not fit.
    """
    for what, got in _misfits(run):
        raise InvalidInputError(
            f"The parts of a trajectory must have equal lengths and possible numbers: {what}.",
            got=got,
            remedy="the trajectory of a recorder or of a solver, as it was made",
        )


def _misfits(run: Trajectory) -> Iterator[tuple[str, str]]:
    """What does not fit, as a rule and what is there instead."""
    if run.outputs.ndim != 3 or run.steps.ndim != 1:
        yield "outputs are (time, sample, output), steps (time,)", f"{_sizes(run.outputs)}, steps {_sizes(run.steps)}"
        return
    time, sample, output = run.outputs.shape
    known = {"steps": (time,), "losses": (time,), "train": (sample,), "targets": (sample, output), "curvature": (time,)}
    for name, sizes in known.items():
        part = getattr(run, name)
        if part is not None and tuple(part.shape) != sizes:
            yield f"{name} are {sizes} beside outputs {_sizes(run.outputs)}", f"{name} {_sizes(part)}"
    yield from _wrong_kinds(run)
    if not _is_whole(run.steps) or bool((run.steps < 0).any()):
        smallest = f", the smallest {run.steps.min().item()}" if time and _is_whole(run.steps) else ""
        yield "steps are integers from 0 on", f"{run.steps.dtype}{smallest}"
    lengths = {"time": time, "sample": sample, "output": output}
    for name, kernel in _kernels(run):
        there = tuple(zip(kernel.axes, kernel.array.shape, strict=True))
        if any(size != lengths[axis] for axis, size in there):
            yield f"{name} has the axes {kernel.axes} of outputs {_sizes(run.outputs)}", _sizes(kernel.array)
    for layer in run.layers:
        fields = layer.fields
        if fields is not None:
            rows = (fields.steps.numel(), sample)
            if (
                fields.steps.ndim != 1
                or fields.preactivation.shape[:2] != rows
                or fields.gradient.shape[:3] != (*rows, output)
            ):
                got = f"{_sizes(fields.preactivation)} and {_sizes(fields.gradient)}"
                yield f"fields of {layer.name!r} are of {rows[0]} times, {sample} samples and {output} outputs", got
    for name, others in (("standard error", (run.stderr,)), ("replica", run.replicas)):
        for other in others:
            if other is not None and (other.outputs.shape != run.outputs.shape or len(other.layers) != len(run.layers)):
                yield f"a {name} has the same layout as the run itself", repr(other)
    for name, width in (("width", run.width), *((f"width of {layer.name!r}", layer.width) for layer in run.layers)):
        if width is not None and width < 1:
            yield f"the {name} is at least 1", f"{width}"
    yield from _misfits_of(run.training)


def _wrong_kinds(run: Trajectory) -> Iterator[tuple[str, str]]:
    """Numbers of a kind that nothing can be computed with, and names that cannot be written."""
    numbers = {name: getattr(run, name) for name in ("outputs", "losses", "targets", "curvature")}
    for name, part in (*numbers.items(), *((name, kernel.array) for name, kernel in _kernels(run))):
        if part is not None and (part.is_complex() or part.dtype is torch.bool):
            yield f"{name} is of real numbers", f"{part.dtype}"
    if run.train.dtype is not torch.bool:
        yield "train is a mask of bools", f"{run.train.dtype}"
    names = {"origin": run.origin, "solver": run.solver, "loss": run.training.loss, "optimizer": run.training.optimizer}
    for name, text in (*names.items(), *((f"the name of weight {at}", one.name) for at, one in enumerate(run.layers))):
        if text != text.encode(errors="replace").decode():  # half of a pair of UTF-16, as a badly read file name has
            yield f"{name} is text that can be written", ascii(text)


def _misfits_of(training: Training) -> Iterator[tuple[str, str]]:
    for numbers in (training.numbers, *training.exceptions.values()):
        for name, number in numbers.items():
            if not isinstance(number, Tensor | Real) or (isinstance(number, Tensor) and number.is_complex()):
                yield f"{name} is a number, or one for each step", repr(number)
            elif isinstance(number, Tensor) and (number.ndim != 1 or len(number) < training.steps):
                yield f"{name} is one number for each of {training.steps} steps", _sizes(number)
    if training.batches is not None and len(training.batches) < training.steps:
        yield f"there is a batch for each of {training.steps} steps", f"{len(training.batches)} batches"
    for rows in training.batches or ():
        if rows.ndim != 1 or not _is_whole(rows) or bool((rows < 0).any()):
            yield "a batch is a list of rows, (row,) integers from 0 on", f"{_sizes(rows)}, {rows.dtype}"


def _kernels(run: Trajectory) -> Iterator[tuple[str, Kernel]]:
    if run.ntk is not None:
        yield "the NTK", run.ntk
    for layer in run.layers:
        for name, kernel in (("Phi", layer.forward), ("G", layer.backward), ("NTK", layer.ntk)):
            if kernel is not None:
                yield f"{name} of {layer.name!r}", kernel


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)


def _sizes(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
