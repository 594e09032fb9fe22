"""Records of the DMFT tab, made of trajectories and of what a recorder measures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from torch_dmft.comparison import Comparison
from torch_dmft.comparison.verdict import sentences
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.stability import edge
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.report.ailing import disk_errors_told
from torch_dmft.report.choice import by_target, labels
from torch_dmft.report.hparams import Setting, settings
from torch_dmft.report.scalars import KINDS, LOWER, UPPER
from torch_dmft.tab.about import About, Fact
from torch_dmft.tab.log import RecordLog

if TYPE_CHECKING:
    from torch_dmft.parameterization import Plan

MOST_ROWS = 128
"""Samples on which kernels are shown; of more, evenly spaced ones in the order of their labels."""
_EIGENVALUES = 24
_MOST_SPECTRUM, _CHEAP = 1024, 2e7
"""Rows of the largest NTK whose spectrum is taken; and how large the cube of this number is before records are left out."""
_TIMES, _PAIR_BYTES = 100, 2**27
_BINS, _SOME = 64, 20_000
_BANDS = (f"{LOWER}/loss", f"{UPPER}/loss")
EDGE = "edge of stability"
"""The learning rate in units of the largest stable one."""


@dataclass(frozen=True)
class Rows:
    """The samples of a probe, as records show them.

    Attributes:
        shown: ``(shown,)``, positions of the samples that kernels are shown on.
        train: ``(sample,)`` bool, which are trained on.
        targets: ``(sample, output)``, if they are known.
    """

    shown: Int[Tensor, " shown"]
    train: Tensor
    targets: Float[Tensor, "sample output"] | None

    @staticmethod
    def of(train: Tensor, targets: Tensor | None) -> Rows:
        """All samples if they are few, sorted by target."""
        targets = None if targets is None else targets.detach().cpu()
        order = by_target(targets, len(train))
        if len(order) > MOST_ROWS:
            order = order[torch.linspace(0, len(order) - 1, MOST_ROWS, dtype=torch.float64).round().long()]
        return Rows(order, train.cpu(), targets)

    def facts(self) -> dict[str, tuple | int]:
        """What ``About`` holds of them."""
        named = None if self.targets is None else labels(self.targets)[self.shown]
        named = None if named is None or not bool(named.isfinite().all()) else named
        return {
            "rows": tuple(self.shown.tolist()),
            "labels": () if named is None else tuple(float(label) for label in named),
            "train": tuple(self.train[self.shown].tolist()),
            "samples": len(self.train),
        }

    def kernels(self, run: Trajectory, time: int) -> dict[str, NDArray]:
        """Every kernel at one time over the shown samples, by the names of ``About.kernels``."""
        kernels = {
            f"{kind}/{position}": getattr(layer, attribute)
            for kind, attribute in KINDS.items()
            for position, layer in enumerate(run.layers)
        }
        known = {name: kernel for name, kernel in {**kernels, "NTK/all": run.ntk}.items() if kernel is not None}
        return {name: self._seen(kernel, time) for name, kernel in known.items()}

    def spectrum(self, run: Trajectory, time: int, number: int) -> tuple[list[float], list[float]] | None:
        """Leading eigenvalues of the NTK on the training rows, and the share of the targets along each.

        None if the NTK is too large, or was not recorded.

        Args:
            run: the run.
            time: position of the step.
            number: of the record; of large kernels only every so many-th has its spectrum taken.
        """
        if run.ntk is None:
            return None
        trained, ntk = self.train.nonzero().flatten(), run.ntk.equal_time[time].detach().cpu()
        kernel = ntk.index_select(0, trained).index_select(ntk.ndim // 2, trained)
        size = kernel.shape[: kernel.ndim // 2].numel()
        if not 0 < size <= _MOST_SPECTRUM or number % math.ceil(size**3 / _CHEAP) or not bool(kernel.isfinite().all()):
            return None
        try:
            values, vectors = torch.linalg.eigh(kernel.reshape(size, size).double())
        except torch.linalg.LinAlgError:  # numbers of very different sizes, before a run diverges
            return None
        values, vectors = values.flip(0)[:_EIGENVALUES], vectors.flip(1)[:, :_EIGENVALUES]
        y = None if self.targets is None else self.targets[self.train].double()
        if y is None or y.numel() != len(trained) * run.outputs.shape[2]:
            return values.tolist(), [math.nan] * len(values)
        along = (
            (vectors.mT @ y.reshape(size, -1)).square().sum(-1)
        )  # columns: one, or the outputs of an averaged kernel
        shares = along / y.square().sum().clamp(min=torch.finfo(y.dtype).tiny)
        return values.tolist(), shares.tolist()

    def _seen(self, kernel: Kernel, time: int) -> NDArray:
        at = Kernel(kernel.equal_time[time][None]).per_sample().array[0].detach().float().cpu()
        return at[self.shown][:, self.shown].numpy()


class LiveRecords:
    """The records of a run that is going on. A disk that is full ends them with a warning, and not the training.

    Args:
        folder: of the run.
        about: what it is, without its rows.
        first: the first record of the network, whose rows are shown; earlier steps of an earlier log are kept.
    """

    def __init__(self, folder: str | Path, about: About, first: Trajectory) -> None:
        self._rows, self._number, self._next = Rows.of(first.train, first.targets), 0, int(first.steps)
        self._told: set[str] = set()
        self._log: RecordLog | None = None
        whole = replace(about, **self._rows.facts())  # type: ignore[arg-type]
        with self._ending(int(first.steps)):
            self._log = RecordLog(folder, whole, start=int(first.steps))

    def write(self, run: Trajectory, time: int, values: Mapping[str, float]) -> None:
        """Write one time of a run with its plotted numbers, and what was noted of it."""
        if self._log is not None:
            step, spectrum = int(run.steps[time]), self._rows.spectrum(run, time, self._number)
            with self._ending(step):
                self._log.record(step, math.nan, shown_values(values), self._rows.kernels(run, time), spectrum)
                for note in run.notes:
                    if note not in self._told:
                        self._log.problem(f"{note}.")
                self._told |= {*run.notes}
            self._number, self._next = self._number + 1, step + 1

    def densities(self, run: Trajectory, step: int) -> None:
        """Write the densities of the fields that a run kept at one step, if it did."""
        if self._log is not None:
            with self._ending(step):
                for at, weight, field, density in densities([run], run):
                    if at == step:
                        self._log.density(at, weight, field, density)

    def close(self) -> None:
        """Close the files."""
        if self._log is not None:
            with self._ending(self._next):
                self._log.close()

    def _ending(self, step: int) -> AbstractContextManager[None]:
        """Write nothing more after an error of the disk."""
        return disk_errors_told("The DMFT tab", step, lambda: setattr(self, "_log", None))


def network_about(plan: Plan, record: Trajectory) -> About:
    """What a network is that is being trained, without its rows."""
    facts = {"gamma0": plan.gamma0, "width": record.width, "depth": len(record.layers) - 1, "scheme": plan.scheme}
    has_ntk = record.ntk is not None
    return About(record.origin, "network", _weights(record), rows=(), facts=facts, plan=plan_lines(plan), ntk=has_ntk)


def prediction_about(run: Trajectory, network: str) -> About:
    """What a prediction is of the network with this origin, without its rows."""
    has_ntk = run.ntk is not None
    return About(run.origin, kind_of(run), _weights(run), rows=(), facts=_facts(run), network=network, ntk=has_ntk)


def shown_values(values: Mapping[str, float]) -> dict[str, float]:
    """The plotted numbers that the tab shows: of bands that of the loss."""
    return {tag: value for tag, value in values.items() if tag.partition("/")[0] not in (LOWER, UPPER) or tag in _BANDS}


def edge_of(run: Trajectory, time: int) -> dict[str, float]:
    """How near the learning rate was to the edge of stability at one time, if that is known."""
    if run.curvature is None:
        return {}
    return {EDGE: float(edge(run.training, run.steps[time : time + 1], run.curvature[time : time + 1]))}


def steps_of_fields(run: Trajectory) -> set[int]:
    """Steps at which fields of neurons were kept."""
    return {step for layer in run.layers if layer.fields is not None for step in layer.fields.steps.tolist()}


def kind_of(prediction: Trajectory) -> str:
    """What kind of prediction this is, by its solver."""
    if prediction.solver == "StaticNTK":
        return "static"
    return "networks" if prediction.replicas else "theory"


def plan_lines(plan: Plan | None) -> tuple[tuple[str, ...], ...]:
    """The table of a plan, its head first."""
    if plan is None:
        return ()
    head = ("parameter", "role", "fan-in", "initial std", "SGD lr / eta")
    rows = ((r.name, str(r.role), str(r.fan_in), f"{r.std:.4g}", f"{r.lr:.4g}") for r in plan.rules)
    return (head, *rows)


def write_records(
    folder: str | Path,
    comparison: Comparison,
    run: Trajectory,
    values: Sequence[Mapping[str, float]],
    plan: Plan | None = None,
    more: Mapping[str, Setting] | None = None,
) -> None:
    """Write one run of a comparison for the tab, in place of an earlier log.

    Args:
        folder: of the run.
        comparison: the comparison.
        run: one of its runs.
        values: its plotted numbers at every step, from ``run_scalars``.
        plan: of the measured model.
        more: further settings.
    """
    rows = Rows.of(run.train, comparison.targets)
    two_time = run.layers[0].forward.has_lags
    kept = torch.linspace(0, len(run.steps) - 1, min(len(run.steps), _TIMES), dtype=torch.float64).round().long()
    about = prediction_about(run, comparison.measured.origin)
    if run is comparison.measured:
        facts = {**settings(comparison), **(more or {}), **_facts(run)}
        told = tuple(sentences(comparison))
        about = replace(about, kind="network", network=None, facts=facts, verdict=told, plan=plan_lines(plan))
    about = replace(
        about,
        times=tuple(run.steps[kept].tolist()) if two_time else (),
        pairs=two_time and 8 * len(run.layers) * len(kept) ** 2 * len(rows.shown) ** 2 // 2 <= _PAIR_BYTES,
        **rows.facts(),  # type: ignore[arg-type]
    )
    edges = [math.nan] * len(values) if run.edge is None else run.edge.tolist()
    with RecordLog(folder, about) as log:
        for note in run.notes:
            log.problem(f"{note}.")
        for at, (step, time, numbers) in enumerate(zip(run.steps.tolist(), run.times.tolist(), values, strict=True)):
            known = {**shown_values(numbers), EDGE: edges[at]}
            log.record(step, time, known, rows.kernels(run, at), rows.spectrum(run, at, at))
        for step, weight, field, density in densities(comparison.runs, run):
            log.density(step, weight, field, density)
        if two_time:
            log.pairs(_two_time(run, rows, kept, about))


def _weights(run: Trajectory) -> tuple[str, ...]:
    return tuple(layer.name for layer in run.layers)


def _facts(run: Trajectory) -> dict[str, Fact]:
    """What a run knows of itself; numbers of nothing are left out."""
    facts: dict[str, Fact] = {
        "scheme": run.training.scheme,
        "solver": run.solver or None,
        "centered": run.centered or None,
    }
    return {name: fact for name, fact in {**facts, **run.metadata}.items() if fact is not None}


def densities(
    runs: Sequence[Trajectory], run: Trajectory
) -> Iterator[tuple[int, int, str, tuple[float, float, list[float]]]]:
    """Histograms of the fields a run kept, on the ranges that all runs and times of a weight share."""
    for weight, layer in enumerate(run.layers[:-1]):
        for field in ("preactivation", "gradient"):
            kept = [each.layers[weight].fields for each in runs]
            finite = [_finite(getattr(fields, field)) for fields in kept if fields is not None]
            some = [values[:: max(1, len(values) // _SOME)] for values in finite if len(values)]
            if layer.fields is None or not some:
                continue
            low, high = (float(end) for end in np.quantile(np.concatenate(some), [0.001, 0.999]))
            if not high > low:
                low, high = low - 0.5, high + 0.5
            for step, values in zip(layer.fields.steps.tolist(), getattr(layer.fields, field), strict=True):
                entries = _finite(values)
                if len(entries):
                    heights, _ = np.histogram(entries, _BINS, (low, high))
                    density = heights / (len(entries) * (high - low) / _BINS)
                    yield step, weight, field, (low, high, density.tolist())


def _finite(values: Tensor) -> NDArray:
    flat = values.detach().flatten().cpu().float().numpy()
    return flat[np.isfinite(flat)]


def _two_time(run: Trajectory, rows: Rows, kept: Tensor, about: About) -> Iterator[NDArray]:
    """The blocks of ``RecordLog.pairs``."""
    upper = np.triu_indices(len(rows.shown))
    for kind in ("forward", "backward"):
        for layer in run.layers:
            kernel = getattr(layer, kind).at(kept).per_sample().values
            mean = kernel.diagonal(dim1=1, dim2=3).mean(-1).detach().cpu().float().numpy()
            if about.pairs:
                shown = kernel[:, rows.shown][:, :, :, rows.shown].permute(1, 3, 0, 2).detach().cpu().float().numpy()
                yield np.concatenate([mean[None], shown[upper]])
            else:
                yield mean[None]
