"""transfer: how well the best learning rate of a set-up holds at other widths, or along any other axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor

from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import ConvergenceError, InvalidInputError
from torch_dmft.core.numbers import SMALLEST, require_number, require_whole
from torch_dmft.core.replacing import path_of
from torch_dmft.core.users_functions import called
from torch_dmft.referee.ledger import Ledger
from torch_dmft.referee.one_run import final_loss, of_value, takes_rate, trained
from torch_dmft.referee.optimum import AROUND
from torch_dmft.referee.random_data import require_same_targets
from torch_dmft.referee.setup import Batches, Factory, set_up
from torch_dmft.referee.sweep import Sweep
from torch_dmft.referee.transferred import Transferred
from torch_dmft.referee.workers import Told, Workers

_RATES = tuple(4.0**power for power in range(-7, 2))
_FACTORS = tuple(4.0**power for power in range(-3, 4))
_LARGEST = 10**6
_TOLD = "True, or a function of (runs done, about how many, seconds left, last run)"
_THEORY = "a function lr -> loss, or -> the losses of the steps, of which the last quarter is averaged"


@checked
def transfer(
    factory: Factory,
    widths: Sequence[int] = (64, 128, 256, 512),
    *,
    lrs: Sequence[float] | None = None,
    steps: int = 100,
    seeds: int = 3,
    data: Batches | None = None,
    axis: str = "width",
    theory: Callable[[float], Any] | None = None,
    log: str | Path | None = None,
    processes: int | None = 1,
    tolerance: float = 0.15,
    accept: float = 0.02,
    progress: bool | Told = False,
) -> Transferred:
    """Train a set-up at several widths and rates: is the best rate the same at each, and what does it cost if not?

    The loss is the mean over the last quarter of the steps, on the batches that are trained on. At each width its minimum is
    placed by a parabola in log lr through five rates a factor 2 apart, with an interval from the seeds; the exponent of the
    best rate in the width, with its interval, is the verdict. Rates are found by the sweep itself, coarse first, then fine
    (``torch_dmft.referee.sweep``).

    Args:
        factory: ``(width, lr) -> model, optimizer`` and, if need be, ``loss``, with ``lr`` its argument of this name; or of the
            width alone, as ``check`` takes it: rates are then factors of those that its optimizers have.
        widths: values of the axis, from small to large, which the factory is given.
        lrs: rates (or factors) that are tried first, to within a factor 2; the best may lie beyond. Default: powers of 4 from
            4^-7 to 4 as rates, from 1/64 to 64 as factors.
        steps: of every training.
        seeds: networks at every width and rate; 3 or more for an interval.
        data: ``data(seed)`` -> batches, or ``(batches, loss)``; or the batches. None: the model's own example, or random rows.
            ``data(seed, value)``, with a second argument that has no default, knows the value of the axis, as of a batch size.
        axis: what the widths are called if they are none: "depth", "batch size", "heads".
        theory: the loss at infinite width, ``lr -> loss``, shown beside: for example of ``solve(problem at lr).losses``.
        log: file of JSON lines that keeps every run; the same call goes on from it after a kill.
        processes: how many networks train at once; None for as many as there are processors.
        tolerance: largest exponent that counts as none: 0.15 is a factor 1.4 in the rate over a factor 8 in the width.
        accept: relative cost of a transferred rate that is called enough.
        progress: show a progress bar with the time left; or a function of (runs done, about how many, seconds left, last run).

    Returns:
        The result; print it.

    Example:
        >>> print(dmft.transfer(make, (64, 128, 256), lrs=(1e-3, 1e-1), data=batches))  # doctest: +SKIP

    Raises:
        InvalidInputError: for fewer than two widths, if the factory fails, there is no best rate, or the log is of another
            sweep.
        InsufficientMemoryError: if a process was killed.
        NotWrittenError: if the log cannot be written.
    """
    if not axis.isprintable() or not axis:
        raise InvalidInputError("`axis` must be a word.", got=repr(axis), remedy="axis='depth'")
    values = _require_settings(widths, lrs, steps, seeds, processes, tolerance, accept)
    by_rate = takes_rate(factory)
    rates = (_RATES if by_rate else _FACTORS) if lrs is None else tuple(lrs)
    base = min(rates)
    coarse = sorted({round(math.log2(rate / base)) for rate in rates})
    made = (lambda value: factory(value, lr=base)) if by_rate else factory  # type: ignore[call-arg]
    ends = {value: set_up(made, value, 0, of_value(data, value)).notes for value in (values[0], values[-1])}
    require_same_targets(ends.items(), axis)
    notes = ends[values[0]]
    if not by_rate:
        notes = (*notes, "rates are factors of those that the optimizers have, as the factory has no argument lr")
    about = {"axis": axis, "steps": steps, "base": base, "factory": _name(factory), "data": _name(data)}
    with Workers(trained, factory, data, processes) as workers, _Bar(progress) as told:
        ledger = Ledger(None if log is None else path_of(log, remedy="log='runs.jsonl'"), about)
        sweep = Sweep(values, base, coarse, steps, seeds, ledger, workers, told, {})
        sweep.run()
    runs = tuple(
        sorted(
            (run for run in ledger if run.value in values and run.seed < seeds),
            key=lambda run: (run.value, run.power, run.seed),
        )
    )
    return Transferred(
        axis=axis,
        values=values,
        base=base,
        seeds=seeds,
        steps=steps,
        runs=runs,
        best=dict(sweep.best),
        theory=None if theory is None else _of_theory(theory, sweep),
        takes_rate=by_rate,
        tolerance=tolerance,
        accept=accept,
        notes=notes,
    )


def _require_settings(
    widths: Sequence[int],
    lrs: Sequence[float] | None,
    steps: int,
    seeds: int,
    processes: int | None,
    tolerance: float,
    accept: float,
) -> tuple[int, ...]:
    for width in widths:
        require_whole("widths", width, at_least=1, at_most=_LARGEST)
    values = tuple(sorted(set(widths)))
    if len(values) < 2:
        raise InvalidInputError(
            "`widths` must hold at least two different widths, as an exponent is fitted.",
            got=str(tuple(widths)),
            remedy="widths=(64, 128, 256, 512)",
        )
    if lrs is not None and not lrs:
        raise InvalidInputError("`lrs` must hold at least one rate.", got="none", remedy="lrs=(0.001, 0.01, 0.1)")
    for rate in lrs or ():
        require_number("lrs", rate, at_least=SMALLEST)
    require_whole("steps", steps, at_least=1, at_most=_LARGEST)
    require_whole("seeds", seeds, at_least=1, at_most=_LARGEST)
    if processes is not None:
        require_whole("processes", processes, at_least=1, at_most=_LARGEST)
    require_number("tolerance", tolerance, at_least=SMALLEST)
    require_number("accept", accept, at_least=SMALLEST)
    return values


def _of_theory(theory: Callable[[float], Any], sweep: Sweep) -> dict[int, float]:
    """Power -> loss at infinite width, around the best rate of the largest width and, from there, around its own."""
    found: dict[int, float] = {}
    center, seen = sweep.best[sweep.values[-1]], set[int]()
    while center not in seen and len(seen) < AROUND * AROUND:
        seen.add(center)
        for power in range(center - AROUND, center + AROUND + 1):
            if power not in found:
                found[power] = _loss_of(theory, sweep.rate(power))
        center = min(sorted(found), key=lambda power: found[power])
    return dict(sorted(found.items()))


def _loss_of(theory: Callable[[float], Any], lr: float) -> float:
    """The loss at infinite width; infinite where theory diverges."""
    try:
        loss = called("theory", theory, lr, remedy=_THEORY)
    except ConvergenceError:
        return math.inf
    losses = loss.detach() if isinstance(loss, Tensor) else torch.as_tensor(loss, device="cpu")
    return final_loss(losses.double().flatten().tolist()) if losses.numel() else math.inf


def _name(function: Any) -> str:
    """What a function is called, by which a log tells the sweep of one from that of another."""
    if function is None:
        return ""
    if isinstance(function, partial):
        return f"{_name(function.func)}{function.args}{function.keywords}"
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    return f"{module}:{name}" if name else type(function).__name__


class _Bar:
    """Progress on the terminal."""

    def __init__(self, progress: bool | Told) -> None:
        if isinstance(progress, type):
            raise InvalidInputError("`progress` must be a function.", got=repr(progress), remedy=_TOLD)
        self._told = None if isinstance(progress, bool) else partial(called, "progress", progress, remedy=_TOLD)
        columns = (TextColumn("transfer"), BarColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, transient=True) if progress is True else None

    def __enter__(self) -> Told | None:
        if self._bar is None:
            return self._told
        self._bar.start()
        task = self._bar.add_task("", total=None)

        def told(done: int, total: int, left: float, said: str) -> None:
            assert self._bar is not None
            minutes = f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
            text = f"{done} of about {total} runs, {minutes} left | {said}"
            self._bar.update(task, completed=done, total=total, description=text)

        return told

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
