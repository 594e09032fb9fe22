r"""Consistency: whether a measured network deviates from its prediction no more than its own width explains.

The prediction brings R networks of width N. If the measured network is one more of them, all R + 1 are exchangeable, and
the rank of its deviation among theirs is uniform, however the entries of a kernel and its times are correlated. Every
kernel is seen twice: as it starts, K(0), and in what it learned, K(t) - K(0) at all later times. Flattened and divided by
the standard deviations over networks, it is a vector x_i per network, whose deviation is the regularised Mahalanobis
distance from the others,

.. math:: D_i^2 = (x_i - \bar x_{-i})^T (\Sigma_{-i} + \rho)^{-1} (x_i - \bar x_{-i})

with rho the mean variance over the directions that the networks span. A network's score in a kernel is

    z_i = (log D_i - mean of log D_j) / (standard deviation of log D_j),    over the others j.

What is wrong in one weight is seen in all kernels behind it. So every weight has a score of its own, of what it makes of
what comes in: the part of Phi^{l+1} that Phi^l does not explain, beside the part of G^l that G^{l+1} does not (what was
learned is explained by the kernel's start, too). These are the residuals of ridge regressions over networks, each network
left out of its own.

The largest of all scores is ranked among the largest of the others. So a network of width N is called inconsistent
in 5 of 100 cases, at any number of kernels, samples and steps. Nothing is assumed of distributions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.arguments import typed
from torch_dmft.core.listed import weight_label
from torch_dmft.core.trajectory import Trajectory

LEVEL = 0.05
"""The part of networks of the right width that are called inconsistent."""
_CERTAIN = 6.0
"""z-score at the start that no network of the right width has."""
_ROUND_OFF = 1e-5
"""Relative to a kernel's size: entries that vary less over networks are given by the data (float32 round-off)."""

Key = tuple[str, int]


@typed
@dataclass(frozen=True)
class Score:
    """How far a network deviates in one kernel.

    Attributes:
        ratio: D / (root of the mean D^2 of the replicas): 1 for a typical network of width N.
        z: the same on the replicas' own scale: of mean 0 and variance 1 for networks of width N.
    """

    ratio: float
    z: float


@typed
@dataclass(frozen=True)
class LayerScores:
    """The scores of one weight.

    Attributes:
        name: module path.
        forward: of Phi^l, None if it is given by the data.
        backward: of G^{l+1}, None if it is given by the outputs.
        weight: of what this weight makes of its inputs and gradients.
    """

    name: str
    forward: Score | None
    backward: Score | None
    weight: Score | None


@typed
@dataclass(frozen=True)
class Scores:
    """The scores of a measured network's kernels at the start, or of what they learned.

    Attributes:
        layers: one entry per weight.
        ntk: of the whole NTK.
        outputs: over all rows.
        p: the part of networks of width N whose largest score here is at least this network's.
    """

    layers: tuple[LayerScores, ...]
    ntk: Score | None
    outputs: Score | None
    p: float

    def named(self) -> dict[str, Score]:
        """The scores there are, each with a name such as ``"G of weight 1 (fc2)"``."""
        scores: dict[str, Score | None] = {}
        for position, layer in enumerate(self.layers):
            scores[f"Phi of {weight_label(position, layer.name)}"] = layer.forward
            scores[f"G of {weight_label(position, layer.name)}"] = layer.backward
            scores[weight_label(position, layer.name)] = layer.weight
        scores |= {"the NTK": self.ntk, "the outputs": self.outputs}
        return {name: score for name, score in scores.items() if score is not None}

    @property
    def suspect(self) -> str | None:
        """The weight with the largest score of its own: where to look first."""
        scores = {layer.name: layer.weight.z for layer in self.layers if layer.weight is not None}
        return max(scores, key=lambda name: scores[name]) if scores else None


