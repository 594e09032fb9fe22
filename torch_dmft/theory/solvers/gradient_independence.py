"""GradientIndependence: the theory with the responses A and B dropped, its outputs following the tangent kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement import Recorder
from torch_dmft.theory.chains.assembly import about_the_probe
from torch_dmft.theory.cost import Cost
from torch_dmft.theory.engine.passes import Passes
from torch_dmft.theory.engine.training import Moment, train_and_record
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.sharing import Sharing
from torch_dmft.theory.solver import method, require_training
from torch_dmft.theory.solvers.infinite_width import InfiniteWidth, train_replicas


@method
@dataclass(frozen=True)
class GradientIndependence(InfiniteWidth):
    r"""The gradient-independence ansatz: forward and backward weights are treated as independent Gaussian matrices.

    The field equations with A = B = 0 (Bordelon & Pehlevan 2022, section 5.1), solved by twins whose W^T knows nothing of
    W. The outputs are not those of the twins' forward pass, which would lose what lower layers learn, as networks with
    random feedback weights do. They follow the tangent kernel,

    .. math:: f(t + 1) = f(t) + \eta K(t) \Delta(t), \quad \Delta = -\partial L / \partial f ,

    K(t) being measured on the twin in every step, and the twin learns by the error signal Delta of this f.

    Exact for gamma0 -> 0, where it is ``StaticNTK``, and, up to O(eta), for networks of one hidden layer, which have no
    responses. Good near gamma0 = 0, where its error is of order gamma0^2; wrong as soon as deeper networks learn features.
    It shows how much the responses matter.

    The outputs are first order in eta, where ``InfiniteWidth`` is exact at any eta. Refuses momentum, for which K would be
    needed between all pairs of steps, and weight decay, which moves the outputs along the weights themselves. Otherwise
    arguments, memory and refusals are those of ``InfiniteWidth``; the kernel needs the gradients of every output in every
    step, recorded or not, which makes the cost O(S n k C T).
    """

    def check(self, problem: Problem) -> None:
        """Refuse problems outside the method's assumptions."""
        if self.strides:
            raise InvalidInputError(
                "`strides` must be False for GradientIndependence, which takes every step.",
                got="strides=True",
                remedy="strides=False",
            )
        remedy = (
            "solvers.InfiniteWidth(); gradient independence moves the outputs by the tangent kernel of the present step, "
            "which knows nothing of momentum and decay"
        )
        covers = frozenset({"schedule", "batches", "frozen", "starts", "uniform starts"})
        require_training(problem, "GradientIndependence", covers, remedy=remedy)
        if problem.network.shown is not None and problem.network.shown.train_differs:
            raise UnsupportedProblemError(
                "GradientIndependence needs a model that is the same in train mode.",
                got="dropout, whose tangent kernel of one step is not that of evaluation mode",
                remedy="solvers.InfiniteWidth()",
            )
        super().check(problem)

    def estimate(
        self, problem: Problem, record: Iterable[int] | int | Tensor | None = None, *, two_time: bool | float = False
    ) -> Cost:
        """What solving the problem will cost: kernels are measured in every step, whatever is recorded."""
        memory = super().estimate(problem, record, two_time=two_time).memory
        return replace(super().estimate(problem), memory=memory, error=None)

    def run_shared(
        self, problem: Problem, record: Tensor, *, two_time: bool | float, progress: bool, sharing: Sharing
    ) -> Trajectory:
        """Train ``replicas`` twins without responses and average; see ``solve``."""
        trajectory = train_replicas(
            self,
            replace(problem, probe=None),  # all rows move together
            record,
            two_time=two_time,
            progress=progress,
            origin="gradient independence (N=inf)",
            sharing=sharing,
            responses=False,
            train=partial(train_and_record, view=FollowTheTangentKernel),
        )
        return about_the_probe(problem, trajectory)


class FollowTheTangentKernel:
    """The view of a model whose outputs follow its tangent kernel, and which learns by their error signal.

    The model's own outputs are used for their gradients alone, after the start: f(0) is what it makes of a readout of zero.

    Args:
        problem: data, loss and training.
        recorder: of the model.
    """

    def __init__(self, problem: Problem, recorder: Recorder) -> None:
        self._problem, self._passes = problem, Passes(recorder.subject)
        self._outputs: Tensor | None = None

    def __call__(self, step: int, *, measured: bool, trained: bool) -> Moment:
        """Measure the tangent kernel, and have the outputs move by it."""
        one = self._passes(self._problem.tensor, measured=True)
        outputs = one.outputs if self._outputs is None else self._outputs
        snapshot = one.measure()

        def update() -> None:
            error = self._problem.error(outputs, step)
            one.backward(error)
            rows, lr = error.numel(), self._problem.training.at("lr", step)
            moved = lr * (snapshot.known_ntk.reshape(rows, rows) @ error.flatten()).reshape(error.shape)
            self._outputs = outputs + moved

        return Moment(outputs, update, replace(snapshot, outputs=outputs))
