"""check: a verdict on anybody's set-up, from a function that makes it at a width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.progress import track

from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import require_number, require_whole
from torch_dmft.referee.judge import Rule
from torch_dmft.referee.measure import gathered, log_steps, run
from torch_dmft.referee.setup import Batches, Factory
from torch_dmft.referee.verdict import UNDECIDED, Verdict
from torch_dmft.referee.workers import Workers

_LARGEST = 10**6
"""Width, or number of steps or seeds, that nobody waits for."""


@checked
def check(
    factory: Factory,
    widths: Sequence[int] = (64, 128, 256, 512),
    *,
    steps: int = 16,
    seeds: int = 4,
    most_seeds: int | None = None,
    data: Batches | None = None,
    tolerance: float = 0.2,
    processes: int | None = 1,
    progress: bool = False,
) -> Verdict:
    r"""Train a set-up as it is at several widths, and see whether every weight does the same at each.

    Nothing is wrapped and no theory is asked, so any model, optimizer and loss will do. Of every operator that takes a weight
    is measured what the weight puts out at the start and, after log-spaced steps, the two parts of its change,

    .. math:: W_t x_t - W_0 x_0 = (W_t - W_0)\, x_t + W_0\, (x_t - x_0),

    as powers of the width, with intervals from the seeds. All are N^0 in a set-up whose hyperparameters hold at every width.

    Args:
        factory: ``width -> model``, ``(model, optimizer)``, or ``(model, optimizer, loss)`` with ``loss(model, batch) ->
            scalar``. Where a part is missing one is chosen, and said (``set_up``).
        widths: at least two; four that double are best.
        steps: how many are trained. Looked at are 1, 2, 4, ... and the last.
        seeds: initial weights and batches at every width. Exponents have their intervals from them: one seed decides nothing.
        most_seeds: while nothing is decided the seeds are doubled, up to so many. None: twice, to four times ``seeds``; give
            ``seeds`` again for no more than these. The chance of a false alarm is shared by all the times that are possible.
        data: ``data(seed)`` -> batches, or ``(batches, loss)``; or the batches. None: the model's own example, or random rows.
        tolerance: largest exponent that counts as none; corrections of finite width make up to 0.15 at widths of 64 to 512.
        processes: how many networks train at once, each in one thread; None for as many as there are processors.
        progress: show a progress bar.

    Returns:
        The verdict; print it.

    Raises:
        InvalidInputError: if there are fewer than two widths, the factory fails or makes no wider model, or the loss is not
            finite.
        InsufficientMemoryError: if a process was killed.
    """
    for width in widths:
        require_whole("one of the widths", width, at_least=1, at_most=_LARGEST)
    if len(set(widths)) < 2 or len(set(widths)) < len(widths):
        raise InvalidInputError(
            "`widths` must hold at least two different widths, as an exponent is fitted.",
            got=str(tuple(widths)),
            remedy="widths=(64, 128, 256, 512)",
        )
    require_whole("steps", steps, at_least=1, at_most=_LARGEST)
    require_whole("seeds", seeds, at_least=1, at_most=_LARGEST)
    most_seeds = 4 * seeds if most_seeds is None else most_seeds
    require_whole("most_seeds", most_seeds, at_least=seeds, at_most=4 * _LARGEST)
    require_number("tolerance", tolerance, at_least=0.01, below=0.5)
    if processes is not None:
        require_whole("processes", processes, at_least=1, at_most=_LARGEST)
    looked_at = log_steps(steps)
    counts = _counts(seeds, most_seeds)
    rule = Rule(tolerance=tolerance, looks=len(counts))
    runs: list[Any] = []
    with Workers(run, factory, data, processes) as workers:
        for last, count in zip((0, *counts), counts, strict=False):
            tasks = [(width, seed, looked_at) for seed in range(last, count) for width in widths]
            trained = track(
                workers.train(tasks),
                f"check, {count} seeds",
                total=len(tasks),
                disable=not progress,
                transient=True,
                auto_refresh=False,  # by a thread, beside which random numbers are drawn in another way
            )
            runs += trained
            verdict = Verdict(gathered(widths, count, looked_at, runs), rule)
            is_vain = not verdict.moves or (verdict.hidden and not verdict.seeds_needed)  # which no seed would show
            if verdict.word != UNDECIDED or is_vain:
                break
    return verdict


def _counts(first: int, most: int) -> tuple[int, ...]:
    """Numbers of seeds at which it is judged: each twice the one before."""
    counts = [first]
    while counts[-1] < most:
        counts.append(min(2 * counts[-1], most))
    return tuple(counts)
