"""Infinitely deep residual networks: the engine's predictions at several depths, extrapolated in 1 / L."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from torch_dmft.core.arguments import checked, typed
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import require_whole
from torch_dmft.core.prints import prints_agree
from torch_dmft.core.series import first_difference
from torch_dmft.core.trajectory import LayerKernels, Trajectory, combine
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solve import solve
from torch_dmft.theory.solver import Solver
from torch_dmft.theory.solvers.infinite_width import InfiniteWidth


@typed
@dataclass(frozen=True, eq=False)
class DepthLimit:
    """A residual network of infinite width and depth, and the depths that it was extrapolated from; print it.

    Attributes:
        depths: numbers of blocks.
        predictions: what was predicted at each of them.
        limit: the limit, with as many blocks as the shallowest network: the kernels of block b are those at the share b / L of
            the depth. Weights of the stream have no NTK of their own, as there each adds nothing; ``limit.ntk`` is the whole.
    """

    depths: tuple[int, ...]
    predictions: tuple[Trajectory, ...]
    limit: Trajectory

    def __repr__(self) -> str:
        return f"<DepthLimit of {', '.join(str(depth) for depth in self.depths)} blocks: {self.limit!r}>"

    def __str__(self) -> str:
        heads = f"{'blocks':>8}  {'loss':>10}  {'±':>8}  {'outputs':>9}  {'NTK':>9}"
        lines = [f"Step {int(self.limit.steps[-1])}; outputs and NTK: distance from the limit, relative", heads]
        for name, run in [*zip(self.depths, self.predictions, strict=True), ("infinite", self.limit)]:
            error = float("nan") if run.stderr is None else float(run.stderr.losses[-1])
            apart = [_distance(run.outputs, self.limit.outputs)]
            if run.ntk is not None and self.limit.ntk is not None:
                apart.append(_distance(run.ntk.equal_time, self.limit.ntk.equal_time))
            shown = "  ".join(f"{distance:9.3g}" for distance in apart)
            lines.append(f"{name:>8}  {float(run.losses[-1]):10.4g}  {error:8.2g}  {shown}")
        return "\n".join(lines)


@checked
def infinite_depth(
    problem_of: Callable[[int], Problem],
    depths: Sequence[int] = (4, 8, 16),
    solver: Solver | None = None,
    *,
    record: Iterable[int] | int | Tensor | None = None,
    progress: bool = False,
) -> DepthLimit:
    r"""Predict what an infinitely wide and infinitely deep residual network does.

    With branches of L^-1/2 or L^-1, and rates that go with them (``parameterize(..., depth=)``), the field theory of L blocks
    is the Euler scheme of a stochastic or an ordinary differential equation in the share of the depth, of weak order one:

    .. math:: y_L = y_\infty + b / L + c / L^2 + \ldots

    The limit is where the straight line in 1/L through the two deepest networks meets 1/L = 0. Where the line through the two
    before meets it tells how far from straight the dependence is; that distance, which for depths that double is three times
    the error that c makes, is in the error as far as it is more than the solver's own (Bordelon, Noci, Li, Hanin & Pehlevan
    2023, arXiv 2309.16620; Yang, Yu, Zhu & Hayou 2023, arXiv 2310.02244; Dey et al. 2025, arXiv 2505.01618). Outputs,
    Phi, G and the NTK are extrapolated; the loss is that of the outputs.

    Args:
        problem_of: number of blocks -> the problem of a network with so many, wrapped with ``depth=``; else the same.
        depths: three or more numbers of blocks, each a multiple of the first.
        solver: what predicts at each depth; default ``InfiniteWidth(2048)``.
        record: step or steps to keep; None keeps all.
        progress: show progress bars.

    Returns:
        The limit and the predictions that it follows from.

    Raises:
        InvalidInputError: if depths are too few or no multiples, or problems differ in more than their depth.
        UnsupportedProblemError: if the solver does not cover a problem.
    """
    for depth in depths:
        require_whole("depths", depth, at_least=1)
    counts = tuple(depths)
    if len(counts) < 3 or any(a >= b for a, b in pairwise(counts)) or any(depth % counts[0] for depth in counts):
        raise InvalidInputError(
            "`depths` must be three numbers of blocks or more, growing, each a multiple of the first.",
            got=repr(counts),
            remedy="depths=(4, 8, 16)",
        )
    solver = solver or InfiniteWidth(2048)
    problems = [_posed(problem_of, depth) for depth in counts]
    _refuse_others(problems, counts)
    places = [_stream(problem, depth) for problem, depth in zip(problems, counts, strict=True)]
    found = [solve(problem, solver, record=record, progress=progress) for problem in problems]
    alike = [_at_shares(run, stream, places[0]) for run, stream in zip(found, places, strict=True)]
    before, line = (_at_zero(counts[end - 2 : end]) for end in (len(counts) - 1, len(counts)))
    apart = [-before[0], line[0] - before[1], line[1]]

    def extrapolated(values: Sequence[Tensor]) -> Tensor:
        return _sum(line, values[-2:])

    def error(parts: Sequence[Tensor]) -> Tensor:
        values, variances = parts[: len(counts)], [part.square() for part in parts[len(counts) :]]
        bent = _sum(apart, values[-3:]).square()
        if not variances:
            return bent.sqrt()
        bent = (bent - _sum([w**2 for w in apart], variances[-3:])).clamp(min=0)
        return (bent + _sum([w**2 for w in line], variances[-2:])).sqrt()

    limit, own = combine(alike, extrapolated), [run.stderr for run in alike if run.stderr is not None]
    losses = torch.stack([problems[0].training_loss(at) for at in limit.outputs]).to(limit.losses)
    limit = replace(
        limit,
        losses=losses,
        stderr=combine([*alike, *(own if len(own) == len(alike) else ())], error),
        origin="theory (N=inf, L=inf)",
        metadata={**limit.metadata, "depths": ", ".join(str(depth) for depth in counts)},
    )
    return DepthLimit(counts, tuple(found), limit)


def _posed(problem_of: Callable[[int], Problem], depth: int) -> Problem:
    problem = problem_of(depth)
    if not isinstance(problem, Problem):
        raise InvalidInputError(
            "`problem_of` must return a Problem.",
            got=type(problem).__name__,
            remedy="Problem.like(parameterize(network(depth), inputs, depth='1/sqrt(L)'), probe, lr=..., steps=...)",
        )
    return problem


def _refuse_others(problems: Sequence[Problem], counts: Sequence[int]) -> None:
    """Refuse problems that are no residual networks of one scaling, data and training."""
    first = problems[0]
    for problem, count in zip(problems, counts, strict=True):
        plan = problem.network.plan
        if plan is None or plan.depth is None:
            raise InvalidInputError(
                "A limit in depth needs residual branches that are scaled with their number.",
                got=f"the problem of {count} blocks, whose network was wrapped without depth=",
                remedy="parameterize(model, inputs, depth='1/sqrt(L)') or '1/L', then Problem.like(plan, probe, ...)",
            )
        facts = [
            ("depth=", plan.depth, first.network.plan.depth if first.network.plan else None),
            ("gamma0", problem.gamma0, first.gamma0),
            ("steps", problem.steps, first.steps),
            ("outputs", problem.outputs, first.outputs),
            ("rows", problem.samples, first.samples),
        ]
        other = [f"{name} {mine} instead of {theirs}" for name, mine, theirs in facts if mine != theirs]
        mine, theirs = problem.training, first.training
        if not prints_agree(mine.data_print, theirs.data_print):
            other.append("other data")
        if not prints_agree(mine.loss_print, theirs.loss_print):
            other.append("another loss")
        if mine.optimizers != theirs.optimizers:
            other.append(f"optimizer {mine.optimizers} instead of {theirs.optimizers}")
        for name in sorted({*mine.numbers, *theirs.numbers}):
            if first_difference(mine.number(name), theirs.number(name), max(problem.steps, 1)) is not None:
                other.append(f"another {name}")
        if other:
            raise InvalidInputError(
                "Problems of several depths must differ in nothing but their number of blocks.",
                got=f"of {count} blocks: {', '.join(other)}",
                remedy="one function that builds network and problem from the number of blocks",
            )


def _stream(problem: Problem, depth: int) -> tuple[list[int], int]:
    """Which of the weights are in the stream, in order, and how many of them a block has."""
    plan = problem.network.plan
    parts = {} if plan is None else {rule.name: rule.part for rule in plan.rules}
    layers = [] if plan is None else plan.architecture.layers
    inside = [at for at, layer in enumerate(layers) if parts.get(layer.weight)]
    if not inside or len(inside) % depth:
        raise InvalidInputError(
            "Every block must have the same number of weights in the residual stream.",
            got=f"{len(inside)} weights in {depth} blocks",
            remedy="problem_of(depth) with so many equal blocks",
        )
    return inside, len(inside) // depth


def _at_shares(run: Trajectory, stream: tuple[list[int], int], first: tuple[list[int], int]) -> Trajectory:
    """A run with the weights that the shallowest has, those of its stream at the same shares of the depth.

    Block b of L reads the stream at b / L, and gradients reach it at (b + 1) / L.
    """
    inside, count = stream
    if count != first[1]:
        raise InvalidInputError(
            "Blocks must be alike at every depth.",
            got=f"{count} and {first[1]} weights in a block",
            remedy="problem_of(depth) with equal blocks",
        )
    times = len(inside) // len(first[0])

    def chosen(some: Trajectory) -> tuple[LayerKernels, ...]:
        layers: list[LayerKernels] = [layer for at, layer in enumerate(some.layers) if at not in inside]
        blocks = []
        for position in range(len(first[0])):
            block, place = divmod(position, count)
            reads, sends = (some.layers[inside[at * count + place]] for at in (times * block, times * (block + 1) - 1))
            name = some.layers[inside[position]].name
            blocks.append(replace(reads, name=name, backward=sends.backward, ntk=None, fields=None))
        return (*layers[: inside[0]], *blocks, *layers[inside[0] :])

    error = None if run.stderr is None else replace(run.stderr, layers=chosen(run.stderr))
    return replace(run, layers=chosen(run), stderr=error, replicas=())


def _at_zero(depths: Sequence[int]) -> tuple[float, float]:
    """What the values at two depths count where the straight line in 1 / L through them meets zero."""
    shallow, deep = depths
    return -shallow / (deep - shallow), deep / (deep - shallow)


def _sum(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum(0)


def _distance(one: Tensor, other: Tensor) -> float:
    """At the last step, relative to the other."""
    return float((one[-1] - other[-1]).norm() / other[-1].norm())
