r"""How many directions a twin will meet, told from the data before it is trained.

Features and gradients move along curves while errors :math:`\Delta` last. In the lazy limit those decay mode by mode of the
tangent kernel, and in one step the fields turn by about

.. math:: v(t) = \gamma_0 \eta \frac{L^2}{4}
          \sqrt{\frac{\mathrm{tr}[\Phi (G \circ \Delta \Delta^T) \Phi]}{\mathrm{tr}\, \Phi}},
          \qquad \Delta(t) = \sum_i u_i e^{-\eta \lambda_i h t} (u_i \cdot \Delta(0)),

with h the curvature of the loss. A step brings a new direction if it turns by more than an angle that grows with the tolerance,
and else a share of one: v / angle of smooth curves, whose directions grow like the logarithm of that number, and its root at
kinks, through which a gradient leaves its basis by the root of the angle. What stands in front of these laws was measured in
some thirty trainings (``python -m benchmarks costs`` compares).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast
from weakref import ref

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from torch_dmft.core.errors import DMFTError
from torch_dmft.theory.chains.initial_kernels import ChainKernels, InitialKernels
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.tolerance import balanced_tolerance

_ROWS = 48
"""Rows of the data, evenly taken, whose kernels are looked at."""
_TERMS = 256
"""Hermite terms of those kernels at most: few rows have broad fields."""
_ANGLE, _ANGLE_OF_KINKS = 60.0, 0.35
"""The angle at which a step brings one direction, in units of the squared tolerance, and, through a kink, of the tolerance."""
_EDGE, _EDGE_OF_KINKS = 2.0, 1.3
"""Rate times curvature beyond which training is not lazy at all: fields turn in every step, until kernels have shrunk. Without
saturation curvature grows while features are learned, about 1 + gamma0 L (L - 1) / 2 times, and oscillations begin earlier."""
_TIMES = 24
"""Steps, spaced by their logarithm, at which the angle is computed."""


@dataclass(frozen=True)
class PerRow:
    """Directions per row of the data: of features, and of gradients per output."""

    features: float
    gradients: float


def directions_per_row(problem: Problem, draws: int, *, smooth: bool, whole: bool = False) -> PerRow:
    """Estimate how many directions a twin's bases will hold at the end, per row.

    Args:
        problem: the problem.
        draws: neurons times replicas, by which the default tolerance goes.
        smooth: whether no activation has a kink.
        whole: whether hidden weights are kept entry by entry, as for Adam, whose steps do not shrink with the gradient either.
    """
    states, outputs, gamma0 = float(problem.steps + 1), problem.outputs, problem.gamma0
    if "muon" in problem.training.traits:  # whose steps do not shrink with the gradient
        return PerRow(min(states, 3 * math.log1p(states) + 1), min(states, 10 * math.log1p(states)))
    plan = problem.network.plan
    if plan is not None and plan.architecture.train_differs:  # new masks in every step
        return PerRow(states, states)
    if whole:
        per = min(states, max(1.0, 2.6 * math.log(states) - 1.5))
        return PerRow(per, per if smooth else states)
    turning, crowded = _turning_steps(problem, draws, smooth=smooth)
    batches, momentum = problem.batches is not None, "momentum" in problem.training.traits
    if smooth:
        moved = 1.0 if problem.chain is None else max(0.8, 0.5 + 0.5 * gamma0**0.8)
        per = max(1.0, 2 * math.log1p(turning)) * moved * crowded * (1.15 if batches else 1.0)
        per *= 1.7 if batches and momentum else 1.0
        return PerRow(min(states, per * outputs**0.4), min(states, per * outputs**0.1))
    if turning == problem.steps:  # every step turns fields as far as directions tell, features like gradients
        return PerRow(states, min(states, max(1.0, turning) * outputs**-0.75))
    features = min(14.0, 3 * math.log1p(turning)) * crowded * outputs**0.45
    per = max(1.0, turning) * (0.75 if batches else 1.0) * (0.75 if batches and momentum else 1.0)
    return PerRow(min(states, features), min(states, per * outputs**-0.75))


def _turning_steps(problem: Problem, draws: int, *, smooth: bool) -> tuple[float, float]:
    """The number of steps that turn the fields noticeably, and by how much rows that lie close together need more directions.

    All steps of networks whose lazy limit is not known.
    """
    steps = problem.steps
    if problem.chain is None or not steps:
        return float(steps), 1.0
    chain, total = problem.chain, problem.train_samples
    lazy = _lazy(problem)
    if lazy is None:
        return float(steps), 1.0
    kernels, rates, modes, start, curvature = lazy
    share = total / len(start)
    seen = 1.0 if problem.batches is None else sum(map(len, problem.batches)) / len(problem.batches) / total
    lr = problem.training.at("lr", 0) / max(1e-3, 1 - problem.training.at("momentum", 0))
    decay = (lr * curvature * share * rates).clamp(min=0, max=1) * seen
    inputs = kernels.forward[0]
    dimensions = float(inputs.diagonal().sum() ** 2 / inputs.square().sum())
    crowded = max(1.0, len(start) / dimensions / 1.7) ** 0.8
    grown = 1.0 if smooth else 1 + problem.gamma0 * chain.depth * (chain.depth - 1) / 2
    if seen == 1.0 and grown * lr * curvature * share * float(rates[-1]) > (_EDGE if smooth else _EDGE_OF_KINKS):
        return float(steps), 2 * crowded
    along, phi, g = modes.T @ start, kernels.forward[-2], kernels.backward[-1]
    tolerance = balanced_tolerance(problem, draws)
    angle = (_ANGLE * tolerance**2 if smooth else _ANGLE_OF_KINKS * tolerance) / (chain.depth / 2) ** 2
    times = torch.logspace(0, math.log10(steps + 1), _TIMES, dtype=torch.float64, device="cpu") - 1
    turned = []
    for time in times.tolist():
        error = modes @ ((-decay * grown * time).exp()[:, None] * along)
        square = torch.einsum("ma,ab,mb->", phi, g * (error @ error.T), phi) * share
        v = problem.gamma0 * lr * seen * grown * float((square.clamp(min=0) / phi.diagonal().sum()).sqrt())
        turned.append((v / (v + angle)) ** (1.0 if smooth else 0.5))
    turning = float(torch.trapezoid(torch.tensor(turned, dtype=times.dtype, device="cpu"), times))
    return turning, crowded


_Lazy = tuple[ChainKernels, Tensor, Tensor, Tensor, float]
_known = WeakIdKeyDictionary()
"""Of trainings, by identity: the networks and inputs that they were of, and what ``_lazy`` found. What fits is asked often."""


def _lazy(problem: Problem) -> _Lazy | None:
    """Kernels of some rows, eigenvalues and eigenvectors of the tangent kernel, errors at the start, curvature of the loss.

    None for kernels or losses of some other kind.
    """
    assert problem.chain is not None  # asked before
    network, inputs = problem.network, problem.inputs
    for its_network, its_inputs, found in _known.get(problem.training, []):
        if its_network() is network and its_inputs() is inputs:
            return cast("_Lazy | None", found)
    rows = torch.linspace(0, problem.train_samples - 1, min(problem.train_samples, _ROWS), device=problem.device)
    rows = rows.round().long().unique()
    flat = problem.tensor[rows].flatten(1).double()
    answer: _Lazy | None = None
    try:
        start, curvature = _error_at_start(problem, rows)
        kernels = InitialKernels(problem.chain, flat @ flat.T / flat.shape[1], order=_TERMS).at()
        answer = (kernels, *torch.linalg.eigh(kernels.ntk), start, curvature)
    except (DMFTError, RuntimeError):
        pass
    _known.setdefault(problem.training, []).append((ref(network), ref(inputs), answer))
    return answer


def _error_at_start(problem: Problem, rows: Tensor) -> tuple[Tensor, float]:
    """The error signals of some rows while outputs are zero, and by how much a unit of output changes one's own."""
    some = replace(problem.training, batches=None) if problem.batches is not None else problem.training
    whole = replace(problem, training=some)
    zero = whole.zeros(whole.samples)
    start = whole.error(zero, 0)
    small = 1e-2 * torch.linspace(0.5, 1.5, zero.numel(), device=zero.device).reshape(zero.shape).to(zero)
    change = start - whole.error(zero + small, 0)
    train = slice(0, whole.train_samples)
    return start[rows].double(), float(change[train].norm() / small[train].norm())
