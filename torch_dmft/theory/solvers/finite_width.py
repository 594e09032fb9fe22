"""FiniteWidth: what networks of one finite width do, with their spread over initialisations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_dmft.core.errors import UnsupportedModelError
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.numbers import require_number, require_whole
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement import Recorder
from torch_dmft.parameterization import Plan
from torch_dmft.parameterization.uniform import UNIFORM
from torch_dmft.theory.checks import require_generator
from torch_dmft.theory.cost import Cost, twin_cost
from torch_dmft.theory.engine.built import Factory
from torch_dmft.theory.engine.lazy_layer import LazyLayer
from torch_dmft.theory.engine.networks import Networks, initialise, langevin_noise, network_of, starts_in
from torch_dmft.theory.engine.posed import is_closed, renamed, rotated, twin_of
from torch_dmft.theory.engine.sources import (
    cost_of_networks,
    covered_starts,
    factory_for,
    networks_of,
    require_factory,
    require_networks,
)
from torch_dmft.theory.engine.training import View, rows_at_once, train_and_record
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.replicas import average, replica_generators
from torch_dmft.theory.solver import method, require_training
from torch_dmft.theory.solvers.infinite_width import COVERS, require_rule
from torch_dmft.theory.stepping import track
from torch_dmft.theory.tolerance import default_tolerance

_DENSE_FROM = 0.4
"""Rank per width from which a dense matrix is cheaper: a step takes about 14 N k flops per row, a dense one 6 N^2."""
_SMALL = 512
"""Widths up to this are dense unless a tolerance is asked for: multiplying by such a matrix is cheaper than not to."""


@method
@dataclass(frozen=True)
class FiniteWidth:
    r"""Networks of width N: the mean over initialisations, the spread around it, and the networks themselves.

    At large width kernels are Gaussian around the limit, k ~ N(k* + a / N, Sigma / N) (Bordelon & Pehlevan 2022, section
    5.2). The mean and Sigma are estimated from ``replicas`` independent networks, each sampled lazily: exactly i.i.d.
    networks of width N (``torch_dmft.theory.gaussian.latents``, law "network"), for O(N k) time and memory per matrix
    instead of O(N^2). Where that saves nothing (small widths, or training that explores so many directions that the rank
    k exceeds 0.4 N), for Langevin noise, for learning rules, and for architectures that the engine does not cover
    (BatchNorm), ordinary dense networks of the same law are trained.

    The answer's ``stderr`` is that of the mean, its ``spread`` the standard deviation of one network, and its
    ``replicas`` hold every network; ``theory.covariance`` is that of any two of their numbers.
    ``compare(measured, answer)`` judges by them whether a measured network behaves as its width explains.

    Any loss, setting of SGD, Adam, Langevin noise, learning rule (each network with backward weights of its own; chains and SGD
    alone), and network that can be built at width N. Cost: ``replicas`` runs of
    O(P N^2 T) if dense (the paper's Table 1), O(P N k T) if sampled; all replicas are kept, O(R P^2 T). Refuses dropout, and
    what cannot be built at another width.

    Args:
        width: N, neurons of the last hidden layer; other widths in proportion.
        replicas: R. The mean has the error spread / sqrt(R), the spread a relative error of 1 / sqrt(2 R).
        generator: source of randomness; None for a fresh one with seed 0.
        tolerance: relative part of a feature or gradient vector that lazy sampling may ignore; 0 for dense networks
            throughout, None for 1e-2 * min(1, gamma0) and dense networks up to a width of 512.
        factory: width -> model, builds the networks of a wrapped model, as for ``WideEnsemble``; ``width`` is what it takes.
    """

    width: int
    replicas: int = 64
    generator: torch.Generator | None = None
    tolerance: float | None = None
    factory: Factory | None = None

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        require_whole("width", self.width, at_least=1)
        require_whole("replicas", self.replicas, at_least=4, remedy="at least four replicas, to estimate their spread")
        if self.tolerance is not None:
            require_number("tolerance", self.tolerance, at_least=0, below=1)
        require_generator(self.generator)
        require_factory(self.factory)

    def check(self, problem: Problem) -> None:
        """Refuse unknown optimizers, and networks that cannot be built at another width."""
        covers = COVERS | ({"noise"} if "groups" not in problem.training.traits else set())
        require_networks(problem, self.factory, (self.width,))
        require_training(problem, "FiniteWidth", covers | {"rule"} | covered_starts(problem, self.factory))
        require_rule(problem, "FiniteWidth")

    def estimate(
        self, problem: Problem, record: Iterable[int] | int | Tensor | None = None, *, two_time: bool | float = False
    ) -> Cost:
        """What solving the problem will cost, by the cheaper of dense and lazily sampled networks."""
        recorded, count = problem.number_recorded(record), self.replicas
        dense = cost_of_networks(
            problem, self.factory, (self.width,), count=count, recorded=recorded, two_time=two_time, error=None
        )
        is_built = factory_for(problem, self.factory) is not None
        if self.width <= _SMALL or self.tolerance == 0 or is_built or not _is_covered(problem):
            return dense
        lazy = twin_cost(problem, neurons=self.width, replicas=count, recorded=recorded, two_time=two_time)
        return min(dense, replace(lazy, error=None), key=lambda cost: cost.seconds)

    def run(self, problem: Problem, record: Tensor, *, two_time: bool | float, progress: bool) -> Trajectory:
        """Train ``replicas`` networks and average; see ``solve``."""
        networks = _Networks(self, problem)
        posed, view, origin = networks.problem, networks.view, f"theory (N={networks.width})"
        runs = []
        for _ in track(range(self.replicas), origin, progress=progress):
            plan = next(networks)
            noise = langevin_noise(posed, plan, networks.generator)
            steps = range(problem.steps + 1)
            draws = plan.architecture.train_differs or posed.training.rule != "gradient"
            own = replica_generators(networks.generator, 1)[0] if draws else None
            run = train_and_record(
                posed, plan, record, two_time=two_time, steps=steps, noise=noise, view=view, generator=own
            )
            networks.learn(plan)
            runs.append(networks.named(run, problem))
        facts = {"replicas": self.replicas, "dense": networks.are_dense}
        answer = average(runs, origin=origin, metadata=facts)
        return replace(answer, width=networks.width, replicas=tuple(_equal_times(run) for run in runs))


class _Networks(Iterator[Plan]):
    """Independent networks of one width, lazily sampled ones as long as that is cheaper than dense ones."""

    def __init__(self, solver: FiniteWidth, problem: Problem) -> None:
        self.problem, self.width = rotated(problem), solver.width
        self._built: Networks | None = None
        self.generator = solver.generator or torch.Generator().manual_seed(0)
        self.tolerance = default_tolerance(problem.gamma0) if solver.tolerance is None else solver.tolerance
        # One step brings every row's features and gradients; so a lazy network is not needed to find that out.
        directions = rows_at_once(problem) * (1 + problem.outputs)
        is_small = solver.tolerance is None and self.width <= _SMALL
        saturates = directions > _DENSE_FROM * self.width
        is_noisy = problem.temperature > 0  # in all directions at once
        is_dense = self.tolerance == 0 or is_small or saturates or is_noisy
        self.are_dense = is_dense or not _is_covered(problem)
        self._dense: Plan | None = None
        if factory_for(problem, solver.factory) is not None:
            self._built = networks_of(problem, solver.width, solver.factory, (solver.width,), self.generator)
            self.problem, self.width, self.are_dense = self._built.problem, self._built.width, True

    @property
    def view(self) -> Callable[[Problem, Recorder], View] | None:
        """How they are looked at."""
        return None if self._built is None else self._built.view

    def named(self, run: Trajectory, problem: Problem) -> Trajectory:
        """A run with the names of the problem's weights, which those of a factory have."""
        return renamed(run, problem) if self._built is None else run

    def __next__(self) -> Plan:
        if self._built is not None:
            return self._built.draw(self.generator)
        if not self.are_dense:
            (generator,) = replica_generators(self.generator, 1)
            settings = {"law": "network", "responses": True, "tolerance": self.tolerance, "generator": generator}
            return twin_of(self.problem, self.width, **settings)  # type: ignore[arg-type]
        if self._dense is None:
            self._dense = network_of(self.problem, self.width)
        initialise(self._dense, self.generator, starts_in(self.problem, self._dense))
        return self._dense

    def learn(self, trained: Plan) -> None:
        """Go over to dense networks if this one met too many directions: the law is the same."""
        layers = [m for m in trained.model.modules() if isinstance(m, LazyLayer)]
        ranks = [sum(layer.rank) / sum(layer.sizes) for layer in layers]
        self.are_dense = self.are_dense or max(ranks, default=0.0) > _DENSE_FROM


def _is_covered(problem: Problem) -> bool:
    """Whether the engine can sample this network lazily, and train it."""
    is_rounded = "muon" in problem.training.traits and not problem.training.number("exact")
    starts = problem.training.starts
    is_other = any(starts.get(name) == UNIFORM for name in problem.network.hidden)  # in law, but at infinite width
    is_taught = problem.training.rule != "gradient"
    if problem.temperature or is_rounded or is_other or is_taught or not is_closed(problem):
        return False
    try:
        problem.network.require_law()
    except UnsupportedModelError:
        return False
    return True


def _equal_times(run: Trajectory) -> Trajectory:
    """What a comparison needs of a replica: R of them are kept."""
    layers = tuple(replace(layer.each(lambda kernel: Kernel(kernel.equal_time)), fields=None) for layer in run.layers)
    return replace(run, layers=layers, ntk=Kernel(run.known_ntk.equal_time))
