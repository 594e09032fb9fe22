"""Trajectory: the record of a training run, measured or predicted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from torch_dmft.core import serial
from torch_dmft.core.arguments import require_places, typed
from torch_dmft.core.devices import usable
from torch_dmft.core.equality import by_value
from torch_dmft.core.errors import InvalidInputError, NotRecordedError
from torch_dmft.core.factors import Factors, weighted
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.layer_kernels import Fields, LayerKernels
from torch_dmft.core.page import Page
from torch_dmft.core.parts import refuse_misfit
from torch_dmft.core.prints import Print
from torch_dmft.core.stability import edge
from torch_dmft.core.summary import one_line, summary
from torch_dmft.core.training import Training

_T = TypeVar("_T")


@typed
@by_value
@dataclass(frozen=True)
class Trajectory:
    """A training run seen through its kernels; the same type for a measured network and for a theory.

    Attributes:
        steps: ``(time,)`` integer steps at which everything else is given, *before* the update of that step.
        outputs: ``(time, sample, output)``, training and test rows in the probe's order.
        losses: ``(time,)``, the loss on the training rows.
        layers: one ``LayerKernels`` per weight, in forward order.
        ntk: K^NTK, the sum of ``layers[l].ntk`` and of what the parameters of norm layers add; df/dt = K Delta to first
            order in the learning rate. None if it was not recorded. In a run of several outputs whose kernels have no output
            axes, G and the NTK are averaged over equal outputs (``per_sample``).
        origin: what this is, as a legend names it: ``"network (N=512)"``, ``"theory (N=inf)"``, ``"static NTK (N=inf)"``.
        training: how the network was trained, or is predicted to be; ``times`` and ``lr`` are its.
        train: ``(sample,)`` bool, which rows the model is trained on.
        targets: ``(sample, output)`` float targets (one-hot for classes), if known.
        stderr: the standard error of every number above in the same layout, or None if the method has none.
        replicas: the independent networks of finite width whose mean this is, at equal times and without fields, if it
            is a prediction for that width; else empty. Covariances over initialisations are theirs.
        network: activation and gain behind every weight but the readout, such as ``"relu, gain 1.4"``; () if not known.
        probe_print: size and projection of the inputs of the rows; two probes with one print are the same.
        curvature: ``(time,)``, the largest eigenvalue of K times the curvature of the loss by the outputs, on the training
            rows; see ``edge``.
        solver: the method that predicted the run; "" for a measured one.
        width: N, the fan-in of the readout; None at infinite width.
        centered: whether the outputs are f - f_0, those minus their start.
        notes: what of the network was measured otherwise than usual, or not at all, in words.
        metadata: plain facts of the run (neurons, seconds, ...), saved with it, that nothing depends on.
    """

    steps: Tensor
    outputs: Tensor
    losses: Tensor
    layers: tuple[LayerKernels, ...]
    ntk: Kernel | None
    origin: str
    training: Training
    train: Tensor
    targets: Tensor | None = None
    stderr: Trajectory | None = None
    replicas: tuple[Trajectory, ...] = ()
    network: tuple[str, ...] = ()
    probe_print: Print = ()
    curvature: Tensor | None = None
    solver: str = ""
    width: int | None = None
    centered: bool = False
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a trajectory whose parts do not fit together."""
        refuse_misfit(self)

    def __repr__(self) -> str:
        return one_line(self)

    def __str__(self) -> str:
        return str(summary(self))

    def __rich__(self) -> Page:
        return summary(self)

    def _repr_html_(self) -> str:
        """The summary for a notebook."""
        return summary(self)._repr_html_()

    @property
    def lr(self) -> float:
        """Eta, the base learning rate, if it was the same in all steps; else NaN."""
        constant = self.training.number("lr")
        return math.nan if isinstance(constant, Tensor) else constant

    @property
    def times(self) -> Tensor:
        """The paper's time, the sum of eta over the steps before: ``(time,)`` float64."""
        times = self.training.times
        known = self.steps.cpu().clamp(max=len(times) - 1)
        beyond = self.steps.cpu() - known  # of a run that was recorded beyond what is known of its training
        last = times[-1] - times[-2] if len(times) > 1 else self.lr
        return torch.where(beyond > 0, times[known] + beyond * last, times[known]).to(self.steps.device)

    @property
    def edge(self) -> Tensor | None:
        """The learning rate in units of the largest stable one, eta lambda_max(K H) / 2: ``(time,)``, 1 at the edge.

        H is the curvature of the loss by the outputs; momentum moves the edge (``torch_dmft.core.stability``). Beyond about
        0.8 small differences between runs grow. None without targets, NaN for Adam, and where parameters have rates of their
        own beside the plan's.
        """
        return None if self.curvature is None else edge(self.training, self.steps, self.curvature)

    @property
    def spread(self) -> Trajectory:
        """The standard deviation of every number over initialisations, of one network and not of the mean.

        Raises:
            NotRecordedError: if this is not a mean over replicas.
        """
        if not self.replicas:
            raise NotRecordedError(
                "Expected an ensemble of finite networks.",
                got=self.origin,
                remedy="solve with solvers.FiniteWidth(width)",
            )
        spread = combine(self.replicas, lambda values: torch.stack(list(values)).std(0))
        return replace(spread, origin=self.origin, metadata=self.metadata)

    def layer(self, name: str) -> LayerKernels:
        """The kernels of the weight with this module path.

        Raises:
            NotRecordedError: if the weight is unknown; the message lists the names.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise NotRecordedError(
            "Unknown weight.", got=repr(name), remedy=f"one of {', '.join(layer.name for layer in self.layers)}"
        )

    def at_steps(self, steps: Tensor) -> Trajectory:
        """The same run at a subset of its recorded steps.

        Args:
            steps: ``(kept,)`` integer steps, each of which was recorded.

        Raises:
            NotRecordedError: if a step was not recorded.
        """
        if steps.ndim != 1 or steps.dtype not in (torch.int64, torch.int32) or not len(steps):
            raise InvalidInputError(
                "`steps` must be integers with one axis.",
                got=f"shape {tuple(steps.shape)}, {steps.dtype}",
                remedy="some of trajectory.steps",
            )
        known = {int(step): position for position, step in enumerate(self.steps)}
        missing = [int(step) for step in steps if int(step) not in known]
        if missing:
            raise NotRecordedError(
                f"Steps {missing[:5]} were not recorded.",
                got=f"{len(known)} recorded steps",
                remedy="some of trajectory.steps, or a denser schedule (every=, record=)",
            )
        index = torch.tensor([known[int(step)] for step in steps], dtype=torch.int64, device=self.outputs.device)
        return replace(
            self,
            steps=self.steps[index],
            outputs=self.outputs[index],
            losses=self.losses[index],
            layers=tuple(layer.each(lambda kernel: kernel.at(index)) for layer in self.layers),
            ntk=None if self.ntk is None else self.ntk.at(index),
            stderr=None if self.stderr is None else self.stderr.at_steps(steps),
            replicas=tuple(replica.at_steps(steps) for replica in self.replicas),
            curvature=None if self.curvature is None else self.curvature[index.to(self.curvature.device)],
        )

    def at_rows(self, rows: Tensor) -> Trajectory:
        """The same run on a subset of its samples; losses are unchanged.

        Args:
            rows: ``(kept,)`` positions along the sample axis.
        """
        require_places("rows", rows, self.outputs.shape[1])

        def kept(layer: LayerKernels) -> LayerKernels:
            fields = layer.fields
            if fields is not None:
                fields = replace(fields, preactivation=fields.preactivation[:, rows], gradient=fields.gradient[:, rows])
            return replace(layer.each(lambda kernel: kernel.at_rows(rows)), fields=fields)

        return replace(
            self,
            probe_print=(),
            outputs=self.outputs[:, rows.to(self.outputs.device)],
            layers=tuple(kept(layer) for layer in self.layers),
            ntk=None if self.ntk is None else self.ntk.at_rows(rows),
            train=self.train[rows.to(self.train.device)],
            targets=None if self.targets is None else self.targets[rows.to(self.targets.device)],
            stderr=None if self.stderr is None else self.stderr.at_rows(rows),
            replicas=tuple(replica.at_rows(rows) for replica in self.replicas),
        )

    @property
    def known_ntk(self) -> Kernel:
        """K^NTK, where it cannot be done without.

        Raises:
            NotRecordedError: if it was not recorded.
        """
        if self.ntk is None:
            raise NotRecordedError(
                f"The NTK of {self.origin!r} was not recorded.",
                got="ntk=None",
                remedy="record it: Recorder(...) without ntk=False; with per_output=False where it is too large",
            )
        return self.ntk

    @property
    def is_per_output(self) -> bool:
        """Whether G and the NTK are of pairs (sample, output), or there is one output; else they are averaged over outputs."""
        return self.outputs.shape[2] == 1 or any(layer.backward.has_outputs for layer in self.layers)

    def per_sample(self) -> Trajectory:
        """The same run with G and the NTK averaged over equal outputs (``Kernel.per_sample``); as it is with one output.

        Of standard errors the mean is taken too: an upper bound, however the outputs' errors are correlated.
        """
        return replace(
            self,
            layers=tuple(layer.each(Kernel.per_sample) for layer in self.layers),
            ntk=None if self.ntk is None else self.ntk.per_sample(),
            stderr=None if self.stderr is None else self.stderr.per_sample(),
            replicas=tuple(replica.per_sample() for replica in self.replicas),
        )

    def without_ntk(self) -> Trajectory:
        """The same run with Phi and G alone."""
        return replace(
            self,
            layers=tuple(replace(layer, ntk=None) for layer in self.layers),
            ntk=None,
            stderr=None if self.stderr is None else self.stderr.without_ntk(),
            replicas=tuple(replica.without_ntk() for replica in self.replicas),
        )

    def to(self, *args: torch.dtype | torch.device | str) -> Trajectory:
        """The same run with every tensor on a device, and every floating-point tensor in a dtype.

        Args:
            *args: a dtype, a device, or both.
        """
        for arg in args:
            if not isinstance(arg, torch.dtype):
                usable(arg)
            elif not arg.is_floating_point:
                raise InvalidInputError(
                    "A run has real numbers.", got=f"{arg}", remedy="torch.float32 or torch.float64"
                )
        devices = [arg for arg in args if not isinstance(arg, torch.dtype)]

        def convert(value: _T) -> _T:
            if isinstance(value, Tensor):
                moved: Tensor = value
                for arg in args if value.is_floating_point() else devices:
                    moved = moved.to(arg)
                return moved  # type: ignore[return-value]
            if isinstance(value, tuple):
                return tuple(convert(item) for item in value)  # type: ignore[return-value]
            if is_dataclass(value) and not isinstance(value, type):
                return replace(value, **{f.name: convert(getattr(value, f.name)) for f in fields(value)})
            return value

        return convert(self)

    def save(self, path: str | Path) -> None:
        """Write the run to one ``.npz`` file (arrays and a JSON header), completely or not at all.

        Args:
            path: the file, conventionally ``*.npz``; an existing one is replaced, links are followed. Tensors come back on the
                CPU with their dtype and bits.

        Raises:
            InvalidInputError: if the metadata hold something that cannot be saved.
            NotWrittenError: if the disk is full, the folder is missing, or no regular file stands there; an OSError. What
                stood there before is unchanged.
        """
        serial.write(self, path, FORMAT)

    @staticmethod
    def load(path: str | Path) -> Trajectory:
        """Read a run written by ``save``; it is equal (``==``) to the one that was saved.

        Raises:
            MissingFileError: if the file does not exist; an InvalidInputError and a FileNotFoundError.
            InvalidInputError: if the file is not a saved trajectory, of another schema, damaged or incomplete.
        """
        return serial.read(path, FORMAT)


FORMAT = serial.FileFormat(
    "torch_dmft trajectory", schema=8, root=Trajectory, parts=(LayerKernels, Kernel, Factors, Fields, Training)
)
"""Files of trajectories. The schema is raised whenever a file written now could not be read by the code before."""


_Reduce = Callable[[Sequence[Tensor]], Tensor]
"""One array per run, ``(time, ...)``, to one array of that shape."""


def combine(
    runs: Sequence[Trajectory],
    reduce: _Reduce,
    *,
    kernels: _Reduce | None = None,
    weights: Sequence[float] | None = None,
) -> Trajectory:
    """A trajectory in which every number is a function of the corresponding numbers of all runs.

    Args:
        runs: runs of one problem in one layout; everything but numbers (steps, origin, names, widths) is taken from the first.
        reduce: what is made of the arrays of all runs.
        kernels: the same for the arrays of kernels, if it is something else.
        weights: of the first runs, if ``reduce`` makes a weighted sum of them; of anything else kernels are at equal times
            where two-time ones are held by factors.

    Returns:
        The trajectory, without fields, standard error and replicas.
    """
    first, gram = runs[0], kernels or reduce

    def kernel(parts: Sequence[Kernel]) -> Kernel:
        factors = None if weights is None else weighted([k.factors for k in parts[: len(weights)]], weights)
        return Kernel(gram([k.array for k in parts]), factors)

    def known(parts: Sequence[Kernel | None]) -> Kernel | None:
        there = [k for k in parts if k is not None]
        return kernel(there) if len(there) == len(parts) else None

    layers = tuple(
        LayerKernels(
            name=parts[0].name,
            forward=kernel([part.forward for part in parts]),
            backward=kernel([part.backward for part in parts]),
            ntk=known([part.ntk for part in parts]),
            width=parts[0].width,
        )
        for parts in zip(*(run.layers for run in runs), strict=True)
    )
    return replace(
        first,
        outputs=reduce([run.outputs for run in runs]),
        losses=reduce([run.losses for run in runs]),
        layers=layers,
        ntk=known([run.ntk for run in runs]),
        stderr=None,
        replicas=(),
        curvature=None,
    )
