r"""Lazy or rich: how far features and the tangent kernel move while a network learns, measured without theory.

A network is *lazy* if its tangent kernel K stays where it is: its outputs are then those of kernel regression with K(0). With
a squared error the part e of the outputs' error along an eigenvector of K falls as de/dt = -k e. If K changes by a relative
eps on the way, e(t) is between exp(-kt) and exp(-k (1 + eps) t) times its start, which differ by at most

.. math:: \max_t\, \epsilon\, k t\, e^{-kt} = \epsilon / e .

So the kernel machine of K(0) knows the outputs to eps/e of the initial error, with eps the movement |K(T) - K(0)| / |K(0)|:
4% at eps = 0.1, below which a network is called lazy, 18% at eps = 0.5, from which on it is called rich. Movement grows with
what is learned, so that it means nothing before something is: the first steps of every network are lazy.

The margin of stability is how many times larger the steps could be. For SGD that is 2 / (lr lambda_max(K H)), H the curvature
of the loss by the outputs, with momentum as in ``torch_dmft.core.stability``. The steps of optimizers that divide the gradient
by its size have no such eigenvalue: for them it is the c up to which their first step, without a memory of others, lowers the
loss, to first order in the change of the outputs: L(f + c df) < L(f). Along an eigenvector descent has the same of either.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from torch_dmft.architecture import Role
from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.kernel import movement
from torch_dmft.core.loss import Loss
from torch_dmft.core.numbers import require_whole
from torch_dmft.core.random_state import random_state_kept
from torch_dmft.core.steppers import unwrapped
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement.probe import Probe
from torch_dmft.measurement.probe_loss import ProbeLoss
from torch_dmft.measurement.recorder import Recorder
from torch_dmft.measurement.subject import Subject
from torch_dmft.parameterization import Plan
from torch_dmft.uses.outputs import Runs, Selection, count, moved, output_rows, rows

LAZY, RICH = 0.1, 0.5
"""Movements of the tangent kernel below which a network is lazy, and from which on it is rich."""
LEARNED = 0.1
"""Share of the first loss at which something is learned, so that training for ``richness`` stops."""
_ENOUGH = 0.5
"""Share of the first loss below which a kernel that stayed says that the network is lazy."""
_NEAREST, _FARTHEST = 1e-2, 1e6
"""Between which a margin is looked for: nearer, rounding hides whether the loss falls."""


@dataclass(frozen=True)
class Richness:
    """How far a network moved while it learned.

    Attributes:
        steps: T, the steps that were trained.
        losses: on the training rows before the first step and after the last.
        features: weight -> movement |Phi(T) - Phi(0)| / |Phi(0)| of the features that it reads; 0 for the first.
        ntk: movement |K(T) - K(0)| / |K(0)| of the tangent kernel; None if it was not recorded.
        gamma0: effective richness of the initial weights, 1 / (rms of the readout * N_L); None if there is no readout that is
            known, or it starts at zero.
        margin: how many times larger the steps could be before the loss rises: of SGD the smallest of all records, of others
            that of the first step.
        margin_by: what the margin is of, in words.
    """

    steps: int
    losses: tuple[float, float]
    features: Mapping[str, float]
    ntk: float | None
    gamma0: float | None
    margin: float
    margin_by: str

    @property
    def moved(self) -> float:
        """The movement of the tangent kernel, or, where that was not recorded, the largest of the features."""
        return max(self.features.values(), default=math.nan) if self.ntk is None else self.ntk

    @property
    def verdict(self) -> str:
        """One of "lazy", "between", "rich", "diverged", and "not decided" if too little was learned to call a kernel lazy.

        Of a loss that is negative nobody knows how much was learned: then it is "rich" or "not decided".
        """
        if not all(map(math.isfinite, (*self.losses, self.moved))):
            return "diverged"
        if self.moved >= RICH:
            return "rich"
        if min(self.losses) < 0 or self.losses[1] > _ENOUGH * self.losses[0]:
            return "not decided"
        return "lazy" if self.moved < LAZY else "between"

    @property
    def sentence(self) -> str:
        """The verdict with its reasons."""
        name, last = "the tangent kernel" if self.ntk is not None else "the features", list(self.features.values())[-1:]
        fell = f"the loss went from {self.losses[0]:.3g} to {self.losses[1]:.3g} in {self.steps} steps"
        said = f"{name} moved by {self.moved:.2g} of its size while {fell}"
        meaning = {
            "lazy": f"{said}: kernel regression with the initial kernel knows the outputs to {self.moved / math.e:.1%}",
            "between": f"{said}: neither {LAZY:g}, lazy, nor {RICH:g}",
            "rich": f"{said}: features are learned, and no fixed kernel describes the network",
            "diverged": fell,
            "not decided": f"{said}; {self._open}",
        }[self.verdict]
        parts = [f"last features moved by {last[0]:.2g}"] if last and self.ntk is not None else []
        parts += [] if self.gamma0 is None else [f"gamma0 = {self.gamma0:.3g}"]
        parts += [f"steps could be {self.margin:.2g} times as large ({self.margin_by})"] if self.margin_by else []
        return f"{self.verdict}: {meaning}. {'; '.join(parts)}".rstrip(". ") + "."

    @property
    def _open(self) -> str:
        """Why nothing is decided."""
        if min(self.losses) < 0:
            return "a loss that is negative does not say how much of the task is learned: give one that is 0 at the end, loss="
        return "learn more before judging: more steps=, or a larger learning rate"

    def __str__(self) -> str:
        return self.sentence


@checked
def richness(
    model_or_run: Plan | nn.Module | Recorder | Trajectory,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    probe: Probe | None = None,
    *,
    loss: Loss | None = None,
    steps: int = 1000,
    outputs: Selection | None = None,
) -> Richness:
    """Whether a network is lazy or rich: how far its tangent kernel moves while it learns, with any optimizer.

    A copy of the model is trained by a copy of the optimizer, on the training rows of the probe, all in one batch, until the
    loss is a tenth of what it is now; model, optimizer and random states stay as they are. Or judge a run that a recorder has
    seen.

    Args:
        model_or_run: a plan or any module, as it is now; or a recorder or trajectory of a run from its start.
        optimizer: what trains it, or all of them.
        probe: inputs and targets, some dozens of samples.
        loss: ``loss(outputs, targets) -> scalar``; default as in ``Recorder``.
        steps: at most so many.
        outputs: which of the model's outputs is f, as in ``Recorder``.

    Returns:
        Movements, gamma0 and margin; print it for a sentence, or ask for its ``verdict``.

    Raises:
        InvalidInputError: without an optimizer and a probe with targets, if the model cannot be copied, or for an optimizer
            that calls the loss itself (L-BFGS).

    Example:
        >>> print(dmft.richness(model, optimizer, dmft.Probe(inputs, targets)))  # doctest: +SKIP
    """
    if isinstance(model_or_run, Recorder | Trajectory):
        return _of_run(model_or_run if isinstance(model_or_run, Trajectory) else model_or_run.trajectory())
    require_whole("steps", steps, at_least=1)
    optimizers = (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer or ())
    if not optimizers or probe is None or probe.targets is None:
        raise InvalidInputError(
            "A model is judged by how it learns.",
            got=f"{len(optimizers)} optimizers, {'no probe' if probe is None else 'a probe'}",
            remedy="richness(model, optimizer, Probe(inputs, targets)), or richness(recorder) of a run",
        )
    if any(isinstance(one, LBFGS) for one in optimizers):
        raise InvalidInputError(
            "The optimizer must step without a closure.",
            got="LBFGS",
            remedy="record a run and judge it: richness(recorder)",
        )
    with random_state_kept({one.device for group in optimizers[0].param_groups for one in group["params"]}):
        model, steppers = _copies(model_or_run, optimizers)
        return _trained(model, steppers, probe, loss, steps, outputs)


def _copies(model: Plan | nn.Module, optimizers: Sequence[Optimizer]) -> tuple[Plan | nn.Module, tuple[Optimizer, ...]]:
    """Model and optimizers anew, the one's parameters in the others' groups; hooks and schedulers of optimizers stay behind."""
    try:
        made: tuple[Plan | nn.Module, tuple[Optimizer, ...]] = copy.deepcopy(
            (model, tuple(unwrapped(one) for one in optimizers))
        )
    except Exception as error:
        raise InvalidInputError(
            "Model and optimizer must be such that copy.deepcopy can copy them.",
            got=f"{type(error).__name__}: {error}".rstrip("."),
            remedy="record a run and judge it: richness(recorder)",
        ) from error
    return made


def _trained(
    model: Plan | nn.Module,
    optimizers: Sequence[Optimizer],
    probe: Probe,
    loss: Loss | None,
    steps: int,
    outputs: Selection | None,
) -> Richness:
    """Train a model that nobody needs any more, and judge it."""
    module = model.model if isinstance(model, Plan) else model
    recorder = Recorder(model, probe, schedule=[0], loss=loss, outputs=outputs, fields=False)
    gamma0 = _effective_gamma0(recorder.subject)
    of_outputs = ProbeLoss(recorder.subject, probe, loss)
    run = Runs(module, outputs)
    device = next(module.parameters()).device
    batch = moved(rows(probe.inputs, probe.train_rows.nonzero().flatten()), device)

    def forward() -> Tensor:
        return output_rows(run(batch), count(batch))

    def step() -> float:
        for optimizer in optimizers:
            optimizer.zero_grad()
        value = of_outputs(forward())
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
        return float(value.detach())

    before = forward().detach()
    memories = [optimizer.state for optimizer in optimizers]
    initial = copy.deepcopy(module.state_dict())
    for optimizer in optimizers:
        optimizer.state = defaultdict(dict)
    step()
    room = _room(of_outputs, before, forward().detach())
    module.load_state_dict(initial)
    for optimizer, memory in zip(optimizers, memories, strict=True):
        optimizer.state = memory
    with recorder.attach(*optimizers):
        start = now = step()
        while not 0 <= now <= LEARNED * start and now < math.inf and recorder.step < steps:
            now = step()
    if recorder.step != int(recorder.records[-1].steps):
        recorder.record()
    return _of_run(recorder.trajectory(), gamma0=gamma0, room=room)


def _of_run(run: Trajectory, *, gamma0: float | None = None, room: float | None = None) -> Richness:
    if len(run.steps) < 2:
        raise InvalidInputError(
            "A run must be recorded twice at least, before and after it has learned.",
            got=f"{len(run.steps)} record",
            remedy="train inside `with recorder.attach(optimizer):`",
        )
    edge = None if run.edge is None else run.edge[run.edge.isfinite()]
    if edge is not None and len(edge) and float(edge.max()) > 0:
        margin, by = 1 / float(edge.max()), "2 / lr over the largest curvature"
    elif room is not None:
        margin, by = room, "before the optimizer's first step raises the loss"
    else:
        margin, by = math.nan, ""
    if gamma0 is None and run.training.scheme == "mean_field":
        gamma0 = run.training.gamma0
    return Richness(
        steps=int(run.steps[-1]) - int(run.steps[0]),
        losses=(float(run.losses[0]), float(run.losses[-1])),
        features={layer.name: float(movement(layer.forward)[-1]) for layer in run.layers},
        ntk=None if run.ntk is None else float(movement(run.ntk)[-1]),
        gamma0=gamma0,
        margin=margin,
        margin_by=by,
    )


def _effective_gamma0(subject: Subject) -> float | None:
    """1 / (rms of the readout * N_L), as the weights are now; that of the plan, if it is mean-field."""
    if subject.plan.scheme == "mean_field":
        return subject.gamma0
    readout = next((layer for layer in subject.architecture.layers if layer.role is Role.READOUT), None)
    if readout is None:
        return None
    size = float(subject.model.get_parameter(readout.weight).detach().double().square().mean().sqrt())
    return 1 / (size * readout.fan_in) if size else None


def _room(loss: Callable[[Tensor], Tensor], before: Tensor, after: Tensor) -> float:
    """The largest c with L(f + c df) < L(f), by bisection of log c, for a step that changes the outputs f by df."""
    with torch.no_grad():
        start, change = float(loss(before)), after - before
        if not change.any():
            return math.inf

        def lowers(c: float) -> bool:
            return float(loss(before + c * change)) < start

        low, high = _NEAREST, _FARTHEST
        if not lowers(low):
            return 0.0
        if lowers(high):
            return math.inf
        for _ in range(40):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if lowers(middle) else (low, middle)
    return low
