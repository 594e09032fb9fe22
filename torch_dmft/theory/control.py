r"""Control variates: what the start of a network tells of its whole run.

Networks of one width differ as their starts do: where features or gradients are larger at the start, kernels are at every
later time, and outputs move faster. Let x be sizes of the kernels of all layers at the start of a network, X their mean over
m further starts, each of which costs a look instead of a run, and itself. Anything else y of the run is corrected by

.. math:: y' = y - b \cdot (x - X), \qquad \mathrm{Var}\, y' = r^2 + (s^2 - r^2) / (1 + m),

s^2 being the variance of y and r^2 that of what x leaves of it. With slopes b that other networks told, y' has the mean of y,
whatever b is, and corrected runs are as independent as the runs: their scatter gives their standard error. Networks of the
smallest width cost least, and b hardly depends on the width.

Source: control variates, with the mean of x estimated (double sampling), Cochran, Sampling Techniques (1977), section 12.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.kernel import Kernel
from torch_dmft.core.trajectory import Trajectory, combine
from torch_dmft.measurement.moment import Snapshot
from torch_dmft.theory.problem import Problem

LEAST = 8
"""The fewest runs that slopes are told from, and that are trained at larger widths."""
WORTH = 0.75
"""Largest share of the runs that starts must leave to be trained to be worth a look."""
_RUNS = 4
"""Runs for each number that slopes are told by, at least."""
_VARIES = 1e-4
"""Relative spread from which on a size is more than rounding."""
_NOTHING = 1e-100
"""Smallest square, so that it can be divided by."""


def sizes(problem: Problem, taken: Snapshot) -> Float[Tensor, " size"]:
    """The traces of Phi and G of every layer, over the number of rows, and how fast the readout lowers the loss at first.

    The latter is tr Delta^T Phi Delta of the readout's Phi, with the error signals Delta of outputs that are zero.
    """
    kernels = [kernel for layer in taken.layers for kernel in (layer.forward, layer.backward)]
    rows = [kernel.shape[: kernel.ndim // 2].numel() for kernel in kernels]
    found = [kernel.reshape(n, n).diagonal().mean() for kernel, n in zip(kernels, rows, strict=True)]
    trained = problem.kept < problem.train_samples
    if bool(trained.any()):
        error = problem.error_on(torch.zeros_like(taken.outputs[trained]), problem.kept[trained])
        phi = taken.layers[-1].forward[trained][:, trained]
        found.append((error * (phi.to(error) @ error)).sum())
    return torch.stack([one.double().cpu() for one in found])


@dataclass(frozen=True, eq=False)
class Start:
    """What is known of the start of a run.

    Attributes:
        own: x.
        gap: x - X, if further starts were looked at.
    """

    own: Float[Tensor, " size"]
    gap: Float[Tensor, " size"] | None = None


@dataclass(frozen=True, eq=False)
class Slopes:
    """b, told from runs.

    Attributes:
        units: turns x into numbers z whose slopes are known, ``(size, k)``.
        slopes: of everything in a run by each z.
        needed: how many corrected runs say as much as the runs that slopes were told from: of outputs, and of the kernel that
            is worst known.
    """

    units: Float[Tensor, "size k"]
    slopes: tuple[Trajectory, ...]
    needed: int

    def corrected(self, run: Trajectory, gap: Float[Tensor, " size"]) -> Trajectory:
        """A run with x - X, corrected: y'."""
        weights = [1.0, *(-(gap @ self.units)).tolist()]
        return _weighted([run, *self.slopes], weights)

    def judged(self, corrected: Sequence[Trajectory], starts: Sequence[Start], *, instead: int) -> Slopes:
        """The same, with fewer runs needed of the next width if corrected ones of another width say so.

        Fields are the more linear in their starts the wider networks are.

        Args:
            corrected: runs of the width.
            starts: of every run.
            instead: how many runs corrected ones are to be as good as.
        """
        gaps = torch.stack([start.gap for start in starts if start.gap is not None]) @ self.units
        before: list[float] = []
        after: list[float] = []
        for of in _observables(corrected[0]):
            fixed, slopes = (torch.stack([of(run) for run in runs]) for runs in (corrected, self.slopes))
            raw = fixed + torch.tensordot(gaps.to(slopes), slopes, dims=1)
            scale = raw.mean(0).double().square().sum().clamp(min=_NOTHING)
            for found, values in ((before, raw), (after, fixed)):
                found.append(float(values.double().var(0).sum() / scale))
        left = max(after[0] / max(before[0], _NOTHING), max(after[1:]) / max(*before[1:], _NOTHING))
        return replace(self, needed=min(self.needed, max(LEAST, math.ceil(left * instead))))


