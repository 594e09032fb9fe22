"""GradientIndependence: the theory with the responses A and B dropped, its outputs following the tangent kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import SGD

from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement import Recorder
from torch_dmft.parameterization import Plan
from torch_dmft.theory.cost import Cost
from torch_dmft.theory.engine.passes import Passes
from torch_dmft.theory.engine.training import known_targets, lazy_layers, make_room, probe_of
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solvers.infinite_width import InfiniteWidth, train_replicas
from torch_dmft.theory.stepping import require_finite


@dataclass(frozen=True)
class GradientIndependence(InfiniteWidth):
    r"""The gradient-independence ansatz: forward and backward weights are treated as independent Gaussian matrices.

    The field equations with A = B = 0 (Bordelon & Pehlevan 2022, section 5.1), solved by twins whose W^T knows nothing of
    W. The outputs are not those of the twins' forward pass, which would lose what lower layers learn, as networks with
    random feedback weights do. They follow the tangent kernel,

    .. math:: f(t + 1) = f(t) + \eta K(t) \Delta(t), \quad f(0) = 0, \quad \Delta = -\partial L / \partial f ,

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
        """Refuse problems that cannot be done."""
        if self.strides:
            raise InvalidInputError(
                "Gradient independence takes every step.", got="strides=True", remedy="strides=False"
            )
        if problem.momentum:
            raise UnsupportedProblemError(
                "Gradient independence moves the outputs by the tangent kernel of the present step; with momentum they "
                "follow those between all pairs of steps.",
                got=f"momentum={problem.momentum}",
                remedy="momentum=0.0, or solvers.InfiniteWidth()",
            )
        if problem.weight_decay:
            raise UnsupportedProblemError(
                "Weight decay moves the outputs along the weights themselves, of which the tangent kernel knows nothing.",
                got=f"weight_decay={problem.weight_decay}",
                remedy="weight_decay=0.0, or solvers.InfiniteWidth()",
            )
        super().check(problem)

    def estimate(
        self, problem: Problem, record: Iterable[int] | int | Tensor | None = None, *, two_time: bool = False
    ) -> Cost:
        """What solving the problem will cost: kernels are measured in every step, whatever is recorded."""
        memory = super().estimate(problem, record, two_time=two_time).memory
        return replace(super().estimate(problem), memory=memory, error=None)

    def run(self, problem: Problem, record: Tensor, *, two_time: bool, progress: bool) -> Trajectory:
        """Train ``replicas`` twins without responses and average; see ``solve``."""
        return train_replicas(
            self,
            problem,
            record,
            two_time=two_time,
            progress=progress,
            origin="gradient independence (N=inf)",
            responses=False,
            train=follow_the_tangent_kernel,
        )


def follow_the_tangent_kernel(
    problem: Problem, plan: Plan, record: Tensor, *, two_time: bool, steps: Iterable[int]
) -> Trajectory:
    """Train a model by the error signal of outputs that follow its tangent kernel, and record both.

    Args:
        problem: data, loss and schedule.
        plan: the model and its learning rates; its own outputs are used for their gradients alone.
        record: ``(time,)`` steps to keep.
        two_time: whether to keep kernels at pairs of times.
        steps: 0..problem.steps, possibly wrapped in a progress bar.

    Raises:
        ConvergenceError: if the outputs stop being finite.
    """
    recorder = Recorder(plan, probe_of(problem), schedule=record.tolist(), two_time=two_time, loss=problem.loss)
    optimizer = SGD(plan.param_groups(problem.lr), lr=problem.lr)
    kept, last = set(record.tolist()), int(record[-1])
    passes, lazy = Passes(recorder.subject), lazy_layers(plan)
    outputs = torch.zeros(problem.samples, problem.outputs, dtype=problem.dtype, device=problem.inputs.device)
    for step in steps:
        if step > last:
            break
        make_room(lazy, optimizer, problem.samples * (2 + problem.outputs))
        one = passes(problem.inputs, measured=True)
        taken = one.measure()
        if step in kept:
            recorder.step = step
            recorder.keep(replace(taken, outputs=outputs))
        if step == last:
            continue  # a progress bar ends at 100 %
        error = problem.error(outputs, step)
        one.backward(error)
        optimizer.step()
        rows = error.numel()
        outputs = outputs + problem.lr * (taken.ntk.reshape(rows, rows) @ error.flatten()).reshape(error.shape)
        require_finite(problem, outputs, step + 1)
    return replace(recorder.trajectory(), lr=problem.lr, targets=known_targets(problem))
