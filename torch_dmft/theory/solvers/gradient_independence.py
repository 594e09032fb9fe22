"""GradientIndependence: the theory with the responses A and B dropped."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.infinite.twin import default_tolerance
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solvers.infinite_width import InfiniteWidth, train_replicas


@dataclass(frozen=True)
class GradientIndependence(InfiniteWidth):
    """The gradient-independence ansatz: forward and backward weights are treated as independent Gaussian matrices.

    The same computation as ``InfiniteWidth`` with A = B = 0 (Bordelon & Pehlevan 2022, section 5.1). Right at
    initialisation and for gamma0 -> 0, wrong as soon as features move; useful to see how much the responses matter.
    Arguments, cost, memory and refusals are those of ``InfiniteWidth``.
    """

    def run(self, problem: Problem, record: Tensor, *, two_time: bool, progress: bool) -> Trajectory:
        """Train ``replicas`` twins without responses and average; see ``solve``."""
        return train_replicas(
            problem,
            record,
            neurons=self.neurons,
            replicas=self.replicas,
            tolerance=default_tolerance(problem.gamma0, self.neurons * self.replicas)
            if self.tolerance is None
            else self.tolerance,
            generator=self.generator,
            two_time=two_time,
            progress=progress,
            origin="gradient independence (N=inf)",
            responses=False,
        )