def slopes_of(runs: Sequence[Trajectory], starts: Sequence[Start], *, more: int) -> Slopes | None:
    """Tell slopes from runs; None where starts tell too little.

    Of more sizes than a fourth of the number of runs only the leading principal components are taken.

    As many are taken as leave least.

    Args:
        runs: of one width, at least ``LEAST`` / ``WORTH``.
        starts: of every run.
        more: m.
    """
    x, n = torch.stack([start.own for start in starts]), len(runs)
    spread, mean = x.std(0), x.mean(0)
    varies = spread > _VARIES * mean.abs()
    scale = torch.where(varies, 1 / spread.clamp(min=_NOTHING), 0.0)
    _, singular, components = torch.linalg.svd((x - mean) * scale, full_matrices=False)
    most = min(n // _RUNS, int((singular > _VARIES * singular[0]).sum()))
    if not most:
        return None
    z = (x - mean) @ (scale[:, None] * components[:most].T)
    left = _left(runs, torch.linalg.qr(z).Q, more)
    if min(left) > WORTH:
        return None
    k = 1 + left.index(min(left))
    told = tuple(_weighted(runs, one.tolist()) for one in torch.linalg.pinv(z[:, :k]))
    return Slopes(scale[:, None] * components[:k].T, told, max(LEAST, math.ceil(n * min(left))))


def _left(runs: Sequence[Trajectory], along: Float[Tensor, "count most"], more: int) -> list[float]:
    """The share of variance that corrections along the first 1, 2, ... columns leave: of outputs or of the worst kernel."""
    n, most = along.shape
    totals, lefts = [], []
    for of in _observables(runs[0]):
        values = torch.stack([of(run) for run in runs]).flatten(1)
        off, scale = values - values.mean(0), values.mean(0).double().square().sum().clamp(min=_NOTHING)
        spread = (off @ off.T).double().cpu() / scale.cpu()
        total = spread.diagonal().sum()
        k = torch.arange(1, most + 1, device="cpu")
        beside = (total - (along * (spread @ along)).sum(0).cumsum(0)).clamp(min=0) / (n - 1 - k)
        totals.append(float(total) / (n - 1))
        # Slopes that are told from n runs are off by what they leave in these.
        lefts.append(beside * (1 + k / (n - k - 2)) + (totals[-1] - beside).clamp(min=0) / (1 + more))
    outputs, kernels = lefts[0] / max(totals[0], _NOTHING), torch.stack(lefts[1:]).amax(0) / max(*totals[1:], _NOTHING)
    return torch.maximum(outputs, kernels).tolist()


def _observables(like: Trajectory) -> Iterator[Callable[[Trajectory], Tensor]]:
    """What a run has: its outputs, and all its kernels."""
    yield lambda run: run.outputs
    for number, kernel in enumerate(_kernels(like)):
        if kernel is not None:
            yield partial(_array, number=number)


def _kernels(run: Trajectory) -> list[Kernel | None]:
    return [run.ntk, *(kernel for layer in run.layers for kernel in (layer.forward, layer.backward, layer.ntk))]


def _array(run: Trajectory, number: int) -> Tensor:
    kernel = _kernels(run)[number]
    assert kernel is not None  # all runs have what one has
    return kernel.array


def _weighted(runs: Sequence[Trajectory], weights: Sequence[float]) -> Trajectory:
    """The sum of runs with these weights."""

    def total(values: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(values))
        return torch.tensordot(torch.tensor(weights, dtype=stacked.dtype, device=stacked.device), stacked, dims=1)

    return combine(runs, total, weights=weights)
