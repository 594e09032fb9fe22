"""Leading-order feature learning: kernels and outputs to second order in gamma0, in discrete time.

Odd orders vanish [paper, section 5.2]: Phi = Phi0 + gamma0^2 Phi2, and likewise G and f. Order zero is lazy training. At
order two each layer adds what its own fields do (``expanded_site``) to what it inherits: u^l and r^l are Gaussian with
covariances that other layers have moved by dq = g^2 Phi2^{l-1} and g^2 (N_{l+1} / N_l) <k k>2^{l+1}. A Gaussian average
of F then moves by sum_ij <d_i d_j F> dq_ij / 2, for instance

    Phi2_mn(t, s) = own + <phi'_m phi'_n> dq_mn(t, s) + <phi''_m phi_n> dq_mm(t, t) / 2 + <phi_m phi''_n> dq_nn(s, s) / 2.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_dmft.core.activation import activation
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError
from torch_dmft.core.numbers import require_whole
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.chain import Chain
from torch_dmft.theory.chains.assembly import about_the_probe, assemble, require_chain
from torch_dmft.theory.chains.expanded_site import Drive, ExpandedSite, PairAverages, SecondMoments, sample
from torch_dmft.theory.chains.initial_kernels import ChainKernels
from torch_dmft.theory.chains.uniform_start import (
    kernels_of,
    require_gaussian_fields,
    require_gaussian_readout,
    uniform_biases,
)
from torch_dmft.theory.checks import require_generator
from torch_dmft.theory.cost import Cost, deterministic_cost
from torch_dmft.theory.held import FIRST_USE
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.replicas import average
from torch_dmft.theory.solver import method, require_training
from torch_dmft.theory.stepping import error_signal, require_finite, track


@method
@dataclass(frozen=True)
class Perturbation:
    """Perturbation theory in gamma0 to second order (paper, section 5.2): Phi = Phi0 + gamma0^2 Phi2, and G, f likewise.

    For deep linear networks with small steps this is eq. 12 with the prefactor L (L + 1)^2 (L + 2) / 12 in place of
    L (L + 1) / 2: the printed one holds for L = 1 and leaves out, for L > 1, that h^l is driven by the NTK of all layers
    below and z^l by that of all layers above, which the responses A and B carry.

    Covers dense chains with smooth activations, gradient descent at any rates, any loss, minibatches, several outputs, gains,
    biases and unequal widths. Order zero is exact. Order two needs averages over four jointly Gaussian fields; these are
    sampled with exact first two moments, hence exact for linear networks, else to a few gamma0^2 / sqrt(neurons
    replicas), which the standard error tells. NTKs are products of the expanded kernels. Computes in float64.

    With n rows the cost is O(L S T n^2) per replica, for S neurons, and O(L T n^2 + L S n) memory; with ``two_time``,
    O(L S T^2 n^2). (Without sampling, averages over four fields take O(P^4 T), Table 1.) Leaves out order gamma0^4. Refuses
    activations with kinks, networks other than dense chains, uniform input and readout weights, momentum, weight decay,
    Langevin noise and Adam.

    Attributes:
        neurons: S, draws per layer and replica.
        replicas: independent repetitions; their mean is the answer and their spread the standard error.
        generator: source of randomness; None for a fresh one with seed 0.
    """

    neurons: int = 8192
    replicas: int = 4
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        require_whole("neurons", self.neurons, at_least=1)
        require_whole("replicas", self.replicas, at_least=1)
        require_generator(self.generator)

    def check(self, problem: Problem) -> None:
        """Refuse networks and updates without this expansion.

        Raises:
            UnsupportedProblemError: naming everything that is in the way.
            InvalidInputError: if there are too few neurons to match the moments of the fields.
        """
        chain = require_chain(problem, "Perturbation")
        require_training(problem, "Perturbation", frozenset({"schedule", "batches", "uniform starts"}))
        require_gaussian_fields(problem, "Perturbation")
        require_gaussian_readout(problem, "Perturbation")
        kinked = sorted({layer.activation for layer in chain.hidden if not activation(layer.activation).smooth})
        if kinked:
            raise UnsupportedProblemError(
                "Perturbation needs activations with two derivatives.",
                got=", ".join(kinked),
                remedy="solvers.InfiniteWidth()",
            )
        needed = 4 * problem.samples * (1 + problem.outputs)
        if self.neurons < needed:
            raise InvalidInputError(
                "`neurons` must be at least the number of directions of the fields.",
                got=f"neurons={self.neurons}",
                remedy=f"at least {needed} neurons",
            )

    def estimate(
        self, problem: Problem, record: Iterable[int] | int | Tensor | None = None, *, two_time: bool | float = False
    ) -> Cost:
        """What solving the problem will cost: products of sampled fields, and some thousand operations on each of them."""
        chain, rows, states = (
            require_chain(problem, "Perturbation"),
            problem.samples * problem.outputs,
            problem.steps + 1,
        )
        recorded = problem.number_recorded(record)
        pairs = recorded * rows if two_time else rows
        return deterministic_cost(
            problem,
            recorded,
            two_time=two_time,
            first_use=FIRST_USE + 32 * 2**20,
            work=self.replicas * chain.depth * self.neurons * states * rows * (8.0 * pairs + 2000),
            calls=200 * self.replicas * chain.depth,
            numbers=chain.depth
            * (6.0 * rows * (states * rows + recorded * pairs) + self.neurons * (problem.samples + rows)),
            copies=self.replicas + 3,
            error=None,
        )

    def run(self, problem: Problem, record: Tensor, *, two_time: bool | float, progress: bool) -> Trajectory:
        """Solve order zero exactly, then order two by sampling; see ``Solver.run``."""
        chain = require_chain(problem, "Perturbation")
        lazy = kernels_of(problem, chain).at()
        last = int(record[-1])
        outputs, drive = _lazy_training(problem, lazy.ntk, last)
        sites = _sites(chain, lazy, uniform_biases(problem))
        generator = self.generator or torch.Generator(device=problem.device).manual_seed(0)
        runs = []
        for _ in track(range(self.replicas), "perturbation theory", progress=progress):
            moments = [sample(site, drive, self.neurons, generator, record, two_time=two_time) for site in sites]
            features = _features(chain, sites, moments, record)
            gradients = _gradients(chain, sites, moments, features, record)
            moved = outputs + problem.gamma0**2 * _outputs(problem, lazy, sites, outputs, drive, features, gradients)
            recorded = [x.recorded for x in features], [x.recorded for x in gradients]
            runs.append(_trajectory(problem, lazy, record, moved, *recorded))
        facts = {"neurons": self.neurons, "replicas": self.replicas}
        origin = "perturbation theory (N=inf)"
        mean = average(runs, origin=origin, metadata=facts, loss=problem.training_loss, follows_ntk=False)
        return about_the_probe(problem, mean)


def _lazy_training(problem: Problem, ntk: Tensor, last: int) -> tuple[Tensor, Drive]:
    """f0 at the states 0..last, and what drives the fields."""
    f, outputs, steps = ntk.new_zeros(problem.samples, problem.outputs), [], []
    for step in range(last):
        outputs.append(f)
        steps.append(problem.training.at("lr", step) * error_signal(problem, f, step))
        f = f + ntk @ steps[-1]
        require_finite(problem, f, step + 1)
    outputs.append(f)
    moves = torch.stack(steps) if steps else f.new_zeros(0, *f.shape)
    return torch.stack(outputs), Drive(moves, torch.cat([torch.zeros_like(f)[None], moves.cumsum(0)]))


def _sites(chain: Chain, lazy: ChainKernels, uniform: Collection[int]) -> list[ExpandedSite]:
    """The layers at order gamma0: responses of features from the input up, of gradients from the readout down."""
    sites: list[ExpandedSite] = []
    for at, (layer, features) in enumerate(zip(chain.hidden, lazy.forward, strict=False)):
        std = layer.bias_std or 0.0
        bound, variance = (math.sqrt(3) * std, 0.0) if at in uniform else (0.0, std**2)
        phi, covariance = activation(layer.activation), layer.gain**2 * features + variance
        averages = PairAverages.of(phi, covariance, bound)
        learned = layer.gain**2 * features + float(layer.bias_std is not None)
        forward = learned if not sites else learned + layer.gain**2 * sites[-1].averages.slopes * sites[-1].forward
        one, none = torch.ones_like(features), torch.zeros_like(features)
        sites.append(ExpandedSite(phi, covariance, bound, one, averages, forward, one, none, none, none, none))
    for at in range(chain.depth - 1, 0, -1):
        above, pair, scale = sites[at], sites[at].averages, _backward_scale(chain, at)
        diagonal = (pair.slopes + pair.bent).diagonal()[:, None]
        noise = scale * pair.slopes * above.noise
        own = above.forward * above.noise
        sites[at - 1] = replace(
            sites[at - 1],
            noise=noise,
            early=noise + scale * pair.slopes * above.early,
            late=scale * (own * pair.curvatures + pair.slopes * above.late),
            equal_early=scale * (diagonal * above.equal_early + above.early * pair.bent),
            equal_late=scale * (diagonal * above.equal_late + above.late * pair.bent + own * pair.twisted),
            equal_step=scale * (pair.slopes.diagonal()[:, None] * above.equal_step + own * pair.twisted),
        )
    return sites


def _backward_scale(chain: Chain, at: int) -> float:
    """g^2 N_{l+1} / N_l of the weight into the hidden layer at this position, counted from 0."""
    below, above = chain.hidden[at - 1], chain.hidden[at]
    return above.gain**2 * above.width_ratio / below.width_ratio


@dataclass(frozen=True)
class _Features:
    """Phi2 of one layer: at equal times, between the states t + 1 and t, and as recorded."""

    same: Tensor
    next: Tensor
    recorded: Tensor


@dataclass(frozen=True)
class _Gradients:
    """Gamma2 = <k k> of one layer, rows (sample, output): of secant and true gradients, and as recorded."""

    secants: Tensor
    recorded: Tensor


def _features(
    chain: Chain, sites: Sequence[ExpandedSite], moments: Sequence[SecondMoments], record: Tensor
) -> list[_Features]:
    """Phi2^0..Phi2^L, from the input up."""
    first = moments[0]
    layers = [_Features(*(torch.zeros_like(x) for x in (first.features, first.features_next, first.features_recorded)))]
    for layer, site, own in zip(chain.hidden, sites, moments, strict=True):
        pair, gain = site.averages, layer.gain**2
        variance = gain * _diagonal(layers[-1].same)
        weights = (pair.slopes, pair.bent / 2, pair.bent.T / 2)
        layers.append(
            _Features(
                own.features + _moved(*weights, gain * layers[-1].same, variance, variance),
                own.features_next + _moved(*weights, gain * layers[-1].next, variance[1:], variance[:-1]),
                own.features_recorded
                + _moved(*weights, gain * layers[-1].recorded, variance[record], variance[record]),
            )
        )
    return layers


def _gradients(
    chain: Chain,
    sites: Sequence[ExpandedSite],
    moments: Sequence[SecondMoments],
    features: Sequence[_Features],
    record: Tensor,
) -> list[_Gradients]:
    """Gamma2^1..Gamma2^L, from the readout down."""
    outputs = chain.outputs
    inherited = [torch.zeros_like(x) for x in (moments[-1].secants, moments[-1].gradients_recorded)]
    layers: list[_Gradients] = []
    for at in reversed(range(chain.depth)):
        site, own, below, gain = sites[at], moments[at], features[at], chain.hidden[at].gain ** 2
        pair = site.averages
        center, half_twisted = _rows(pair.curvatures, outputs), _rows(pair.twisted, outputs) / 2
        weights = (center, half_twisted, half_twisted.T)
        variance = gain * _diagonal(_rows(below.same, outputs))
        covariance = gain * _diagonal(_rows(below.next, outputs))
        half_way = gain * _rows((below.same[:-1] + below.next) / 2, outputs)
        moved = (
            _moved(*weights, half_way, (variance[:-1] + covariance + variance[1:]) / 3, variance[:-1]),
            _moved(*weights, gain * _rows(below.recorded, outputs), variance[record], variance[record]),
        )
        noise, slopes = _rows(site.noise, outputs) * _same_output(site.noise, outputs), _rows(pair.slopes, outputs)
        secants, recorded = (
            mine + _between(noise, change) * change + _between(slopes, theirs) * theirs
            for mine, change, theirs in zip((own.secants, own.gradients_recorded), moved, inherited, strict=True)
        )
        layers.insert(0, _Gradients(secants, recorded))
        if at > 0:
            inherited = [_backward_scale(chain, at) * x for x in (secants, recorded)]
    return layers


def _outputs(
    problem: Problem,
    lazy: ChainKernels,
    sites: Sequence[ExpandedSite],
    outputs: Tensor,
    drive: Drive,
    features: Sequence[_Features],
    gradients: Sequence[_Gradients],
) -> Tensor:
    """f2 at all states: f2(t+1) = f2(t) + eta K0 Delta2(t) + eta K2(t) Delta0(t), with the NTK of secants for K2."""
    chain = require_chain(problem, "Perturbation")
    count = chain.outputs
    same_output = _same_output(lazy.ntk, count)
    ntk = same_output * _rows(features[-1].next, count)
    for at, (layer, site) in enumerate(zip(chain.hidden, sites, strict=True)):
        learned = _rows(layer.gain**2 * lazy.forward[at] + float(layer.bias_std is not None), count)
        gradient = same_output * _rows(site.averages.slopes * site.noise, count)
        moved = gradients[at].secants * learned + gradient * layer.gain**2 * _rows(features[at].next, count)
        ntk = ntk + layer.width_ratio * moved
    f, found = torch.zeros_like(outputs[0]), []
    for step, push in enumerate(drive.steps):
        found.append(f)
        change = _error_change(problem, outputs[step], f, step)
        f = f + problem.training.at("lr", step) * lazy.ntk @ change + (ntk[step] @ push.flatten()).reshape(f.shape)
    return torch.stack([*found, f])


def _trajectory(
    problem: Problem,
    lazy: ChainKernels,
    record: Tensor,
    outputs: Tensor,
    features: Sequence[Tensor],
    gradients: Sequence[Tensor],
) -> Trajectory:
    """Orders zero and two together."""
    chain, square, count = require_chain(problem, "Perturbation"), problem.gamma0**2, problem.outputs
    forward = [_between(phi, move) + square * move for phi, move in zip(lazy.forward, features, strict=True)]
    backward = []
    for layer, g, move in zip(chain.hidden, lazy.backward, gradients, strict=True):
        start = _between(_rows(g, count) * _same_output(g, count), move)
        rows = start + square * layer.width_ratio**2 * move
        times = (len(record), problem.samples, count)
        backward.append(rows.reshape(*times, *(times if rows.ndim == 4 else times[1:])))
    return assemble(problem, chain, record, outputs[record], forward, backward, origin="perturbation theory (N=inf)")


def _error_change(problem: Problem, outputs: Tensor, change: Tensor, step: int) -> Tensor:
    """How Delta of a step answers to a small change of the outputs, -(d^2 L / df^2) change."""
    at = outputs.to(problem.dtype).requires_grad_()
    with torch.enable_grad():
        loss = problem.training_loss(at, problem.batch(step))
        (gradient,) = torch.autograd.grad(loss, at, create_graph=True)
        if not gradient.requires_grad:
            return torch.zeros_like(change)
        (curvature,) = torch.autograd.grad(gradient, at, change.to(problem.dtype))
    return -curvature.to(change.dtype)


def _moved(center: Tensor, left: Tensor, right: Tensor, covariance: Tensor, early: Tensor, late: Tensor) -> Tensor:
    """How <F(u_m(t)) H(u_n(s))> follows covariances: <F' H'> dq_mn + <F'' H> dq_mm / 2 + <F H''> dq_nn / 2.

    Args:
        center: <F' H'>, ``(row, row)``.
        left: <F'' H> / 2.
        right: <F H''> / 2.
        covariance: dq between the times, ``(time, row, row)`` or ``(time, row, time, row)``.
        early: dq of the left rows, ``(time, row)``.
        late: dq of the right rows.
    """
    if covariance.ndim == 4:
        early, late = early[:, :, None, None], late[None, None]
    else:
        early, late = early[:, :, None], late[:, None]
    center, left, right = (_between(x, covariance) for x in (center, left, right))
    return center * covariance + left * early + right * late


def _between(matrix: Tensor, times: Tensor) -> Tensor:
    """A matrix over rows that multiplies arrays at equal times, or at two."""
    return matrix[:, None] if times.ndim == 4 else matrix


def _diagonal(kernel: Tensor) -> Tensor:
    return kernel.diagonal(dim1=-2, dim2=-1)


def _rows(kernel: Tensor, outputs: int) -> Tensor:
    """A kernel over samples as one over (sample, output), the same for all outputs."""
    left = -3 if kernel.ndim == 4 else -2
    return kernel.repeat_interleave(outputs, -1).repeat_interleave(outputs, left)


def _same_output(kernel: Tensor, outputs: int) -> Tensor:
    """1 between (sample, output) rows of one output, else 0: ``(row, row)``."""
    return torch.eye(outputs, dtype=kernel.dtype, device=kernel.device).repeat(len(kernel), len(kernel))
