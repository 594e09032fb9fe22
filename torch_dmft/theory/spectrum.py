"""The singular values of a hidden weight at infinite width: the bulk that it starts with, and what training lifts out of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torch_dmft.core.arguments import checked, typed
from torch_dmft.core.errors import InvalidInputError, NotRecordedError, UnsupportedProblemError
from torch_dmft.core.numbers import require_whole
from torch_dmft.core.own_arithmetic import own_arithmetic
from torch_dmft.measurement import Recorder, Snapshot
from torch_dmft.parameterization import Plan
from torch_dmft.theory.engine.lazy_layer import LazyLayer
from torch_dmft.theory.engine.outliers import Outliers, beyond_chance, outliers
from torch_dmft.theory.engine.posed import is_closed, rotated, twin_of
from torch_dmft.theory.engine.training import own_view, probe_of, train
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.replicas import replica_generators
from torch_dmft.theory.solvers.infinite_width import InfiniteWidth
from torch_dmft.theory.stepping import track

_SHOWN = 8
"""Outliers that a verdict lists."""
_MOST_POINTS = 10**6
"""Of a curve: more than any figure shows."""


@typed
@dataclass(frozen=True, eq=False)
class Spectrum:
    r"""The singular values of one hidden weight during training, at infinite width.

    All but finitely many are those of the Gaussian start, of density

    .. math:: \rho(s) = \frac{\sqrt{(s_+^2 - s^2)(s^2 - s_-^2)}}{\pi \sigma^2 \min(1, c)\, s},
       \qquad s_\pm = \sigma\, |1 \pm \sqrt c|,

    for c outputs per input and entries of variance sigma^2 / n_in (Marchenko & Pastur 1967). The others lie beyond s_+.

    Attributes:
        layer: module path of the weight.
        steps: ``(time,)``.
        edges: s_+ at every time, which weight decay moves.
        ratio: c.
        values: the outliers at every time, decreasing, NaN where there are fewer: ``(time, outlier)``.
        learned: the share u^T (W - a W(0)) v / s of each that training added, u and v its singular vectors and a what decay
            left of the start; the start's own part is the rest: ``(time, outlier)``.
        stderr: standard error of ``values`` over replicas; None for one replica.
    """

    layer: str
    steps: Int[Tensor, " time"]
    edges: Float[Tensor, " time"]
    ratio: float
    values: Float[Tensor, "time outlier"]
    learned: Float[Tensor, "time outlier"]
    stderr: Float[Tensor, "time outlier"] | None = None

    @property
    def counts(self) -> Int[Tensor, " time"]:
        """The number of outliers at every time."""
        return self.values.isfinite().sum(1)

    def at(self, step: int) -> int:
        """The index of a step.

        Raises:
            NotRecordedError: if the step was not asked for.
        """
        found = (self.steps == step).nonzero().flatten()
        if not len(found):
            steps = ", ".join(map(str, self.steps.tolist()[:8]))
            raise NotRecordedError(
                "The spectrum is not known at this step.",
                got=f"step {step}",
                remedy=f"one of {steps}, or steps=[{step}]",
            )
        return int(found[0])

    def bulk(
        self, step: int | None = None, points: int = 800
    ) -> tuple[Float[Tensor, " point"], Float[Tensor, " point"]]:
        """Equally spaced singular values 0 < s <= s_+, and the density rho there, at the last step or another.

        Args:
            step: when; None for the last step.
            points: how many.

        Raises:
            NotRecordedError: if the step was not asked for.
        """
        require_whole("points", points, at_least=2, at_most=_MOST_POINTS)
        top = float(self.edges[-1 if step is None else self.at(step)])
        sigma = top / (1 + math.sqrt(self.ratio))
        bottom = sigma * abs(1 - math.sqrt(self.ratio))
        s = torch.linspace(top / points, top, points, dtype=torch.float64, device="cpu")
        inside = ((top**2 - s**2) * (s**2 - bottom**2)).clamp_min(0)
        return s, torch.where(s > bottom, inside.sqrt() / (math.pi * sigma**2 * min(1.0, self.ratio) * s), 0.0)

    def beside(self, weights: Tensor | Sequence[Tensor], step: int | None = None) -> BesideNetworks:
        """The singular values of the same weight in networks beside the theory's; ``print`` it.

        Args:
            weights: the weight ``(out, in)`` of a network, or of several networks of one width; of a convolution
                ``(out, in, *taps)``.
            step: when; None for the last step.

        Raises:
            InvalidInputError: if they are no matrices of one shape, or have another ratio of outputs to inputs.
            NotRecordedError: if the step was not asked for.
        """
        given = [weights] if isinstance(weights, Tensor) else list(weights)
        shapes = sorted({tuple(weight.shape) for weight in given})
        flat = [weight.detach().double().flatten(1) for weight in given if weight.ndim >= 2]
        if len(shapes) != 1 or not flat or not all(bool(weight.isfinite().all()) for weight in flat):
            raise InvalidInputError(
                "Expected finite weights of one shape, (out, in).", got=f"shapes {shapes}", remedy="model.layer.weight"
            )
        ratio = flat[0].shape[0] / flat[0].shape[1]
        if not math.isclose(ratio, self.ratio, rel_tol=0.05):
            raise InvalidInputError(
                f"The weight of {self.layer!r} has {self.ratio:.3g} outputs per input.",
                got=f"a weight of shape {shapes[0]}",
                remedy="the weight of this layer of a network with widths in the same proportions",
            )
        index = len(self.steps) - 1 if step is None else self.at(step)
        return BesideNetworks(
            self, index, torch.stack([torch.linalg.svdvals(weight).cpu() for weight in flat]), flat[0].shape
        )


@typed
@dataclass(frozen=True, eq=False)
class BesideNetworks:
    """Singular values of networks beside those of the infinite one.

    Attributes:
        theory: the infinite network's.
        index: which of its times.
        values: all singular values of each network, decreasing: ``(network, value)``.
        shape: ``(outputs, inputs)`` of the networks' weight.
    """

    theory: Spectrum
    index: int
    values: Float[Tensor, "network value"]
    shape: Sequence[int]

    @property
    def threshold(self) -> float:
        """What the largest singular value of an untrained network of this width stays below in 99 of 100 draws."""
        return beyond_chance(float(self.theory.edges[self.index]), *self.shape)

    @property
    def counts(self) -> Int[Tensor, " network"]:
        """The number of outliers of each network."""
        return (self.values > self.threshold).sum(1)

    def __str__(self) -> str:
        """The verdict, and the largest outliers of either."""
        theory, index = self.theory, self.index
        counts, mine = self.counts.tolist(), int(theory.counts[index])
        seen = " to ".join(map(str, sorted({min(counts), max(counts)})))
        noun = "outlier" if seen == "1" else "outliers"
        most = max(mine, *counts)
        lines = [
            f"Weight {theory.layer!r} at step {int(theory.steps[index])}: {seen} {noun}, theory {mine}. "
            f"The bulk ends at {float(theory.edges[index]):.4g} ({self.threshold:.4g} at width {min(self.shape)}).",
            *(self._line(k) for k in range(min(most, _SHOWN))),
        ]
        return "\n".join([*lines, f"  and {most - _SHOWN} more"] if most > _SHOWN else lines)

    def _line(self, k: int) -> str:
        """The k-th largest value of both."""
        theory, index, networks = self.theory, self.index, self.values[:, k]
        error = networks.std() / math.sqrt(len(networks)) if len(networks) > 1 else networks.new_tensor(torch.nan)
        text = f"  {k + 1}. network {_number(networks.mean(), error)}, theory "
        if k >= int(theory.counts[index]):
            return text + "in the bulk"
        error = torch.full_like(error, torch.nan) if theory.stderr is None else theory.stderr[index, k]
        return text + f"{_number(theory.values[index, k], error)}, {float(theory.learned[index, k]):.0%} of it learned"


def _number(value: Tensor, error: Tensor) -> str:
    """A number with its standard error, if that is known."""
    return f"{float(value):.4g}" + (f" +- {float(error):.2g}" if bool(error.isfinite()) else "")


@checked
@own_arithmetic()
def spectrum(
    problem: Problem,
    layer: str,
    steps: Iterable[int] | int | Tensor | None = None,
    *,
    solver: InfiniteWidth | None = None,
    progress: bool = False,
) -> Spectrum:
    """The singular values of a hidden weight of the infinitely wide network during training.

    The weight is W(t) = a(t) W(0) + what was learned, of finite rank but not independent of W(0). Its infinite-width twin knows
    it along everything that the passes of training met, and elsewhere it is Gaussian; the values beyond the bulk follow
    from that as the zeros of one small determinant (``torch_dmft.theory.engine.outliers``). Errors fall like
    1/sqrt(neurons replicas). A value that has only just left the bulk, within what a Gaussian matrix of as many neurons
    reaches by chance, is not told from it: ``edges`` times 1 + O(neurons^(-2/3)).

    Networks of width N have the same outliers up to fluctuations of order 1/sqrt(N), at any N.

    Args:
        problem: what is trained on.
        layer: module path of a hidden weight, as in ``Trajectory.layers``.
        steps: when, as ``record`` in ``solve``; None for the start and the end.
        solver: neurons, replicas, tolerance and generator; None for ``solvers.InfiniteWidth()``. Strides are not taken.
        progress: show progress bars.

    Raises:
        InvalidInputError: if there is no such hidden weight.
        UnsupportedProblemError: if the problem has no infinite-width twin, or Adam trains hidden weights.
        ConvergenceError: if training diverges.
    """
    solver = solver or InfiniteWidth()
    solver.check(problem)
    if not is_closed(problem):
        raise UnsupportedProblemError(
            "Weight spectra need hidden weights trained with SGD or Muon: what Adam adds has as many directions as neurons.",
            got=f"optimizer {problem.training.optimizers}",
            remedy="SGD or Muon of hidden weights; singular values of networks are torch.linalg.svdvals(weight)",
        )
    wanted = problem.recorded((0, problem.steps) if steps is None else steps)
    posed = rotated(problem)
    found: list[list[Outliers]] = []
    sizes = (1, 1)
    for replica, own in enumerate(replica_generators(solver.generator, solver.replicas)):
        plan = twin_of(
            posed, solver.neurons, tolerance=solver.tolerance_for(problem), generator=own, law="limit", responses=True
        )
        weight = _hidden(problem, plan, layer)
        sizes = (weight.sizes[0], weight.sizes[1] * weight.matrix.copies)
        mine: list[Outliers] = []
        recorder = Recorder(plan, probe_of(posed), schedule=wanted.tolist(), outputs=posed.selection)
        bar = track(
            range(problem.steps + 1), f"spectrum: replica {replica + 1} of {solver.replicas}", progress=progress
        )
        train(
            posed,
            plan,
            own_view(posed, recorder),
            bar,
            last=int(wanted[-1]),
            kept=wanted.tolist(),
            keep=_keeper(weight, mine),
        )
        found.append(mine)
    return _joined(layer, wanted, sizes[0] / sizes[1], found)


def _hidden(problem: Problem, twin: Plan, layer: str) -> LazyLayer:
    """The infinite layer of a twin that stands for a weight of the problem."""
    modules = [twin.model.get_submodule(one.path) for one in twin.architecture.layers]
    named = dict(zip(problem.network.paths, modules, strict=True))
    hidden = {path: module for path, module in named.items() if isinstance(module, LazyLayer)}
    if not hidden:
        raise UnsupportedProblemError(
            "Only a weight between two wide layers has a spectrum with a bulk.",
            got="a network of one hidden layer",
            remedy="a network of two hidden layers or more",
        )
    if layer not in hidden:
        raise InvalidInputError(
            "Only hidden weights have a spectrum with a bulk.",
            got=f"{layer!r}",
            remedy=f"one of {', '.join(map(repr, hidden))}",
        )
    return hidden[layer]


def _keeper(weight: LazyLayer, kept: list[Outliers]) -> Callable[[int, Snapshot], None]:
    """What keeps the outliers of a weight at a step."""
    return lambda step, taken: kept.append(outliers(weight))


def _joined(layer: str, steps: Tensor, ratio: float, found: Sequence[Sequence[Outliers]]) -> Spectrum:
    """The mean over replicas: of the outliers that at least half of them have, a missing one at the edge."""
    most = max(len(one.values) for mine in found for one in mine)
    edges = torch.tensor([one.edge for one in found[0]], dtype=torch.float64, device="cpu")
    values = torch.stack([torch.stack([_padded(one.values, most, one.edge) for one in mine]) for mine in found])
    learned = torch.stack([torch.stack([_padded(one.learned, most, 0.0) for one in mine]) for mine in found])
    seen = torch.stack(
        [torch.stack([torch.arange(most, device="cpu") < len(one.values) for one in mine]) for mine in found]
    )
    often = 2 * seen.sum(0) >= len(found)
    most = int(often.any(0).sum())

    def known(means: Tensor) -> Tensor:
        return torch.where(often, means, torch.nan)[:, :most]

    shares = (learned * seen).sum(0) / seen.sum(0)
    stderr = known(values.var(0).sqrt() / math.sqrt(len(found))) if len(found) > 1 else None
    return Spectrum(layer, steps, edges, ratio, known(values.mean(0)), known(shares), stderr)


def _padded(values: Tensor, count: int, missing: float) -> Tensor:
    """The first ``count`` values, with another number where there are fewer."""
    return torch.cat([values, values.new_full((count - len(values),), missing)])
