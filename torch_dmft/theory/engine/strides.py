r"""Strides: several steps of gradient descent at once, while the tangent kernel moves along a parabola.

Late in training features hardly move, while errors decay slowly under a kernel that is nearly constant. Over a stride
from step a the kernel is continued along the parabola through its last three measurements, and the outputs follow it step by
step, in P C numbers instead of P S. What the kernel moves with are the weights, and these with the sum of the error signals
:math:`\Delta`, so the parabola is one in the sum and not in time: as errors decay, the kernel comes to rest. With D the sum of
:math:`\eta \Delta` over the stride before, from a - m' to a, and :math:`L_i(s)` the polynomials of Lagrange,

.. math::
    f(t + 1) = f(t) + \eta K\big(s(t) + \tfrac14 [s(t + 1) - s(t)]\big) \Delta(t), \qquad
    K(s) = \sum_i L_i(s)\, K(s_i), \qquad s(t) = \frac{D \cdot \sum_{a \le j < t} \eta \Delta(j)}{D \cdot D} ,

where :math:`s_i` is 0 here, -1 at a - m', and less at the end of the stride before that one.
(A step of its own moves outputs by J(middle of the step) J(t)^T, which is a quarter of the way to the next kernel.)
The weights then take the sum of the updates, whose error signals are those of this recursion and whose features and
gradients are continued likewise (three-step Adams-Bashforth in the features, exact in the error signals).
A stride of one step is a step of gradient descent. The next pass through the network measures the error of the forecast, and
that of one through two states: where kernels jitter, as with kinks and minibatches, the line tells more.
Recorded steps within a stride lie on the straight line between its ends, so a stride is no longer than kernels are straight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement import Recorder, Snapshot
from torch_dmft.measurement.fields import handful
from torch_dmft.parameterization import Plan
from torch_dmft.theory.engine.between_passes import interpolated
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
_SAFETY = 0.7
"""Share of the tolerance that a stride is meant to miss by."""
_GROWTH = 2
"""How many times longer than the last a stride may be."""
_MIDDLE = 0.25
"""Where between two kernels the one is that moves outputs by a step."""
_STRETCH = 1.3
"""Factor by which a stride may be longer if it then ends at a step where one must end."""
_SAG = 0.3
"""By how many tolerances the kernel may leave the straight line between the ends of a stride. With it, and strides that miss by
half as much again, passes are a tenth to a third fewer than with straight forecasts, and errors alike: .1 to .2 sampling errors
of 4 x 1024 neurons (one to three layers of tanh, cross entropy, gamma0 = 3; ten seeds)."""
_BEHIND = 0.1
"""How far, in units of the last stride, a state must lie behind the one before it for the parabola to pass through it."""
_TINY = 1e-30
"""Smallest miss and length, so that they can be divided by."""


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
        ways: D after 1..m steps, the sum of the error signals times the rates, ``(m, sample, output)``.
        parts: the same sums for each state i, every term times L_i(s) at its step, ``(m, state, sample, output)``.
        ntk: K after 1..m steps, ``(m, row, row)``.
        start: K before the first step.
        progress: s after 1..m steps.
    """

    outputs: Tensor
    ways: Tensor
    parts: Tensor
    ntk: Tensor
    start: Tensor
    progress: Sequence[float]

    def first(self, steps: int) -> _Forecast:
        """The part of so many steps."""
        cut = {name: getattr(self, name)[:steps] for name in ("outputs", "ways", "parts", "ntk", "progress")}
        return replace(self, **cut)

    @property
    def sags(self) -> Float[Tensor, " m"]:
        """By how much K, in the middle of 1..m steps, is off the straight line from its start, relatively."""
        told = torch.cat([self.start[None], self.ntk])
        ends = torch.arange(1, len(told), device=told.device)
        gaps = told[ends // 2] + told[(ends + 1) // 2] - self.start - self.ntk
        return torch.linalg.vector_norm(gaps, dim=(1, 2)) / (2 * torch.linalg.vector_norm(self.start))

    @property
    def shares(self) -> Float[Tensor, " m"]:
        """Which share of the stride is done after 1..m steps, from 0 to 1."""
        return _along(self.ways, self.ways[-1]).clamp(0, 1)

    def misses(self, there: _State) -> tuple[float, float]:
        """Relative errors of the forecast of the kernel and of the outputs."""
        f, told = there.one.outputs, self.outputs[-1]
        rounding = math.sqrt(torch.finfo(f.dtype).eps * f.numel())  # outputs that should be zero are off by far less
        outputs = float((told - f).norm()) / (float(f.norm()) + rounding)
        return float((self.ntk[-1] - there.ntk).norm() / there.ntk.norm()), outputs

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
    trajectory = finished(problem, interpolated(recorder.trajectory(), record, f, strider.shares[record.cpu()]))
    return replace(trajectory, metadata={**trajectory.metadata, "passes": strider.passed})


class _Strider:
    """Takes strides, each as long as the miss of the last allows."""

    def __init__(self, problem: Problem, plan: Plan, passes: Passes, tolerances: tuple[float, float]) -> None:
        self.problem, self.passes, self.tolerances = problem, passes, tolerances
        self.lazy: list[LazyLayer] = lazy_layers(plan)
        # At a base rate of one: that of every step is in the sums of error signals. Making an optimizer of torch.optim takes
        # longer than a prediction, as it loads what compiles it.
        rates = {parameter: group["lr"] for group in plan.param_groups(1.0) for parameter in group["params"]}
        named = plan.model.named_parameters()
        self.model = plan.model
        self.rates: dict[str, float] = {name: rates[parameter] for name, parameter in named if parameter in rates}
        self.past: list[tuple[_State, Tensor]] = []  # up to two states before, the last first, each with D from it on
        self.states = 3  # how many the kernel is continued through
        self.bend = 0.0  # miss, in tolerances, by ``curve``
        self.shares = torch.ones(problem.steps + 1, dtype=torch.double, device="cpu")
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
            forecast = self.forecast(here, min(left, int(_STRETCH * self.length)))
            steps = self.within(forecast)
            if left <= _STRETCH * steps:
                steps = left
            forecast = forecast.first(steps)
            if forecast.finite or steps == 1:
                self.move(here, forecast)
                there = self.look(here.step + steps)
                miss = max(m / allowed for m, allowed in zip(forecast.misses(there), self.tolerances, strict=True))
                if steps == 1 or miss <= _TAKEN_BACK:
                    break
                self.take_back()
            self.length = max(1.0, steps / 2)
            self.caution = self.wait = min(2 * self.caution, _CAUTION)
        if self.past:
            miss = self.learn(here, forecast, there)
        self.bend = miss / max(float(self.curve(forecast)[-1]), _TINY)
        self.length = self.length if self.wait else float(_GROWTH * steps)
        self.caution = self.caution if self.wait else max(1, self.caution // 2)
        self.wait = max(0, self.wait - 1)
        self.pass_by(here, forecast)
        gap = there.one.outputs.double() - forecast.outputs[-1]
        shares = forecast.shares
        outputs = forecast.outputs + shares[:, None, None] * gap
        self.shares[here.step + 1 : there.step + 1] = shares.cpu()
        return there, outputs.to(there.one.outputs.dtype)

    def learn(self, here: _State, forecast: _Forecast, there: _State) -> float:
        """Continue the kernel through as many states as told the end of a stride best: where it jitters, through fewer.

        Returns:
            The miss, in tolerances, of a forecast through so many.
        """
        for_kernel, for_outputs = self.tolerances
        known, ways = self.known(here), [way for _, way in self.past]
        misses = {}
        for states in range(2, len(known) + 1):
            weights = known.new_tensor(_Line(ways[: states - 1]).weights(forecast.progress[-1]))
            told = torch.tensordot(weights, known[:states], 1)
            misses[states] = float((told - there.ntk).norm() / there.ntk.norm())
        self.states = min(misses, key=misses.__getitem__)
        return max(misses[self.states] / for_kernel, forecast.misses(there)[1] / for_outputs)

    def known(self, here: _State) -> Float[Tensor, "state row row"]:
        """K here and at the states before."""
        return torch.stack([here.ntk, *(state.ntk for state, _ in self.past)])

    def pass_by(self, here: _State, forecast: _Forecast) -> None:
        """Keep the state that a stride began at for the next forecasts, and the one before if it lies behind."""
        way = forecast.ways[-1]
        if not bool(way.any()):  # it led nowhere
            return
        behind = [(state, before) for state, before in self.past[:1] if float(_along(before, way)) > _BEHIND]
        self.past = [(here, way), *behind]

    def within(self, forecast: _Forecast) -> int:
        """How many of the steps of a forecast the tolerance allows, one at least."""
        straight = forecast.sags <= _SAG * self.tolerances[0]
        allowed = straight & (self.bend * self.curve(forecast) <= _SAFETY)
        return max(1, min(int(allowed.int().cumprod(0).sum()), int(self.length)))

    def curve(self, forecast: _Forecast) -> Float[Tensor, " m"]:
        """What a polynomial through states misses, up to a factor: the product of the distances from them."""
        product = distance = torch.linalg.vector_norm(forecast.ways, dim=(1, 2))
        for _, way in self.past[: self.states - 1]:
            distance = distance + torch.linalg.vector_norm(way)
            product = product * distance
        return product

    def forecast(self, here: _State, steps: int) -> _Forecast:
        """Let the outputs follow the tangent kernel."""
        f = here.one.outputs.double()
        known = self.known(here)[: self.states]
        line = _Line([way for _, way in self.past[: self.states - 1]])
        outputs, errors, progress = [], [], [0.0]
        for at in range(here.step, here.step + steps):
            error = self.problem.training.at("lr", at) * error_signal(self.problem, f, at)
            progress.append(progress[-1] + line.along(error))
            middle = line.weights(progress[-2] + _MIDDLE * (progress[-1] - progress[-2]))
            f = f + (f.new_tensor(middle) @ (known @ error.flatten())).reshape(f.shape)
            outputs.append(f)
            errors.append(error)
        updates, weights = torch.stack(errors), f.new_tensor([line.weights(s) for s in progress])
        parts = (weights[:-1, :, None, None] * updates[:, None]).cumsum(0)
        ntk = torch.tensordot(weights[1:], known, 1)
        return _Forecast(torch.stack(outputs), updates.cumsum(0), parts, ntk, known[0], progress[1:])

    def move(self, here: _State, forecast: _Forecast) -> None:
        """Give the weights the sum of the stride's updates."""
        make_room(self.lazy, [], self.problem.samples * (2 + self.problem.outputs))
        parameters, total = self.parameters(), None
        for state, part in zip([here, *(state for state, _ in self.past)], forecast.parts[-1], strict=False):
            if total is None or bool(part.any()):
                state.one.backward(part.to(here.one.outputs.dtype))
                gradients = [parameter.grad for parameter in parameters]
                total = gradients if total is None else [_sum(*both) for both in zip(total, gradients, strict=True)]
        assert total is not None  # here is a state
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient
        self.descend()

    def take_back(self) -> None:
        """Undo the last ``move``."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.neg_()
        self.descend()

    @torch.no_grad()
    def descend(self) -> None:
        """A step of plain gradient descent, as that of ``torch.optim.SGD``."""
        for parameter, rate in zip(self.parameters(), self.rates.values(), strict=True):
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-rate)

    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [self.model.get_parameter(name) for name in self.rates]


class _Line:
    """The coordinate s: 0 here, -1 where the last stride began.

    Args:
        ways: D of the last stride and of those before it.
    """

    def __init__(self, ways: Sequence[Tensor]) -> None:
        self._direction = ways[0] if ways else None
        self._nodes = [0.0]
        for way in ways:
            self._nodes.append(self._nodes[-1] - self.along(way))

    def along(self, way: Float[Tensor, "sample output"]) -> float:
        """By how much s grows on a way."""
        return 0.0 if self._direction is None else float(_along(way, self._direction))

    def weights(self, s: float) -> list[float]:
        """L_i(s): of the values at all states, in the value at s of the polynomial through them."""
        nodes = self._nodes
        others = [nodes[:i] + nodes[i + 1 :] for i in range(len(nodes))]
        return [
            math.prod(((s - other) / (node - other) for other in apart), start=1.0)
            for node, apart in zip(nodes, others, strict=True)
        ]


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of gradients, of which frozen parameters have none; the first is overwritten."""
    return one if other is None else other if one is None else one.add_(other)


def _along(ways: Float[Tensor, "*m sample output"], direction: Float[Tensor, "sample output"]) -> Float[Tensor, "*m"]:
    """How far ways lead in a direction, in units of its length."""
    return (ways * direction).sum((-2, -1)) / direction.square().sum().clamp(min=_TINY)