@typed
@dataclass(frozen=True)
class Consistency:
    """Whether a measured network is what its width explains.

    Attributes:
        width: N of the prediction.
        replicas: R.
        p: the part of networks of width N whose largest score, of all there are, is at least this one's.
        start: scores at the first common step.
        learned: scores of what has changed since, None if there is no later step.
        together: of the mean of log D over all kernels; a network too narrow deviates a little in all of them.
    """

    width: int
    replicas: int
    p: float
    start: Scores
    learned: Scores | None
    together: Score

    @property
    def is_decidable(self) -> bool:
        """Whether there are enough replicas to call any network inconsistent."""
        return 1 / (self.replicas + 1) <= LEVEL

    @property
    def consistent(self) -> bool:
        """Whether more than 5 of 100 networks of width N deviate as much."""
        return self.p > LEVEL

    @property
    def starts_wrong(self) -> bool:
        """Whether the deviation is there from the start, which then also makes training go another way.

        A start that one in twenty networks of this width has is no explanation of training that is far off, unless it is off
        further; a start that none of them has is one, however far training takes it.
        """
        start, learned = (
            max((score.z for score in scores.named().values()), default=-math.inf) if scores else -math.inf
            for scores in (self.start, self.learned)
        )
        return self.start.p <= LEVEL and (start >= learned or start > _CERTAIN)

    @property
    def worst(self) -> tuple[str, Score]:
        """The largest score, and of what, such as ``"G of weight 1 (fc2)"``."""
        named = [*self.start.named().items()]
        named += [] if self.learned is None else [(f"what {k} learned", v) for k, v in self.learned.named().items()]
        return max([*named, ("all kernels together", self.together)], key=lambda item: item[1].z)


def consistency(measured: Trajectory, predicted: Trajectory) -> Consistency | None:
    """Judge a measured network by the networks that a prediction for a finite width is the mean of.

    Args:
        measured: one network.
        predicted: a ``FiniteWidth`` answer at the same steps.

    Returns:
        The scores, or None if the prediction has no replicas, or networks do not differ at all.
    """
    if not predicted.replicas or predicted.width is None:
        return None
    rows = _rows([measured, *predicted.replicas])
    starts = {key: _standardised(values[:, 0]) for key, values in rows.items()}
    changes = {key: _standardised(values[:, 1:] - values[:, :1]) for key, values in rows.items()}
    weights = range(len(measured.layers))
    starts |= {("weight", position): _made(starts, position) for position in weights}
    changes |= {("weight", position): _made(changes, position, starts) for position in weights}
    start, learned = ({key: _log_distances(x) for key, x in table.items()} for table in (starts, changes))
    known = [logs for logs in (*start.values(), *learned.values()) if logs is not None]
    if not known:
        return None
    together = torch.stack(known).mean(0)
    return Consistency(
        width=predicted.width,
        replicas=len(predicted.replicas),
        p=_rank([*known, together]),
        start=_scores(start, measured),
        learned=_scores(learned, measured) if len(measured.steps) > 1 else None,
        together=_score(together),
    )


def _rows(runs: Sequence[Trajectory]) -> dict[Key, Float[Tensor, "network time entry"]]:
    """What is compared, by kind and position."""

    def stacked(arrays: Sequence[Tensor]) -> Tensor:
        return torch.stack([array.detach().to("cpu", torch.float64).flatten(1) for array in arrays])

    table = {}
    for position in range(len(runs[0].layers)):
        table["forward", position] = stacked([run.layers[position].forward.equal_time for run in runs])
        table["backward", position] = stacked([run.layers[position].backward.equal_time for run in runs])
    known = [run.ntk.equal_time for run in runs if run.ntk is not None]
    if len(known) == len(runs):
        table["ntk", 0] = stacked(known)
    table["outputs", 0] = stacked([run.outputs for run in runs])
    return table


