"""The paper's Algorithm 1: alternate between sampling single sites and averaging kernels until they agree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_dmft.core.activation import activation
from torch_dmft.core.errors import ConvergenceError, InvalidInputError, UnsupportedProblemError
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.numbers import require_number, require_whole
from torch_dmft.core.trajectory import Fields, Trajectory, combine
from torch_dmft.measurement.fields import handful
from torch_dmft.theory.chain import Chain
from torch_dmft.theory.chains.assembly import about_the_probe, assemble, require_chain
from torch_dmft.theory.chains.order_parameters import OrderParameters, SiteSampler
from torch_dmft.theory.chains.uniform_start import require_gaussian_fields, require_gaussian_readout
from torch_dmft.theory.checks import require_generator
from torch_dmft.theory.cost import Cost, deterministic_cost
from torch_dmft.theory.held import FIRST_USE
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.replicas import average
from torch_dmft.theory.solver import SEES, method, require_training
from torch_dmft.theory.stepping import track

_HOPELESS = 1e6  # a relative change; many grow to ten and settle all the same
_ROUND_OFF = 1e-10  # relative: covariances are cut off there, see ``causal_root``


@dataclass(frozen=True)
class Solution:
    """Where the iteration of one replica ended.

    Attributes:
        sampler: its neurons.
        before: what the last iteration started from.
        after: what its neurons averaged to.
        order: the answer, between the two.
        horizons: the number of states and the largest relative changes, iteration by iteration, of every horizon tried.
    """

    sampler: SiteSampler
    before: OrderParameters
    after: OrderParameters
    order: OrderParameters
    horizons: tuple[tuple[int, tuple[float, ...]], ...] = ()

    @property
    def contraction(self) -> float:
        """The ratio of the last two changes, at most .9; a half if there was one iteration only."""
        last = self.horizons[-1][1][-2:]
        return min(0.9, last[1] / last[0]) if len(last) == 2 and last[0] > 0 else 0.5


@method
@dataclass(frozen=True)
class AlternatingMonteCarlo:
    """Dynamical mean field theory by the paper's Algorithm 1 (sections 3 and 4), the slow and independent reference.

    Given kernels and responses, draw u^l ~ GP(0, Phi^{l-1}) and r^l ~ GP(0, G^{l+1}), solve the single-site equations
    for h, z, g, and average new kernels Phi = <phi phi>, G = <g g>, outputs f = <z phi> / gamma0 and responses
    A = <dphi/dr>, B = <dg/du>; mix them into the old ones; repeat with the same normals until nothing changes.

    Everything is causal, so the horizon grows from a lazy start, a stride at a time, as soon as what there is has
    converged; where the iteration diverges all the same, the stride is halved. Over a long horizon at once the errors of late
    times are multiplied, iteration by iteration, by responses of order gamma0 * time, and explode before the early times
    have settled; raising gamma0 in increments does not prevent it, as it gives late times no better start.

    The standard error joins the spread of the replicas and what is left of the iteration: the last
    change times the geometric series of its ratio to the one before. In linear networks this is the only error, and larger
    than a fifth of the distance to the exact answer everywhere.

    Covers dense chains with twice differentiable activations and any loss, several outputs, gains, biases, unequal
    widths, momentum, weight decay, minibatches and Langevin noise. Cost O(S (P C T)^3) time per layer and iteration and
    O((P C T)^2) memory, as in the paper's Table 1: for small problems. The error falls like 1/sqrt(neurons * replicas).
    Refuses networks other than dense chains, uniform input and readout weights, activations without a second
    derivative (ReLU), and Adam.

    Attributes:
        neurons: S, Monte Carlo draws per replica, in pairs (r, -r) of moment-matched normals.
        iterations: the most iterations to do for one horizon before the stride is halved.
        damping: weight of the new kernels in each update, in (0, 1].
        tolerance: largest relative change of f, Phi and G in one iteration that counts as converged.
        stride: steps by which the horizon grows at most; None solves for all steps at once, as the paper does.
        replicas: independent solutions; their mean is the answer. One alone has no standard error.
        equal_time: whether to keep B(t, t), the response of a gradient to the same step's preactivation.
        responses: whether to keep A and B at all; without them this is the gradient independence approximation.
        generator: source of randomness; None for a fresh one with seed 0.
    """

    neurons: int = 1000
    iterations: int = 50
    damping: float = 0.8
    tolerance: float = 1e-3
    stride: int | None = 10
    replicas: int = 4
    equal_time: bool = True
    responses: bool = True
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        for name in ("neurons", "iterations", "replicas", *([] if self.stride is None else ["stride"])):
            require_whole(name, getattr(self, name), at_least=1)
        if self.neurons % 2:
            raise InvalidInputError(
                "`neurons` must be even, as neurons come in pairs.",
                got=f"neurons={self.neurons}",
                remedy=f"neurons={self.neurons + 1}",
            )
        require_number("damping", self.damping, above=0)
        if self.damping > 1:
            raise InvalidInputError("damping must lie in (0, 1].", got=f"{self.damping}", remedy="damping=0.8")
        require_number("tolerance", self.tolerance, above=0)
        require_generator(self.generator)

    def check(self, problem: Problem) -> None:
        """Refuse problems outside the method's assumptions.

        Raises:
            UnsupportedProblemError: for networks other than chains of smooth layers.
        """
        chain = require_chain(problem, "AlternatingMonteCarlo")
        require_training(problem, "AlternatingMonteCarlo", SEES | {"noise", "uniform starts"})
        require_gaussian_fields(problem, "AlternatingMonteCarlo")
        require_gaussian_readout(problem, "AlternatingMonteCarlo")
        rough = sorted({layer.activation for layer in chain.hidden if not activation(layer.activation).smooth})
        if rough and self.responses:
            raise UnsupportedProblemError(
                "AlternatingMonteCarlo needs activations with a second derivative.",
                got=", ".join(rough),
                remedy="a smooth activation, or solvers.InfiniteWidth(), which takes any, or solvers.WideEnsemble()",
            )

    def estimate(
        self, problem: Problem, record: Iterable[int] | int | Tensor | None = None, *, two_time: bool | float = False
    ) -> Cost:
        """What solving the problem will cost, if each horizon takes about ten iterations."""
        chain = require_chain(problem, "AlternatingMonteCarlo")
        rows, depth = float(problem.samples * problem.outputs * (problem.steps + 1)), chain.depth
        horizons = 1.0 if self.stride is None else max(1.0, (problem.steps + 1) / self.stride)
        rounds = 10 * self.replicas * (1 + horizons / 4)  # the sum of the cubes of k / n for k = 1..n is about n / 4
        return deterministic_cost(
            problem,
            problem.number_recorded(record),
            two_time=two_time,
            first_use=FIRST_USE,
            work=rounds * depth * self.neurons * rows**3,
            calls=rounds * depth * 100 * (problem.steps + 1),
            numbers=rows * (12 * depth * rows + (2 * depth + 8) * self.neurons),
            copies=self.replicas + 3,
            error=2 / math.sqrt(self.neurons * self.replicas),
        )

    def run(self, problem: Problem, record: Tensor, *, two_time: bool | float, progress: bool) -> Trajectory:
        """Solve ``replicas`` times and average; see ``Solver.run``."""
        chain = require_chain(problem, "AlternatingMonteCarlo")
        runs, left, solutions = [], [], []
        for solution in self.order_parameters(problem, int(record[-1]) + 1, progress=progress):
            solutions.append(solution)
            before, after, answer = (
                _trajectory(problem, chain, order, record, two_time)
                for order in (solution.before, solution.after, solution.order)
            )
            runs.append(_with_fields(answer, solution))
            left.append(_left(before, after, solution.contraction))
        facts: dict[str, str | int | float | bool | None] = {
            "neurons": self.neurons,
            "replicas": self.replicas,
            "iterations": max(sum(len(history) for _, history in solution.horizons) for solution in solutions),
            "change": max(solution.horizons[-1][1][-1] for solution in solutions),
            "changes": " | ".join(_shown(solution.horizons) for solution in solutions),
        }
        origin = "alternating Monte Carlo theory (N=inf)"
        mean = average(runs, origin=origin, metadata=facts, loss=problem.training_loss)
        if mean.stderr is not None:
            mean = replace(mean, stderr=combine([mean.stderr, *left], _joined))
        return about_the_probe(problem, mean)

    def order_parameters(self, problem: Problem, times: int, *, progress: bool) -> Iterator[Solution]:
        """All kernels and responses between the first ``times`` states, one solution per replica."""
        require_whole("times", times, at_least=1, at_most=problem.steps + 1)
        chain = require_chain(problem, "AlternatingMonteCarlo")
        generator = self.generator or torch.Generator(problem.device).manual_seed(0)
        for _ in track(range(self.replicas), "alternating Monte Carlo, replicas", progress=progress):
            sampler = SiteSampler(
                problem,
                chain,
                times,
                neurons=self.neurons,
                generator=generator,
                responses=self.responses,
                equal_time=self.equal_time,
            )
            yield self._grown(sampler, times)

    def _grown(self, sampler: SiteSampler, times: int) -> Solution:
        """Converge over horizons that grow to ``times`` states."""
        stride, horizons = self.stride or times, []
        solution: Solution | None = None
        while solution is None or solution.order.times < times:
            known = 0 if solution is None else solution.order.times
            horizon = min(known + stride, times)
            start = sampler.lazy(horizon) if solution is None else solution.order.extended(horizon)
            found, changes, failure = self._converge(sampler, start)
            horizons.append((horizon, changes))
            if failure is None:
                solution = found
            elif stride > 1 and self.stride is not None:
                stride = max(1, stride // 2)
            else:
                raise ConvergenceError(
                    f"Alternating Monte Carlo {failure} over the first {horizon - 1} steps.",
                    got=f"changes at {_shown(horizons)}, tolerance {self.tolerance:g}",
                    remedy="a stride of steps, which is halved where it is too long"
                    if self.stride is None
                    else "more iterations, a smaller lr if training itself diverges, or solvers.InfiniteWidth(), which "
                    "computes every step once",
                )
        return replace(solution, horizons=tuple(horizons))

    def _converge(self, sampler: SiteSampler, order: OrderParameters) -> tuple[Solution, tuple[float, ...], str | None]:
        """Iterate to self-consistency over the times of ``order``.

        Returns:
            The last iteration, the changes in every one, and what went wrong, if anything.
        """
        changes: list[float] = []
        solution = Solution(sampler, order, order, order)
        for _ in range(self.iterations):
            new = sampler.update(order)
            changes.append(order.change(new) if new.finite else math.inf)
            if changes[-1] > _HOPELESS:
                return solution, tuple(changes), "diverges"
            solution = Solution(sampler, order, new, order.mixed(new, self.damping))
            order = solution.order
            if changes[-1] < self.tolerance:
                return solution, tuple(changes), None
        return solution, tuple(changes), f"did not converge in {self.iterations} iterations"


def _trajectory(
    problem: Problem, chain: Chain, order: OrderParameters, record: Tensor, two_time: bool | float
) -> Trajectory:
    times, samples, outputs = order.outputs.shape
    kept = record.to(order.outputs.device)

    def picked(kernel: Tensor, *row: int) -> Tensor:
        full = kernel.reshape(times, *row, times, *row)[kept].index_select(1 + len(row), kept)
        return full if two_time else Kernel(full).equal_time

    return assemble(
        problem,
        chain,
        record,
        order.outputs[kept],
        [picked(kernel, samples) for kernel in order.forward],
        [picked(kernel, samples, outputs) for kernel in order.backward[:-1]],
        origin="alternating Monte Carlo theory (N=inf)",
    )


def _with_fields(run: Trajectory, solution: Solution) -> Trajectory:
    """With the fields of the sampled neurons at a handful of the recorded steps."""
    steps, order, sampler = run.steps[handful(len(run.steps))], solution.order, solution.sampler
    layers = list(run.layers)
    for index, layer in enumerate(run.layers[:-1]):
        fields = sampler.fields(order, index)

        def picked(field: Tensor, *row: int) -> Tensor:
            """From ``(neuron, row)`` to ``(time, sample, [output,] neuron)``."""
            return field.unflatten(1, (order.times, *row))[:, steps].movedim(0, -1).to(run.outputs)

        h = picked(fields.preactivation, sampler.samples)
        g = picked(fields.gradient, sampler.samples, sampler.outputs)
        layers[index] = replace(layer, fields=Fields(steps, h, g, sampler.chain.hidden[index].activation))
    return replace(run, layers=tuple(layers))


def _left(before: Trajectory, after: Trajectory, contraction: float) -> Trajectory:
    """What is left of the iteration: the largest relative change of any array up to that time, over 1 - contraction.

    Single arrays do not show it, as their changes oscillate and pass through zero; what is not iterated is exact.
    """
    relative: list[Tensor] = []

    def look(values: Sequence[Tensor]) -> Tensor:
        if values[0].ndim > 1:  # not losses, which vanish in the end
            old, new = (value.flatten(1).double() for value in values)
            size = new.norm(dim=1)  # outputs start at zero up to round-off
            relative.append((new - old).norm(dim=1) / size.clamp_min(1e-6 * float(size.max()) + 1e-300))
        return values[0]

    combine([before, after], look)
    share = torch.stack(relative).amax(0).cummax(0).values.clamp_min(_ROUND_OFF) / (1 - contraction)

    def scaled(values: Sequence[Tensor]) -> Tensor:
        old, new = values
        if old.ndim == 1:
            return (new - old).abs() + share * new
        if torch.equal(old, new):
            return torch.zeros_like(new)
        size = share * new.flatten(1).square().mean(1).sqrt()
        late = size.reshape(-1, *[1] * (new.ndim - 1))
        if new.ndim % 2:
            return late.expand_as(new).to(new.dtype)
        return torch.maximum(late, late.movedim(0, new.ndim // 2)).expand_as(new).to(new.dtype)  # at two times

    return combine([before, after], scaled)


def _joined(values: Sequence[Tensor]) -> Tensor:
    """Spread of the replicas, and what is left of their iterations, which replicas do not average out."""
    spread, *left = values
    return (spread.square() + torch.stack(left).square().mean(0)).sqrt()


def _shown(horizons: Sequence[tuple[int, tuple[float, ...]]]) -> str:
    return "; ".join(f"{times - 1} steps: " + ", ".join(f"{x:.2g}" for x in changes) for times, changes in horizons)
