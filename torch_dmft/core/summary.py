"""What a trajectory is, in a few lines."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch_dmft.core.divergence import diverged_at, not_finite
from torch_dmft.core.grid import Grid
from torch_dmft.core.kernel import movement
from torch_dmft.core.page import Page

if TYPE_CHECKING:
    from torch_dmft.core.trajectory import Trajectory

_MOST = 12
"""Weights that are listed; of more, the first and the last."""


def one_line(run: Trajectory) -> str:
    """What a run is called, and its sizes."""
    samples, outputs = run.outputs.shape[1:]
    return (
        f"<Trajectory {run.origin!r}: {_steps(run)}, {_count(samples, 'sample')}, {_count(outputs, 'output')}, "
        f"{_count(len(run.layers), 'weight')}>"
    )


def summary(run: Trajectory) -> Page:
    """Sizes, training, loss and how far every kernel has moved, as sentences and a table."""
    samples, outputs = run.outputs.shape[1:]
    trained = int(run.train.sum())
    rate = f", learning rate {run.lr:.4g}" if math.isfinite(run.lr) else ""
    first, last = run.losses[0].item(), run.losses[-1].item()
    sentences = [
        f"{run.origin}: {_steps(run)} recorded, {_count(samples, 'sample')} ({trained} trained on), "
        f"{_count(outputs, 'output')}.",
        f"Trained by {run.training.optimizers}{rate}, gamma0 {run.training.gamma0:.4g}.",
    ]
    if not math.isnan(last):
        sentences.append(f"Loss {first:.4g} at step {int(run.steps[0])}, {last:.4g} at step {int(run.steps[-1])}.")
    at = diverged_at(run)
    if at is not None and not any(note.startswith("diverged") for note in run.notes):
        bad = not_finite(run, at)
        what = (
            f"{bad[0]} is not finite" if bad else "its outputs are far larger than at the start and its loss far worse"
        )
        sentences.append(f"It diverged: at step {int(run.steps[at])} {what}.")
    if run.ntk is None:
        sentences.append("Phi and G are recorded, the NTK is not.")
    if not run.is_per_output:
        sentences.append("Kernels are averaged over equal outputs.")
    if run.replicas:
        sentences.append(f"Mean of {_count(len(run.replicas), 'network')}.")
    elif run.stderr is not None:
        sentences.append("With standard errors.")
    sentences += [f"Note: {note}." for note in run.notes]
    return Page((" ".join(sentences), _moved(run)))


def _moved(run: Trajectory) -> Grid:
    count = len(run.layers)
    listed = [*range(count)] if count <= _MOST else [*range(_MOST // 2), *range(count - _MOST // 2, count)]
    rows = []
    for position in listed:
        layer = run.layers[position]
        kernels = [kernel for kernel in (layer.forward, layer.backward, layer.ntk) if kernel is not None]
        rows.append((str(position), layer.name, *(f"{movement(kernel)[-1].item():.3g}" for kernel in kernels)))
    if run.ntk is not None:
        rows.append(("all", "", "", "", f"{movement(run.ntk)[-1].item():.3g}"))
    numbers = tuple((kernel, "moved") for kernel in ("Phi", "G", "NTK")[: 2 if run.ntk is None else 3])
    some = f", the first and the last of {count} weights" if count > _MOST else ""
    title = f"Movement |K(T) - K(0)| / |K(0)| of every kernel{some}"
    return Grid(title, ("l", "weight"), numbers, tuple(rows), () if run.ntk is None else (len(listed) - 1,))


def _steps(run: Trajectory) -> str:
    ends = f"{int(run.steps[0])} to {int(run.steps[-1])}" if len(run.steps) > 1 else f"step {int(run.steps[0])}"
    return f"{_count(len(run.steps), 'step')} ({ends})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
