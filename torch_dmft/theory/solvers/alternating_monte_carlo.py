"""The paper's Algorithm 1: alternate between sampling single sites and averaging kernels until they agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torch_dmft.core.activation import activation
from torch_dmft.core.errors import ConvergenceError, InvalidInputError, UnsupportedProblemError
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.numbers import require_number, require_whole
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement.memory import require_memory
from torch_dmft.theory.chain import Chain
from torch_dmft.theory.checks import require_generator
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solvers.assembly import assemble, require_chain, track
from torch_dmft.theory.solvers.order_parameters import OrderParameters, SiteSampler
from torch_dmft.theory.solvers.replicas import average


@dataclass(frozen=True)
class AlternatingMonteCarlo:
    """Dynamical mean field theory by the paper's Algorithm 1 (sections 3 and 4), the slow and independent reference.

    Given kernels and responses, draw u^l ~ GP(0, Phi^{l-1}) and r^l ~ GP(0, G^{l+1}), solve the single-site equations
    for h, z, g, and average new kernels Phi = <phi phi>, G = <g g>, outputs f = <z phi> / gamma0 and responses
    A = <dphi/dr>, B = <dg/du>; mix them into the old ones; repeat with the same normals until nothing changes.

    Everything is causal, so the horizon grows from a lazy start, a stride at a time, as soon as what there is has
    converged. (Over a long horizon at once the errors of late times explode before the early ones have settled;
    raising gamma0 in increments does not prevent it.)

    Covers dense chains with twice differentiable activations and any loss, several outputs, gains, biases, unequal
    widths, momentum, weight decay, minibatches and Langevin noise. Cost O(S (P C T)^3) time per layer and iteration and
    O((P C T)^2) memory: for small problems. The error falls like 1/sqrt(neurons * replicas).

    Attributes:
        neurons: S, Monte Carlo draws per replica, in pairs (r, -r) of moment-matched normals.
        iterations: the most iterations to do for one horizon.
        damping: weight of the new kernels in each update, in (0, 1].
        tolerance: largest relative change of f, Phi and G in one iteration that counts as converged.
        stride: steps by which the horizon grows; None solves for all steps at once, as the paper does.
        replicas: independent solutions; their mean is the answer and their spread gives the standard error.
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

    takes: ClassVar[frozenset[str]] = frozenset({"noise"})

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        for name in ("neurons", "iterations", "replicas", *([] if self.stride is None else ["stride"])):
            require_whole(name, getattr(self, name), at_least=1)
        if self.neurons % 2:
            raise InvalidInputError(
                "An even number of neurons is needed, as they come in pairs.",
                got=f"neurons={self.neurons}",
                remedy=f"neurons={self.neurons + 1}",
            )
        require_number("damping", self.damping, above=0)
        if self.damping > 1:
            raise InvalidInputError("damping lies in (0, 1].", got=f"{self.damping}", remedy="damping=0.8")
        require_number("tolerance", self.tolerance, above=0)
        require_generator(self.generator)

    def check(self, problem: Problem) -> None:
        """Refuse problems that cannot be done.

        Raises:
            UnsupportedProblemError: for networks that are no chain of smooth layers.
            InsufficientMemoryError: if kernels over all pairs of times do not fit.
        """
        chain = require_chain(problem, "AlternatingMonteCarlo")
        rough = sorted({layer.activation for layer in chain.hidden if not activation(layer.activation).smooth})
        if rough and self.responses:
            raise UnsupportedProblemError(
                "AlternatingMonteCarlo differentiates gradients, so it needs activations with a second derivative.",
                got=", ".join(rough),
                remedy="a smooth activation, or solvers.InfiniteWidth(), which takes any (with noise solvers.WideEnsemble())",
            )
        rows = problem.samples * problem.outputs * (problem.steps + 1)
        require_memory(
            8 * rows * (12 * chain.depth * rows + (2 * chain.depth + 8) * self.neurons),
            problem.inputs.device,
            what=f"Kernels between {rows} rows (sample, output, time)",
            remedy="fewer steps or samples, or solvers.InfiniteWidth(), whose cost is linear in the steps",
        )

    def run(self, problem: Problem, record: Tensor, *, two_time: bool, progress: bool) -> Trajectory:
        """Solve ``replicas`` times and average; see ``Solver.run``."""
        chain = require_chain(problem, "AlternatingMonteCarlo")
        runs, rounds, change, history = [], 0, 0.0, [0.0]
        for order, history in self.order_parameters(problem, int(record[-1]) + 1, progress=progress):
            runs.append(_trajectory(problem, chain, order, record, two_time))
            rounds, change = max(rounds, len(history)), max(change, history[-1])
        facts: dict[str, str | int | float | bool | None] = {
            "neurons": self.neurons,
            "replicas": self.replicas,
            "iterations": rounds,
            "change": change,
            "last changes": _shown(history),
        }
        origin = "alternating Monte Carlo theory (N=inf)"
        return average(runs, origin=origin, metadata=facts, loss=problem.training_loss)

    def order_parameters(
        self, problem: Problem, times: int, *, progress: bool
    ) -> Iterator[tuple[OrderParameters, list[float]]]:
        """All kernels and responses between the first ``times`` states, one solution per replica.

        Yields:
            A solution, and the changes in the iterations over its last horizon.
        """
        chain = require_chain(problem, "AlternatingMonteCarlo")
        generator = self.generator or torch.Generator(problem.inputs.device).manual_seed(0)
        stride = self.stride or times
        horizons = [*range(min(stride, times), times, stride), times]
        for replica in range(self.replicas):
            sampler = SiteSampler(
                problem,
                chain,
                times,
                neurons=self.neurons,
                generator=generator,
                responses=self.responses,
                equal_time=self.equal_time,
            )
            order, history = sampler.lazy(horizons[0]), [0.0]
            label = f"alternating Monte Carlo: replica {replica + 1} of {self.replicas}"
            for stage in track(range(len(horizons)), label, progress=progress):
                order, history = self._converge(sampler, order.extended(horizons[stage]))
            yield order, history

    def _converge(self, sampler: SiteSampler, order: OrderParameters) -> tuple[OrderParameters, list[float]]:
        """Iterate to self-consistency over the times of ``order``; also the change in every iteration."""
        history: list[float] = []
        for _ in range(self.iterations):
            new = sampler.update(order)
            if not new.finite:
                raise ConvergenceError(
                    f"Alternating Monte Carlo diverges within the first {order.times - 1} steps.",
                    got=f"changes {_shown(history)}, then infinity",
                    remedy="a smaller stride, a smaller lr if training itself diverges, or solvers.InfiniteWidth()",
                )
            history.append(order.change(new))
            order = order.mixed(new, self.damping)
            if history[-1] < self.tolerance:
                return order, history
        raise ConvergenceError(
            f"Alternating Monte Carlo did not converge in {self.iterations} iterations over {order.times - 1} steps.",
            got=f"changes {_shown(history)}, tolerance {self.tolerance:g}",
            remedy="more iterations, a smaller stride, or solvers.InfiniteWidth(), which iterates nothing",
        )


def _trajectory(problem: Problem, chain: Chain, order: OrderParameters, record: Tensor, two_time: bool) -> Trajectory:
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


def _shown(history: Sequence[float]) -> str:
    return ", ".join(f"{change:.2g}" for change in history) or "none"
