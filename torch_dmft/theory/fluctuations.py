"""How far networks of any width scatter around the infinitely wide one, from the influence of its single neurons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.activation import activation
from torch_dmft.core.arguments import checked, typed
from torch_dmft.core.errors import ConvergenceError, InvalidInputError, NotRecordedError, UnsupportedProblemError
from torch_dmft.core.memory import require_memory
from torch_dmft.core.numbers import require_whole
from torch_dmft.core.own_arithmetic import own_arithmetic
from torch_dmft.core.trajectory import Trajectory, combine
from torch_dmft.core.users_functions import called
from torch_dmft.theory.chain import Chain
from torch_dmft.theory.chains.uniform_start import require_gaussian_fields, require_gaussian_readout
from torch_dmft.theory.chains.weighted_chain import draw, run_weighted
from torch_dmft.theory.checks import require_generator
from torch_dmft.theory.covariance import Observable
from torch_dmft.theory.entries import entries, with_entries
from torch_dmft.theory.error_bars import kernel_error
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.replicas import average, replica_generators
from torch_dmft.theory.solver import SEES, require_training
from torch_dmft.theory.stepping import track

_NUMBERS_PER_FIELD = 25.0
"""Of what is kept for the derivative, per neuron, layer, row and time, one output; measured: 20 to 22."""
_ORIGIN = "theory (N=inf), influences of neurons"


@typed
@dataclass(frozen=True, eq=False)
class Fluctuations:
    r"""The infinitely wide network, and how networks of width N scatter around it: k ~ N(k* + a / N, Sigma / N).

    Attributes:
        mean: the infinitely wide network, at the steps asked for.
        values: the observable there, ``(entry,)``; of None, all numbers that ``bars`` has.
        sigma: Sigma, N times the covariance of two entries over networks of width N, to leading order.
        shares: the part of an entry's variance that comes from the neurons of each hidden layer, of sum one;
            NaN of an entry that does not vary.
        stderr: standard error of ``sigma`` over replicas; None for one replica.
        is_complete: whether the entries are all numbers of the run.
    """

    mean: Trajectory
    values: Float[Tensor, " entry"]
    sigma: Float[Tensor, "entry entry"]
    shares: Float[Tensor, "layer entry"]
    stderr: Float[Tensor, "entry entry"] | None = None
    is_complete: bool = False

    def covariance(self, width: int) -> Float[Tensor, "entry entry"]:
        """Sigma / N, what ``theory.covariance`` estimates from many networks.

        Args:
            width: N, neurons of the last hidden layer.
        """
        require_whole("width", width, at_least=1)
        return self.sigma / width

    def spread(self, width: int) -> Float[Tensor, " entry"]:
        """The standard deviation of every entry over networks.

        Args:
            width: N, neurons of the last hidden layer.
        """
        return self.covariance(width).diagonal().sqrt()

    def bars(self, width: int) -> Trajectory:
        """The standard deviation of every number of the run over networks, as ``spread`` of a ``FiniteWidth`` answer.

        Args:
            width: N, neurons of the last hidden layer.

        Returns:
            A trajectory of standard deviations: outputs, losses, Phi, G and the NTK as a whole.

        Raises:
            NotRecordedError: if an observable was asked for.
        """
        if not self.is_complete:
            raise NotRecordedError(
                "Bars of all numbers need the influences on all of them.",
                got="fluctuations of an observable",
                remedy="fluctuations(problem) without an observable",
            )
        return replace(with_entries(self.mean, self.spread(width)), origin=f"spread (N={width})")


@checked
@own_arithmetic()
def fluctuations(
    problem: Problem,
    observable: Observable | None = None,
    *,
    record: Iterable[int] | int | Tensor | None = None,
    neurons: int = 1000,
    replicas: int = 4,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Fluctuations:
    r"""The covariance of kernels, outputs and loss over networks of width N, for every N, from one run at infinite width.

    Sampled lazily, a network is a function F of the noise that its neurons drew, and depends on it through averages over the
    neurons of each layer only (``chains.weighted_matrix``). With p_i the weight of neuron i in the averages of its layer,
    :math:`\langle a \rangle = \sum_i p_i a_i`,

    .. math::
        I_i = \frac{\partial F}{\partial p_i} - \Big\langle \frac{\partial F}{\partial p} \Big\rangle,
        \qquad F_N = F_\infty + \sum_{l=1}^L \frac{1}{N_l} \sum_{i \in l} I_i + O(1/N),
        \qquad \Sigma = \sum_{l=1}^L \frac{N_L}{N_l} \langle I I^T \rangle_l .

    Neurons are independent, so N Cov(F_N) goes to Sigma, the inverse Hessian of the DMFT action: if the order
    parameters solve q = < a(q) >, the influences on q are I = (1 - J)^{-1} (a - < a >), J = d< a >/dq. They are found by
    reverse-mode differentiation through the whole of training, which solves with (1 - J)^T step by step back in time.

    What is left out is of relative order 1/N. Of what fluctuates like 1/(gamma0 sqrt(N)), the outputs at the start, the squares
    are left out, too: gamma0 sqrt(N) must be large. So is the loss where its slope by f is near zero.

    Cost: O(S (P T)^2) time and O(S P T) memory per layer and replica, and as much time again for each entry. Three
    numbers (tanh, L = 3, P = 10, T = 60, S = 1000, R = 4) take 24 s of one core, about what the few hundred networks of width
    128 take that know a variance as well. So ask for few entries of large problems; for many entries at one width
    ``solvers.FiniteWidth`` is cheaper.

    Covers dense chains with smooth activations trained by SGD: momentum, weight decay, schedules, minibatches, any loss whose
    slope is differentiable, several outputs, biases, gains, unequal widths. Refuses activations with kinks, whose slope's
    jump no automatic derivative sees; networks that are no chains; Adam, Muon and noise; uniform input and
    readout weights.

    Args:
        problem: what is trained on.
        observable: any differentiable function of a trajectory at equal times, such as ``lambda run: run.losses``; None for all
            numbers of the run but single weights' parts of the NTK.
        record: steps of the trajectories, as in ``solve``; None for the start and the end.
        neurons: S per replica and layer, even. A variance has a relative error of about 2 / sqrt(S R), and a bias of about
            10 / S.
        replicas: R, independent runs. One alone has no standard error.
        generator: source of randomness; None for a fresh one with seed 0.
        progress: show a progress bar over entries.

    Raises:
        UnsupportedProblemError: if the problem is not covered.
        InvalidInputError: if the observable does not depend on anything that fluctuates in a differentiable way.
        ConvergenceError: if training diverges.
        InsufficientMemoryError: if the run does not fit.

    Source: Bordelon & Pehlevan 2023 (arXiv 2304.03408), for Sigma; von Mises 1947, for influences of single draws.
    """
    chain = _require_covered(problem)
    require_whole("neurons", neurons, at_least=4)
    require_whole("replicas", replicas, at_least=1)
    require_generator(generator)
    if neurons % 2:
        raise InvalidInputError(
            "`neurons` must be even, as neurons come in pairs.",
            got=f"neurons={neurons}",
            remedy=f"neurons={neurons + 1}",
        )
    steps = problem.recorded((0, problem.steps) if record is None else record)
    _require_room(problem, chain, neurons, int(steps[-1]) + 1)
    found = [
        _influences(
            problem, chain, observable, steps, neurons, own, f"influences, replica {at + 1} of {replicas}", progress
        )
        for at, own in enumerate(replica_generators(generator, replicas))
    ]
    sigmas = torch.stack([one.sigma for one in found])
    sigma, values = sigmas.mean(0), torch.stack([one.values for one in found]).mean(0)
    variances = torch.stack([one.layers for one in found]).mean(0)
    facts: dict[str, str | int | float | bool | None] = {"neurons": neurons, "replicas": replicas}
    mean = average([one.run for one in found], origin=_ORIGIN, metadata=facts, loss=problem.kept_loss)
    return Fluctuations(
        mean=replace(mean, network=problem.network.functions),
        values=values,
        sigma=sigma,
        shares=variances / variances.sum(0),
        stderr=kernel_error(list(sigmas[:, None]))[0] if replicas > 1 else None,
        is_complete=observable is None,
    )


@dataclass(frozen=True)
class _Replica:
    run: Trajectory
    values: Tensor
    sigma: Tensor
    layers: Float[Tensor, "layer entry"]


def _influences(
    problem: Problem,
    chain: Chain,
    observable: Observable | None,
    steps: Tensor,
    neurons: int,
    generator: torch.Generator,
    description: str,
    progress: bool,
) -> _Replica:
    """Sigma of one sample of neurons."""
    noise = draw(problem, chain, int(steps[-1]) + 1, neurons, generator)
    equal = noise[0].start.new_full((neurons,), 1 / neurons)
    weights = [equal.clone().requires_grad_() for _ in chain.hidden]
    run = run_weighted(problem, noise, weights, steps)
    numbers = entries(run) if observable is None else _observed(observable, run)
    count = len(numbers)
    require_memory(
        8 * count * (chain.depth * neurons + 4 * count),
        problem.device,
        what=f"The influences of {neurons} neurons per layer on {count} numbers",
        remedy="an observable of fewer entries, or fewer recorded steps",
    )
    slopes = [equal.new_zeros(count, neurons) for _ in chain.hidden]
    for entry in track(range(count), description, progress=progress):
        if numbers.requires_grad:
            rows = torch.autograd.grad(numbers[entry], weights, retain_graph=True, allow_unused=True)
            for slope, row in zip(slopes, rows, strict=True):
                slope[entry] = 0.0 if row is None else row
    centered = [slope - slope.mean(1, keepdim=True) for slope in slopes]
    if not all(bool(torch.isfinite(slope).all()) for slope in centered):
        raise ConvergenceError(
            "The influences of neurons are not finite.",
            remedy="a smaller lr, or an observable with a finite derivative (the root of zero has none)",
        )
    parts = [
        slope @ slope.mT / neurons / layer.width_ratio for slope, layer in zip(centered, chain.hidden, strict=True)
    ]
    return _Replica(
        combine([run], lambda values: values[0].detach()),
        numbers.detach().double().cpu(),
        torch.stack(parts).sum(0).cpu(),
        torch.stack([part.diagonal() for part in parts]).cpu(),
    )


def _observed(observable: Observable, run: Trajectory) -> Float[Tensor, " entry"]:
    remedy = "a function of a trajectory that returns a tensor, such as lambda run: run.outputs[-1]"
    found = called("observable", observable, run, remedy=remedy)
    if not isinstance(found, Tensor) or not found.is_floating_point() or not found.numel():
        got = f"{tuple(found.shape)}, {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise InvalidInputError("An observable must be a tensor of real numbers.", got=got, remedy=remedy)
    if not found.requires_grad:
        raise InvalidInputError(
            "An observable must be a differentiable function of what fluctuates.",
            got="numbers that do not depend on the neurons, or are detached",
            remedy=f"{remedy}, without detach() and item()",
        )
    return found.flatten().double()


def _require_covered(problem: Problem) -> Chain:
    """The problem's chain.

    Raises:
        UnsupportedProblemError: if its fluctuations are not covered.
    """
    networks = "solvers.FiniteWidth(width), and theory.covariance of its answer"
    if problem.chain is None:
        raise UnsupportedProblemError(
            "Fluctuations need a plain chain of linear layers and activations.",
            got="a network of another shape",
            remedy=networks,
        )
    require_training(problem, "`fluctuations`", SEES | {"uniform starts"}, remedy=networks)
    require_gaussian_fields(problem, "`fluctuations`")
    require_gaussian_readout(problem, "`fluctuations`")
    rough = sorted({layer.activation for layer in problem.chain.hidden if not activation(layer.activation).smooth})
    if rough:
        raise UnsupportedProblemError(
            "Fluctuations need activations with a second derivative: at a kink the slopes of neurons jump.",
            got=", ".join(rough),
            remedy=networks,
        )
    return problem.chain


def _require_room(problem: Problem, chain: Chain, neurons: int, times: int) -> None:
    rows = problem.samples * (1 + problem.outputs) * times
    require_memory(
        int(8 * _NUMBERS_PER_FIELD * neurons * chain.depth * rows),
        problem.device,
        what=f"Differentiating {times - 1} steps of {neurons} neurons per layer",
        remedy="fewer neurons and more replicas",
    )
