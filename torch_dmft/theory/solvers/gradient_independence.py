"""GradientIndependence: the theory with the responses A and B dropped."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solvers.infinite_width import InfiniteWidth, train_replicas


@dataclass(frozen=True)
class GradientIndependence(InfiniteWidth):
    """The gradient-independence ansatz: forward and backward weights are treated as independent Gaussian matrices.

    The same computation as ``InfiniteWidth`` with A = B = 0 in the field equations (Bordelon & Pehlevan 2022, section 5.1).
    Right at initialisation and for networks of one hidden layer, which have no responses; wrong as soon as deeper networks
    train; useful to see how much the responses matter.

    Outputs are those of the forward pass, f = <z phi> / gamma0, and lose what lower layers contribute to them, as with
    random feedback weights, so that at any depth above one they train too slowly even for gamma0 -> 0. The variant that
    lets f follow the tangent kernel, df/dt = K Delta, agrees with ``StaticNTK`` there; it is not implemented.
    Arguments, cost, memory and refusals are those of ``InfiniteWidth``.
    """

    def run(self, problem: Problem, record: Tensor, *, two_time: bool, progress: bool) -> Trajectory:
        """Train ``replicas`` twins without responses and average; see ``solve``."""
        origin = "gradient independence (N=inf)"
        return train_replicas(
            self, problem, record, two_time=two_time, progress=progress, origin=origin, responses=False
        )
