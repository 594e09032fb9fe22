"""solve(problem, solver): one verb for every method of the theory."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from torch_dmft.core.arguments import checked
from torch_dmft.core.divergence import explodes_at
from torch_dmft.core.errors import ConvergenceError, InvalidInputError
from torch_dmft.core.factors import tolerance_of
from torch_dmft.core.own_arithmetic import own_arithmetic
from torch_dmft.core.prints import data_print, printed_rows
from torch_dmft.core.ranks import ranks
from torch_dmft.core.replacing import path_of
from torch_dmft.core.stability import NEAR_THE_EDGE, curvatures
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.choose import choose
from torch_dmft.theory.fitting import what_fits
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.sharing import Sharing
from torch_dmft.theory.solver import Solver, shareable
from torch_dmft.uses.outputs import rows, tensors


@checked
@own_arithmetic()
def solve(
    problem: Problem,
    solver: Solver | None = None,
    *,
    record: Iterable[int] | int | Tensor | None = None,
    two_time: bool | float = False,
    progress: bool = False,
    distributed: bool = False,
    log: str | Path | None = None,
) -> Trajectory:
    """Predict what the network does: kernels, outputs and loss through training.

    Computed in the dtype of the problem, also inside of autocast and inference mode.

    Args:
        problem: the question, see ``Problem``.
        solver: the method, one of ``torch_dmft.solvers``; None takes the most accurate affordable one, and the answer's
            metadata say which and why.
        record: step or steps to keep, integers in 0..problem.steps; None keeps all. State t is the one *before* update t.
        two_time: keep kernels at pairs of times, ``(time, sample, time, sample)``, not only at equal times; or a tolerance for
            many recorded steps (``two_time=0.01``), to which ``kernel.between(t, s)`` is right at any two of them without that
            array (``torch_dmft.core.factors``), for solvers that sample neurons. Standard errors are at equal times then.
        progress: show progress bars, which solver was chosen and what it is expected to cost.
        distributed: divide the replicas of ``InfiniteWidth`` and ``GradientIndependence`` among the processes of
            ``torch.distributed``, which all make this call; other methods are run by the first process. The group is the one
            that there is, of any backend, or is made as torchrun says. Each process holds what a single one would.
        log: folder in which finished replicas of these two methods are kept, for the same call to go on from after a kill,
            or for one of more replicas.

    Returns:
        A ``Trajectory`` on the CPU, the same in every process; ``stderr`` holds the method's standard error where it has one.

    Raises:
        InvalidInputError: if `problem` or `solver` have another type, or the steps to record are not the problem's.
        UnsupportedProblemError: if the method does not cover the problem; the message names one that does.
        ConvergenceError: if the method fails or training diverges; nothing unconverged is returned.
        InsufficientMemoryError: if the estimate of what is needed exceeds what is free.
        LostProcessError: if another process has ended. What one process raises all raise.
    """
    tolerance_of(two_time)
    folder = None if log is None else path_of(log, remedy="a folder, which is made if there is none")
    with ranks(several=distributed) as processes:
        shown = progress and processes.is_first
        return _solved(problem, solver, record, two_time=two_time, progress=shown, sharing=Sharing(processes, folder))


def _solved(
    problem: Problem,
    solver: Solver | None,
    record: Iterable[int] | int | Tensor | None,
    *,
    two_time: bool | float,
    progress: bool,
    sharing: Sharing,
) -> Trajectory:
    """The answer; see ``solve``."""
    processes, facts = sharing.ranks, dict[str, str | int | float | bool | None]()
    asked = record

    def questioned() -> tuple[torch.device, Iterable[int] | int | Tensor | None]:
        is_listed = asked is None or isinstance(asked, int | range | Tensor)
        return _posed(problem).device, asked if is_listed else problem.recorded(asked)  # iterators give numbers once

    device, record = processes.agree(questioned)
    has_to_choose = processes.is_first and solver is None
    chosen = processes.agree(lambda: choose(problem, record, two_time=two_time) if has_to_choose else None)
    chosen = processes.shared(chosen)
    if solver is None and chosen is not None:
        solver, facts["chosen because"] = chosen
        if progress:
            print(f"{type(solver).__name__}: {facts['chosen because']}")
    alongside, method = processes.on_this_machine(device), solver

    def ready() -> Tensor:
        """Refuse what cannot be solved, and say what it will cost."""
        if isinstance(method, type) or not isinstance(method, Solver):
            raise InvalidInputError(
                "Expected a solver.", got=repr(method), remedy="a method with its settings, such as solvers.StaticNTK()"
            )
        method.check(problem)
        cost = method.estimate(problem, record, two_time=two_time)
        if progress:
            print(f"{type(method).__name__}, {cost}" + (f", in each of {alongside} processes" if alongside > 1 else ""))
        together = replace(cost, memory=alongside * cost.memory)
        together.admit(problem, remedy=lambda: what_fits(method, problem, record, two_time=two_time))
        return problem.recorded(record)

    steps = processes.agree(ready)
    started = time.perf_counter()
    assert solver is not None  # else ready() has raised
    trajectory = _run(solver, problem, steps, two_time=two_time, progress=progress, sharing=sharing).to("cpu")
    _require_sane(trajectory, problem)
    facts["seconds"] = processes.shared(time.perf_counter() - started)
    if processes.size > 1:
        facts["processes"] = processes.size if shareable(solver) else 1
    answer = replace(
        _marked(trajectory, problem), solver=type(solver).__name__, metadata={**facts, **trajectory.metadata}
    )
    if len(answer.steps) and bool(answer.train.any()) and answer.ntk is not None:
        mine = problem.kept[(problem.kept < problem.train_samples)]
        curvature = curvatures(answer.outputs, answer.ntk, answer.train, lambda f: problem.loss_on(f, mine))
        answer = replace(answer, curvature=curvature)
        if processes.is_first:
            _warn_near_the_edge(answer)
    return answer


def _posed(problem: Problem) -> Problem:
    """A problem, or an error that says how to pose one."""
    if not isinstance(problem, Problem):
        raise InvalidInputError(
            "Expected a Problem.",
            got=type(problem).__name__,
            remedy="recorder.problem() of a run, Problem.like(plan, probe, ...) or Problem.mlp(...)",
        )
    return problem


def _run(
    solver: Solver, problem: Problem, steps: Tensor, *, two_time: bool | float, progress: bool, sharing: Sharing
) -> Trajectory:
    """The method's answer: of replicas that processes share, else of the first process."""
    if shareable(solver):
        return solver.run_shared(problem, steps, two_time=two_time, progress=progress, sharing=sharing)
    processes = sharing.ranks
    if sharing.log is not None and processes.is_first:
        name = type(solver).__name__
        warnings.warn(
            f"{name} has no replicas to keep in {sharing.log}: a run that is killed starts again.", stacklevel=3
        )
    if processes.size == 1:
        return solver.run(problem, steps, two_time=two_time, progress=progress)

    def alone() -> Trajectory | None:
        first = processes.is_first
        return solver.run(problem, steps, two_time=two_time, progress=progress).to("cpu") if first else None

    answer = processes.shared(processes.agree(alone))
    assert answer is not None  # of the first
    return answer