def _standardised(values: Float[Tensor, "network ..."]) -> Float[Tensor, "network entry"]:
    """Centered and divided by the standard deviation over networks; without the entries that do not vary."""
    x = values.flatten(1)
    centered = x - x.mean(0)
    scale = centered.square().sum(0).div(len(x) - 1).sqrt()
    varies = scale > _ROUND_OFF * x.square().mean().sqrt()
    return centered[:, varies] / scale[varies]


def _made(
    table: Mapping[Key, Tensor], position: int, starts: Mapping[Key, Tensor] | None = None
) -> Float[Tensor, "network entry"]:
    """What a weight makes of its inputs and of its gradients: Phi^{l+1} without what Phi^l explains, G^l without G^{l+1}."""
    nothing = table["forward", 0][:, :0]

    def unexplained(made: Key, given: Key) -> Tensor:
        known = [table.get(given, nothing), nothing if starts is None else starts.get(made, nothing)]
        return _residuals(table.get(made, nothing), torch.cat(known, dim=1))

    forward = unexplained(("forward", position + 1), ("forward", position))
    backward = unexplained(("backward", position - 1), ("backward", position))
    return torch.cat([forward, backward], dim=1)


def _residuals(
    y: Float[Tensor, "network entry"], given: Float[Tensor, "network known"]
) -> Float[Tensor, "network entry"]:
    """What ridge regression on other entries, fitted to all other networks, leaves of a network's y, standardised."""
    if not y.shape[1] or not given.shape[1]:
        return y
    gram = given @ given.T
    smoother = torch.linalg.solve(gram + gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype), gram)
    return _standardised((y - smoother @ y) / (1 - smoother.diagonal())[:, None])


def _log_distances(x: Float[Tensor, "network entry"]) -> Float[Tensor, " network"] | None:
    """The log D of every network up to a common constant, None if the networks do not differ.

    Leaving network i out is a rank-one change of the scatter matrix A = sum_j x_j x_j^T of standardised vectors, so that with
    h_i = x_i^T (A + rho)^-1 x_i, D_i^2 is h_i / (1 - h_i n / (n - 1)) up to a factor; h comes from the n x n Gram matrix.
    """
    if not x.shape[1]:
        return None
    n = len(x)
    eigenvalues, vectors = torch.linalg.eigh(x @ x.T)
    eigenvalues = eigenvalues.clamp_min(0)
    h = vectors.square() @ (eigenvalues / (eigenvalues + eigenvalues.mean()))
    return (h / (1 - h * n / (n - 1))).log() / 2


def _z_scores(logs: Float[Tensor, " network"]) -> Float[Tensor, " network"]:
    """Every network's log D in units of the others' mean and standard deviation."""
    n = len(logs)
    centered = logs - logs.mean()
    gap = centered * n / (n - 1)  # from the mean of the others
    squares = (centered.square().sum() - centered * gap).clamp_min(0)
    return gap / (squares / (n - 2)).sqrt()


def _rank(kernels: Sequence[Float[Tensor, " network"]]) -> float:
    """The part of networks, the measured one at position 0 among them, whose largest score is at least its."""
    largest = torch.stack([_z_scores(logs) for logs in kernels]).max(0).values
    return float((largest >= largest[0]).double().mean())


def _score(logs: Float[Tensor, " network"]) -> Score:
    typical = logs[1:].mul(2).exp().mean().sqrt()
    return Score(math.exp(logs[0].item()) / typical.item(), _z_scores(logs)[0].item())


def _scores(table: Mapping[Key, Tensor | None], measured: Trajectory) -> Scores:
    def score(kind: str, position: int = 0) -> Score | None:
        logs = table.get((kind, position))
        return None if logs is None else _score(logs)

    known = [logs for logs in table.values() if logs is not None]
    return Scores(
        layers=tuple(
            LayerScores(layer.name, *(score(kind, position) for kind in ("forward", "backward", "weight")))
            for position, layer in enumerate(measured.layers)
        ),
        ntk=score("ntk"),
        outputs=score("outputs"),
        p=_rank(known) if known else 1.0,
    )
