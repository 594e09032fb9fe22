r"""Strides: several steps of gradient descent at once, while the tangent kernel moves along a straight line.

Late in training features hardly move, while errors decay slowly under a kernel that is nearly constant. Over a stride
of m steps from step a the kernel is continued along the line through its last two measurements, and the outputs follow it
step by step, in P C numbers instead of P S:

.. math:: f(t + 1) = f(t) + \eta K(t) \Delta(t), \quad K(a + j) = K(a) + \tfrac{j}{m'} [K(a) - K(a - m')] .

The weights then take the sum of the m updates, whose error signals are those of this recursion and whose features and
gradients are continued along their line likewise (two-step Adams-Bashforth in the features, exact in the error signals).
A stride of one step is a step of gradient descent. The next pass through the network measures the error of the forecast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import SGD, Optimizer

from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement import Recorder, Snapshot
from torch_dmft.measurement.fields import handful
from torch_dmft.parameterization import Plan
from torch_dmft.theory.engine.lazy_layer import LazyLayer
from torch_dmft.theory.engine.passes import Pass, Passes
from torch_dmft.theory.engine.training import finished, lazy_layers, make_room, probe_of
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solver import require_training
from torch_dmft.theory.stepping import error_signal, require_finite

_TAKEN_BACK = 4.0
"""A stride that misses by more than this many tolerances is taken back."""
_CAUTION = 32
"""Largest number of strides that must succeed before longer ones are tried again."""
_SAFETY = 0.9
"""Share of the length that would just meet the tolerance."""
_STRETCH = 1.3
"""Factor by which a stride may be longer if it then ends at a step where one must end."""
_TINY = 1e-30
"""Smallest miss, so that it can be divided by."""


def check_strides(problem: Problem) -> None:
    """Refuse training whose updates depend on more than the error signals of a stride.

    Raises:
        UnsupportedProblemError: naming what is in the way.
    """
    remedy = (
        "solvers.InfiniteWidth(strides=False); strides predict outputs from the tangent kernel, which does "
        "not contain velocities and decay"
    )
    require_training(
        problem, "Strides", frozenset({"schedule", "batches", "frozen", "starts", "uniform starts"}), remedy=remedy
    )
    if problem.probe is not None and len(torch.unique(problem.probe)) < problem.samples:
        raise UnsupportedProblemError(
            "With strides, the probe must contain all training rows.",
            got=f"a probe of {len(problem.probe)} of {problem.samples} rows",
            remedy="solvers.InfiniteWidth(strides=False)",
        )
    if problem.chain is None:
        raise UnsupportedProblemError(
            "Strides need a plain chain of linear layers and activations.",
            got="a network of another shape",
            remedy="solvers.InfiniteWidth(strides=False)",
        )


@dataclass(frozen=True, eq=False)
class _State:
    """The network before the update of a step: a pass through it and what was measured."""

    step: int
    one: Pass
    taken: Snapshot

    @property
    def ntk(self) -> Float[Tensor, "row row"]:
        rows = self.one.outputs.numel()
        return self.taken.known_ntk.reshape(rows, rows).double()


@dataclass(frozen=True, eq=False)
class _Forecast:
    """A stride before it is taken.

    Attributes:
        outputs: f after 1..m steps, ``(m, sample, output)``.
        ntk: K after m steps.
        total: sum of the error signals times the rates of their steps, ``(sample, output)``.
        later: the same sum, each times how far its step lies beyond the start in units of the stride before.
    """

    outputs: Tensor
    ntk: Tensor
    total: Tensor
    later: Tensor

    def misses(self, there: _State) -> tuple[float, float]:
        """Relative errors of the forecast of the kernel and of the outputs."""
        f, told = there.one.outputs, self.outputs[-1]
        rounding = math.sqrt(torch.finfo(f.dtype).eps * f.numel())  # outputs that should be zero are off by far less
        outputs = float((told - f).norm()) / (float(f.norm()) + rounding)
        return float((self.ntk - there.ntk).norm() / there.ntk.norm()), outputs

    @property
    def finite(self) -> bool:
        """Whether the outputs stayed finite although the kernel was extrapolated."""
        return bool(torch.isfinite(self.outputs).all())


def train_in_strides(
    problem: Problem,
    plan: Plan,
    record: Tensor,
    *,
    two_time: bool | float,
    steps: Iterable[int],
    tolerances: tuple[float, float],
) -> Trajectory:
    """Train a dense chain on a problem by strides and record it, between their ends along straight lines.

    Args:
        problem: data, loss and schedule that ``check_strides`` accepts.
        plan: a dense chain and its learning rates.
        record: ``(time,)`` steps to keep; a stride ends where fields are kept.
        two_time: whether to keep kernels at pairs of times.
        steps: 0..problem.steps, possibly wrapped in a progress bar.
        tolerances: by how much, relative to them, a forecast of the kernel and one of the outputs may miss.

    Raises:
        ConvergenceError: if the outputs stop being finite.
    """
    marks = [int(record[number]) for number in handful(len(record))]
    last = marks[-1]
    recorder = Recorder(plan, probe_of(problem), two_time=two_time, fields=marks)
    strider = _Strider(problem, plan, Passes(recorder.subject), tolerances)
    here, outputs = strider.look(0), []

    def keep(state: _State) -> None:
        if not recorder.records or int(recorder.records[-1].steps) < state.step:
            recorder.step = state.step
            recorder.keep(state.taken)

    kept = set(record.tolist())
    if 0 in kept:
        keep(here)
    outputs.append(here.one.outputs[None])
    for step in steps:
        if here.step == step < last:
            there, on_the_way = strider.stride(here, end=next(mark for mark in marks if mark > step))
            outputs.append(on_the_way)
            if not kept.isdisjoint(range(here.step + 1, there.step + 1)):
                keep(here)
                keep(there)
            here = there
    f = torch.cat(outputs).cpu()[record.cpu()]
    trajectory = finished(problem, interpolated(recorder.trajectory(), record, f))
    return replace(trajectory, metadata={**trajectory.metadata, "passes": strider.passed})


class _Strider:
    """Takes strides, each as long as the miss of the last allows."""

    def __init__(self, problem: Problem, plan: Plan, passes: Passes, tolerances: tuple[float, float]) -> None:
        self.problem, self.passes, self.tolerances = problem, passes, tolerances
        self.lazy: list[LazyLayer] = lazy_layers(plan)
        # At a base rate of one: that of every step is in the sums of error signals.
        self.optimizer: Optimizer = SGD(plan.param_groups(1.0), lr=1.0)
        self.before: _State | None = None
        self.length, self.passed = 1.0, 0
        self.caution, self.wait = 1, 0  # strides that must go well after one that was taken back; how many are left

    def look(self, step: int) -> _State:
        """Measure the network as it is."""
        one = self.passes(self.problem.tensor, measured=True)
        self.passed += 1
        require_finite(self.problem, one.outputs, step)
        return _State(step, one, one.measure())

    def stride(self, here: _State, *, end: int) -> tuple[_State, Float[Tensor, "step sample output"]]:
        """Go on from a state, not beyond ``end``.

        Returns:
            Where the network is then, and the outputs of all steps on the way and there.
        """
        while True:
            left = end - here.step
            steps = left if left <= _STRETCH * self.length else int(self.length)
            forecast = self.forecast(here, steps)
            if forecast.finite or steps == 1:
                self.move(here, forecast)
                there = self.look(here.step + steps)
                miss = max(m / allowed for m, allowed in zip(forecast.misses(there), self.tolerances, strict=True))
                if steps == 1 or miss <= _TAKEN_BACK:
                    break
                self.take_back()
            self.length = max(1.0, steps / 2)
            self.caution = self.wait = min(2 * self.caution, _CAUTION)
        # What a straight line misses grows with the square of the length.
        longest = self.length if self.wait else 2 * self.length
        self.length = max(1.0, min(_SAFETY * steps / math.sqrt(max(miss, _TINY)), longest))
        self.caution = self.caution if self.wait else max(1, self.caution // 2)
        self.wait = max(0, self.wait - 1)
        self.before = here
        gap = there.one.outputs.double() - forecast.outputs[-1]
        share = torch.arange(1, steps + 1, dtype=gap.dtype, device=gap.device)[:, None, None] / steps
        return there, (forecast.outputs + share * gap).to(there.one.outputs.dtype)

    def forecast(self, here: _State, steps: int) -> _Forecast:
        """Let the outputs follow the tangent kernel."""
        f, ntk = here.one.outputs.double(), here.ntk
        slope, unit = torch.zeros_like(ntk), 1
        if self.before is not None:
            unit = here.step - self.before.step
            slope = (ntk - self.before.ntk) / unit
        total, later, outputs = torch.zeros_like(f), torch.zeros_like(f), []
        for ahead in range(steps):
            at = here.step + ahead
            error = self.problem.training.at("lr", at) * error_signal(self.problem, f, at)
            total += error
            later += ahead / unit * error
            f = f + ((ntk + ahead * slope) @ error.flatten()).reshape(f.shape)
            outputs.append(f)
        return _Forecast(torch.stack(outputs), ntk + steps * slope, total, later)

    def move(self, here: _State, forecast: _Forecast) -> None:
        """Give the weights the sum of the stride's updates."""
        make_room(self.lazy, [self.optimizer], self.problem.samples * (2 + self.problem.outputs))
        parameters = self.parameters()
        dtype = here.one.outputs.dtype
        if self.before is None or not bool(forecast.later.any()):
            here.one.backward(forecast.total.to(dtype))
        else:
            self.before.one.backward(forecast.later.to(dtype))
            earlier = [parameter.grad for parameter in parameters]
            here.one.backward((forecast.total + forecast.later).to(dtype))
            for parameter, gradient in zip(parameters, earlier, strict=True):
                if parameter.grad is not None and gradient is not None:
                    parameter.grad -= gradient
        self.optimizer.step()

    def take_back(self) -> None:
        """Undo the last ``move``."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.neg_()
        self.optimizer.step()

    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def interpolated(
    trajectory: Trajectory,
    steps: Int[Tensor, " time"],
    outputs: Float[Tensor, "time sample output"],
) -> Trajectory:
    """A run at other steps: its kernels along straight lines between those recorded, outputs as given.

    Kernels stay positive: each is a mean of two with positive weights or, at two times, the Gram matrix of such means of
    fields.

    Args:
        trajectory: a run.
        steps: recorded steps, and others between two recorded ones.
        outputs: f at these steps.
    """
    known, wanted = trajectory.steps.double(), steps.to(trajectory.steps.device).double()
    mix = torch.ones(len(wanted), 1, dtype=known.dtype, device=known.device)
    if len(known) > 1:
        lower = (torch.searchsorted(known, wanted, right=True) - 1).clamp(max=len(known) - 2)
        share = (wanted - known[lower]) / (known[lower + 1] - known[lower])
        one_hot = torch.eye(len(known), dtype=known.dtype, device=known.device)
        mix = (1 - share)[:, None] * one_hot[lower] + share[:, None] * one_hot[lower + 1]

    def kernel(old: Kernel) -> Kernel:
        array = torch.tensordot(mix.to(old.array), old.array, 1)
        factors = None if old.factors is None else old.factors.mixed(mix)
        if old.is_two_time:
            half = array.ndim // 2
            array = torch.tensordot(mix.to(array), array.movedim(half, 0), 1).movedim(0, half)
        return Kernel(array, factors)

    layers = tuple(layer.each(kernel) for layer in trajectory.layers)
    steps = steps.to(trajectory.steps)
    losses = outputs.new_full((len(steps),), torch.nan)  # nobody asked
    return replace(
        trajectory,
        steps=steps,
        outputs=outputs,
        losses=losses,
        layers=layers,
        ntk=kernel(trajectory.known_ntk),
        curvature=None,
    )
