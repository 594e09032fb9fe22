"""InfiniteWidth: train the infinite-width twin of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.core.listed import listed
from torch_dmft.core.numbers import require_number, require_whole
from torch_dmft.core.ranks import Ranks
from torch_dmft.core.series import is_ever
from torch_dmft.core.trajectory import Trajectory, combine
from torch_dmft.theory.chains.assembly import about_the_probe
from torch_dmft.theory.checks import require_generator
from torch_dmft.theory.cost import Cost, twin_cost
from torch_dmft.theory.engine.balanced import require_unbalanced
from torch_dmft.theory.engine.posed import enough_neurons, is_closed, renamed, rotated, twin_of
from torch_dmft.theory.engine.strides import check_strides, train_in_strides
from torch_dmft.theory.engine.training import lazy_layers, rows_at_once, train_and_record
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.replicas import average, replica_generators
from torch_dmft.theory.sharing import Sharing
from torch_dmft.theory.solver import SEES, method, require_training
from torch_dmft.theory.stepping import track
from torch_dmft.theory.tolerance import balanced_tolerance, default_tolerance

COVERS = SEES | {"groups", "frozen", "starts", "uniform starts", "muon", "adam"}
"""What a twin is trained by: SGD itself, Muon and Adam."""

Train = Callable[..., Trajectory]
"""Trains a model on a problem and records it, with the signature of ``train_and_record``."""

_STRIDE = 1.5
"""By how many tolerances a stride may miss. Answers are then off by a tenth to a fifth of their sampling error, beside what
other draws of later directions make of it (one to three layers of tanh, cross entropy, gamma0 = .1 to 3), and by up to a half
at gamma0 = 10."""

_LINEAR = 1e-5
"""Tolerance of linear chains, whose features and gradients stay in few directions: ten more than at 1e-2 leave rounding."""
_COARSEST = 0.5
"""Largest tolerance of the run that shows what the tolerance leaves out."""


@method
@dataclass(frozen=True)
class InfiniteWidth:
    r"""Dynamical mean field theory by training the infinite-width twin of the network.

    Solves the field equations of Bordelon & Pehlevan 2022 (eqs. 9 and 10) in discrete time: S neurons per width carry the
    fields h and z, and the Gaussian weight matrices between them are sampled only along the features and gradients that
    training produces (``torch_dmft.theory.engine.matrix``). The responses A and B, the equal-time one included, come out
    of that sampling; nothing is iterated.

    Assumes N -> infinity at fixed data, steps and gamma0. Any loss, several outputs, minibatches, everything that
    ``torch.optim.SGD`` does (schedules of every number, momentum, Nesterov, dampening, weight decay, groups with numbers of
    their own), ``torch.optim.Muon`` of hidden matrices (``torch_dmft.theory.engine.muon``) beside SGD, Adam or AdamW of
    everything else, Adam and AdamW of all weights, frozen parameters, weights that start at zero, biases, gains, unequal
    widths, embeddings, residual sums, LayerNorm, RMSNorm, GroupNorm, layer scales, dropout of neurons and attention with a
    fixed number of heads.

    Cost O(S P k T) per hidden matrix, where the rank k, of order P C, grows like log T for smooth activations; memory O(S k),
    and O(P^2 T) for the answer. (The paper's Algorithm 1: O(P^3 T^3) and O(P^2 T^2), Table 1.) The error falls like
    1/sqrt(S R).

    What Adam teaches a hidden matrix has the rank S, and is kept entry by entry (``torch_dmft.theory.engine.lazy_layer``): then
    the cost is that of networks of width S, O(S^2 P T) and O(S^2), so that many replicas of few neurons, 1024 or 2048, cost
    less than few of many.

    Convolutions are covered, at a rank that grows with the pixels; ``metadata["saturated"]`` tells where it met S, so that
    the answer is one for networks of S channels. Refuses layers that ``infinite_width`` refuses (BatchNorm),
    Langevin noise, Adam (not AdamW) of hidden matrices with weight decay, and data with more than S / 4 rows and gradients,
    n (1 + C).

    Args:
        neurons: S, neurons per replica and width.
        replicas: R, independent runs; their mean is the answer and their spread gives the standard error, of which 1.96 are
            half a 95% interval of Student's t (``torch_dmft.theory.error_bars``). It does not contain the bias of order 1/S
            that they share, 0.8 bars of the loss of 4 x 512 neurons at most; it falls like 1/sqrt(S) beside the bar.
        tolerance: relative part of a feature or gradient vector that may be ignored; None for
            min(1e-2, 1.5/sqrt(S R)) * min(1, gamma0), for 0.25 (S R)^(-1/4) in place of the minimum where SGD trains
            activations with kinks and 0.2 (S R)^(-1/4) where it sees minibatches (``torch_dmft.theory.tolerance``), and 1e-5
            for linear chains. These sampling leaves exact: their standard error is the difference to one more run, by single
            steps at twice the tolerance.
        generator: source of randomness; None for a fresh one with seed 0.
        strides: take several steps at once while the tangent kernel moves along a parabola, as it does at the end of
            training; see ``torch_dmft.theory.engine.strides``. The answer then costs as many passes as features need to
            learn, ``metadata["passes"]``, instead of T, and is off by a tenth to a half of the sampling error, by other
            amounts in every replica, so that most of it is in the standard error.
            Kinks and minibatches make kernels jitter, and save little. For chains without momentum and weight decay;
            ``solve(problem)`` takes strides where it can.
    """

    neurons: int = 8192
    replicas: int = 4
    tolerance: float | None = None
    generator: torch.Generator | None = None
    strides: bool = False

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        require_whole("neurons", self.neurons, at_least=16)
        require_whole("replicas", self.replicas, at_least=1)
        if self.tolerance is not None:
            require_number("tolerance", self.tolerance, at_least=0, below=1)
        require_generator(self.generator)

    def check(self, problem: Problem) -> None:
        """Refuse networks without a twin, and data with more rows than the neurons have directions for."""
        problem.network.require_law()
        name = type(self).__name__
        require_training(problem, name, COVERS | {"rule"} if type(self) is InfiniteWidth else COVERS)
        require_rule(problem, name)
        _refuse_coupled_decay(problem)
        if self.strides:
            check_strides(problem)
        if 4 * rows_at_once(problem) * (1 + problem.outputs) > self.neurons:
            raise UnsupportedProblemError(
                "`neurons` must be larger: each row of the data needs its own directions among the neurons.",
                got=f"{rows_at_once(problem)} rows and {problem.outputs} outputs for {self.neurons} neurons",
                remedy=f"solvers.InfiniteWidth(neurons={enough_neurons(problem)})",
            )
        require_unbalanced(problem)

    def estimate(
        self, problem: Problem, record: Iterable[int] | int | Tensor | None = None, *, two_time: bool | float = False
    ) -> Cost:
        """What solving the problem will cost; ``print`` it. ``solve(..., progress=True)`` shows it before it starts.

        How many steps a stride will take is not known before: with strides time and operations are those of every step.
        """
        recorded = problem.number_recorded(record)
        if self.strides:  # a recorded step lies between two passes
            recorded = min(2 * recorded, problem.steps + 1)
        cost = twin_cost(
            problem,
            neurons=self.neurons,
            replicas=self.replicas,
            recorded=recorded,
            two_time=two_time,
            whole=not is_closed(problem),
        )
        return replace(cost, most=self.strides)

    def run(self, problem: Problem, record: Tensor, *, two_time: bool | float, progress: bool) -> Trajectory:
        """Train ``replicas`` twins and average; see ``solve``."""
        return self.run_shared(problem, record, two_time=two_time, progress=progress, sharing=Sharing(Ranks()))

    def run_shared(
        self, problem: Problem, record: Tensor, *, two_time: bool | float, progress: bool, sharing: Sharing
    ) -> Trajectory:
        """The same, with the twins divided among processes."""
        train: Train = train_and_record
        shown: dict[str, Any] = {"two_time": two_time, "progress": progress}
        if self.strides and problem.probe is not None:  # all rows, in another order
            answer = self.run_shared(replace(problem, probe=None), record, **shown, sharing=sharing)
            return about_the_probe(problem, answer)
        if self.strides:
            # The tolerance falls with gamma0 like the movement of features. Lazy kernels move by gamma0^2, but jitter by what
            # the tolerance leaves out; outputs move as far as ever.
            tolerance, lazy = self.tolerance_for(problem), min(1.0, problem.gamma0)
            if self.tolerance is None:  # where directions may be few, strides are not longer for it
                tolerance = min(tolerance, default_tolerance(problem.gamma0, self.neurons * self.replicas))
            allowed = max(1.0, _STRIDE * lazy) * tolerance, _STRIDE * tolerance / lazy
            train = partial(train_in_strides, tolerances=allowed)
        answer = train_replicas(self, problem, record, **shown, origin="theory (N=inf)", train=train, sharing=sharing)
        if answer.stderr is None or not _is_linear(problem):
            return answer
        coarser = replace(self, replicas=1, tolerance=min(2 * self.tolerance_for(problem), _COARSEST))
        other = train_replicas(coarser, problem, record, **shown, origin="twice the tolerance", sharing=sharing)
        return replace(answer, stderr=combine([answer.stderr, answer, other], _left_out))

    def tolerance_for(self, problem: Problem) -> float:
        """The tolerance of a problem's twins."""
        if self.tolerance is not None:
            return self.tolerance
        if _is_linear(problem):
            return _LINEAR
        return balanced_tolerance(problem, self.neurons * self.replicas)


def require_rule(problem: Problem, solver: str) -> None:
    """Refuse a learning rule of other networks than chains, or beside other optimizers than SGD.

    Raises:
        UnsupportedProblemError: naming what is in the way.
    """
    traits = problem.training.traits
    if "rule" not in traits:
        return
    beside = [text for trait, text in traits.items() if trait in ("muon", "adam", "noise")]
    if problem.chain is None:
        beside.append("a network that is no chain")
    if beside:
        raise UnsupportedProblemError(
            f"{solver} covers learning rules of plain chains, trained with SGD.",
            got=f"{traits['rule']}, and {' and '.join(beside)}",
            remedy='rule="gradient", or SGD',
        )


def _refuse_coupled_decay(problem: Problem) -> None:
    """Refuse Adam that divides a hidden weight, of size 1/sqrt(N), by the root of its square: gradients are of size 1/N."""
    training = problem.training
    coupled = [
        name
        for name in problem.network.hidden
        if name not in training.frozen
        and training.kind(name) == "Adam"
        and is_ever(training.number("weight_decay", name))
    ]
    if coupled:
        raise UnsupportedProblemError(
            "Adam must not decay hidden weights: beside their gradients the decay grows like the square root of the width.",
            got=f"weight decay of {listed(coupled)}",
            remedy="torch.optim.AdamW, which decays alike at every width",
        )


def _is_linear(problem: Problem) -> bool:
    """Whether a network is a linear chain trained by linear maps of its fields, of which sampling makes no error."""
    is_linear = problem.chain is not None and all(layer.activation == "linear" for layer in problem.chain.hidden)
    return is_linear and "adam" not in problem.training.traits


def _left_out(arrays: Sequence[Tensor]) -> Tensor:
    """Standard errors, with the difference between two answers, root mean square over entries, added in quadrature."""
    errors, one, other = arrays
    difference = (one - other).double().reshape(len(errors), -1).square().mean(1)
    return (errors.double().square() + difference.reshape(-1, *[1] * (errors.ndim - 1))).sqrt().to(errors)


def train_replicas(
    solver: InfiniteWidth,
    problem: Problem,
    record: Tensor,
    *,
    two_time: bool | float,
    progress: bool,
    origin: str,
    sharing: Sharing,
    responses: bool = True,
    train: Train = train_and_record,
) -> Trajectory:
    """The mean over independently drawn twins of a problem's network, each trained and recorded by ``train``."""
    neurons, replicas, tolerance = solver.neurons, solver.replicas, solver.tolerance_for(problem)
    posed = rotated(problem)

    def trained(replica: int, own: torch.Generator) -> Trajectory:
        """One twin's run; the twin is forgotten before the next is drawn, as it may be larger than its answer."""
        plan = twin_of(posed, neurons, tolerance=tolerance, generator=own, law="limit", responses=responses)
        bar = track(range(problem.steps + 1), f"{origin}: replica {replica + 1} of {replicas}", progress=progress)
        more = {"generator": own} if plan.architecture.train_differs else {}
        run = train(posed, plan, record, two_time=two_time, steps=sharing.steps(bar), **more)
        lazy = lazy_layers(plan)
        rank, saturated = max((max(layer.rank) for layer in lazy), default=0), any(layer.saturated for layer in lazy)
        return replace(run, metadata={**run.metadata, "rank": rank, "saturated": saturated})

    one = replace(solver, replicas=1, tolerance=tolerance, generator=None)
    settings = (one, type(one).__name__, responses, record, two_time)
    runs = sharing.runs(posed, replica_generators(solver.generator, replicas), trained, settings)
    saturated = any(run.metadata["saturated"] for run in runs)
    facts: dict[str, str | int | float | bool | None]
    facts = {
        "neurons": neurons,
        "replicas": replicas,
        "tolerance": tolerance,
        "rank": max(int(run.metadata["rank"] or 0) for run in runs),
        "saturated": saturated,
    }
    if "passes" in runs[0].metadata:
        facts["passes"] = max(int(run.metadata["passes"] or 0) for run in runs)
    if saturated:
        facts["advice"] = (
            f"these are networks of width {neurons}: solvers.WideEnsemble() extrapolates such to infinite width"
        )
    follows = problem.training.optimizers == "SGD" and problem.training.rule == "gradient"
    answer = average(runs, origin=origin, metadata=facts, loss=posed.kept_loss, follows_ntk=follows)
    return renamed(answer, problem)
