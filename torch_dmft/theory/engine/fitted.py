"""Twins trained to predict: as long as the loss of rows that were held out falls, and asked for any rows afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_dmft.core.loss import Loss
from torch_dmft.measurement.subject import subject_of
from torch_dmft.parameterization import Plan
from torch_dmft.theory.engine.closed import closed
from torch_dmft.theory.engine.passes import Passes
from torch_dmft.theory.engine.posed import twin_of
from torch_dmft.theory.engine.training import Moment, train
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.replicas import replica_generators
from torch_dmft.theory.stepping import track

_BLOCK = 1024
"""Rows that are passed at once."""
_TRIED = 256
"""Rows at most that the start is looked at on."""


@dataclass
class HeldOut:
    """Rows that are not trained on, and when to stop by them.

    Attributes:
        inputs: ``(row, D)``.
        targets: of these.
        loss: of outputs and targets.
        epoch: steps between two looks.
        patience: looks without a smaller loss after which training stops.
        losses: at every look.
        best: the twin at the least of them.
        best_at: and the steps until then.
    """

    inputs: Tensor
    targets: Tensor
    loss: Loss
    epoch: int
    patience: int
    losses: list[float] = field(default_factory=list)
    best: nn.Module | None = None
    best_at: int = 0

    def watched(self, steps: Iterable[int], model: nn.Module) -> Iterator[int]:
        """The steps, until training should stop."""
        self.losses, self.best, self.best_at = [], None, 0
        for step in steps:
            yield step
            if (step + 1) % self.epoch == 0:
                self._look(step + 1, model)
                if step + 1 - self.best_at >= self.patience * self.epoch:
                    return

    def _look(self, step: int, model: nn.Module) -> None:
        loss = float(self.loss(outputs_of(model, self.inputs), self.targets))
        if not self.losses or loss < min(self.losses):
            self.best, self.best_at = copy.deepcopy(model), step
        self.losses.append(loss)


@dataclass(frozen=True)
class Fitted:
    """Trained twins.

    Attributes:
        models: one per replica.
        steps: that they were trained.
        start: root mean square of f, before training, of rows that the first step did not meet: 0 at infinite width, noise of
            the sample of neurons, in proportion to 1 / (gamma0 sqrt(S)), in a twin.
    """

    models: tuple[nn.Module, ...]
    steps: int
    start: float

    def outputs(self, inputs: Float[Tensor, "row dim"]) -> Float[Tensor, "replica row output"]:
        """F of any rows."""
        return torch.stack([outputs_of(model, inputs) for model in self.models])


def fit_twins(
    problem: Problem,
    neurons: int,
    replicas: int,
    tolerance: float,
    generator: torch.Generator,
    held_out: HeldOut | None = None,
    *,
    progress: bool = False,
) -> Fitted:
    """Train the twins of a problem's network; with rows held out, all as long as was best for the first.

    Args:
        problem: a chain and its training.
        neurons: S.
        replicas: R.
        tolerance: of the bases.
        generator: source of randomness.
        held_out: what to stop by; None for all steps.
        progress: whether to show it.
    """
    steps, models, starts = problem.steps, [], []
    further = problem.tensor[:0] if held_out is None else held_out.inputs
    for replica, own in enumerate(replica_generators(generator, replicas)):
        plan = twin_of(problem, neurons, tolerance=tolerance, generator=own, law="limit", responses=True)
        run = track(range(steps), f"replica {replica + 1} of {replicas}", progress=progress)
        watch = held_out if replica == 0 else None
        view = _Batches(problem, plan, further)
        train(problem, plan, view, watch.watched(run, plan.model) if watch else run, last=problem.steps)
        models.append(plan.model)
        starts.append(view.start)
        if watch is not None and watch.best is not None:
            steps, models = watch.best_at, [watch.best]
    start = float(torch.tensor(starts, dtype=torch.float64, device="cpu").square().mean().sqrt())
    return Fitted(tuple(model.requires_grad_(requires_grad=False).eval() for model in models), steps, start)


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: Float[Tensor, "row dim"]) -> Float[Tensor, "row output"]:
    """F of any rows, each as if it came alone."""
    with closed(model):
        return torch.cat([model(block) for block in inputs.split(_BLOCK)])


class _Batches:
    """A twin passed by the rows of each batch; nothing is measured but its outputs of other rows at the start.

    Args:
        problem: a chain and its training.
        plan: the twin.
        further: rows that are held out.
    """

    def __init__(self, problem: Problem, plan: Plan, further: Float[Tensor, "row dim"]) -> None:
        self._problem, self._passes = problem, Passes(subject_of(plan, problem.tensor[:2]))
        self._model, self._further, self.start = plan.model, further, 0.0

    def __call__(self, step: int, *, measured: bool, trained: bool) -> Moment:
        """Pass the batch of a step."""
        problem, rows = self._problem, self._problem.rows_of(step)
        one = self._passes(problem.tensor[rows], measured=measured)
        if step == 0:
            self.start = self._size(problem.tensor, rows)
        return Moment(one.outputs, lambda: one.backward(problem.error_on(one.outputs, rows)))

    def _size(self, inputs: Float[Tensor, "row dim"], met: Tensor) -> float:
        """Root mean square of f of rows that were not met; where all were, of means of neighbours, at their size."""
        is_met = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
        is_met[met] = True
        others = torch.cat([self._further, inputs[~is_met]])
        if not len(others):
            others = (inputs + inputs.roll(1, 0)) / 2**0.5
        return float(outputs_of(copy.deepcopy(self._model), others[:_TRIED]).double().square().mean().sqrt())