def _marked(answer: Trajectory, problem: Problem) -> Trajectory:
    """An answer, and the networks that it is the mean of, with the prints of the problem's data: solvers may turn theirs."""
    seen = problem.kept[printed_rows(len(problem.kept)).to(problem.kept.device)]
    return replace(
        answer,
        training=replace(answer.training, data_print=problem.training.data_print),
        network=problem.network.functions,
        probe_print=data_print(len(problem.kept), *tensors(rows(problem.inputs, seen))),
        replicas=tuple(_marked(replica, problem) for replica in answer.replicas),
    )


def _warn_near_the_edge(found: Trajectory) -> None:
    """Warn that training is so close to instability that networks will not repeat the prediction."""
    edge = torch.zeros(1, device="cpu") if found.edge is None else found.edge.nan_to_num(0.0)
    if float(edge.max()) > NEAR_THE_EDGE:
        step = int(found.steps[edge.argmax()])
        warnings.warn(
            f"At step {step} the learning rate is {float(edge.max()):.2g} of the largest stable one. Near 1 training is "
            "chaotic: networks, and replicas of this prediction, depart from each other. Trust a comparison at a smaller rate.",
            stacklevel=6,  # two decorators are in between
        )


def _require_sane(found: Trajectory, problem: Problem) -> None:
    """Refuse an answer that is not finite or has exploded, such as that of a training run that diverges between the steps.

    Raises:
        ConvergenceError: naming the step from which on it has.
    """
    remedy = f"an lr smaller than {problem.training.rate}"
    kernels = [kernel for layer in found.layers for kernel in (layer.forward, layer.backward)]
    if not all(bool(torch.isfinite(array).all()) for array in (found.outputs, *(kernel.array for kernel in kernels))):
        raise ConvergenceError(f"The solution is not finite in {problem.dtype}: training diverges.", remedy=remedy)
    known = problem.probe is None or bool((problem.probe < problem.train_samples).any())
    if not known:
        return
    if not bool(torch.isfinite(found.losses).all()):
        step = int(found.steps[(~torch.isfinite(found.losses)).nonzero()[0]])
        raise ConvergenceError(
            "The loss of the solution is not finite: training diverges, or the loss is not defined there.",
            got=f"a loss of {float(found.losses[(found.steps == step).nonzero()[0]]):g} at step {step}",
            remedy=remedy,
        )
    start = float(problem.kept_loss(problem.zeros(len(problem.kept))))
    at = explodes_at(found, start)
    if at is not None:
        raise ConvergenceError(
            "Training diverges: outputs grow without end.",
            got=f"outputs of {float(found.outputs[at].square().mean().sqrt()):.2g} and a loss of "
            f"{float(found.losses[at]):.2g} at step {int(found.steps[at])}",
            remedy=remedy,
        )
