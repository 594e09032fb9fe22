"""A comparison as one line of TensorBoard's HParams page: what was run, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from torch_dmft.comparison import Comparison, movement
from torch_dmft.report.events import EventLog

Setting = str | int | float | bool


def write_hparams(log: EventLog, comparison: Comparison, more: Mapping[str, Setting]) -> None:
    """Write the settings of the measured run and its results at the last common step.

    Args:
        log: of the run ``comparison``.
        comparison: the comparison.
        more: further settings that a run does not know of itself, such as its seed.
    """
    results = metrics(comparison)
    for summary in hparams({**settings(comparison), **more}, results):
        log.add(summary)
    log.scalars(results, int(comparison.steps[-1]))


def settings(comparison: Comparison) -> dict[str, Setting]:
    """Gamma0, width, depth, lr and optimizer of the measured run, as far as they are known."""
    run = comparison.measured
    training = run.training
    rate = training.numbers["lr"]
    known: dict[str, Setting | None] = {
        "gamma0": training.gamma0,
        "width": comparison.narrowest,
        "depth": len(run.layers) - 1,
        "lr": float(rate.max())
        if isinstance(rate, Tensor) and rate.numel()
        else rate
        if isinstance(rate, float)
        else None,
        "optimizer": training.optimizers,
    }
    return {name: value for name, value in known.items() if value is not None}


def metrics(comparison: Comparison) -> dict[str, float]:
    """How the run ended, beside its first prediction: NTK alignment, relative error of Phi and G, loss, movement of Phi."""
    deviations = comparison.deviations[0]
    moved = [movement(layer.forward)[-1] for layer in comparison.measured.layers[1:]]
    if not moved and comparison.measured.ntk is not None:
        moved = [movement(comparison.measured.ntk)[-1]]
    results = {
        "final/relative error": deviations.mean_error[-1].item(),
        "final/loss": comparison.measured.losses[-1].item(),
        "final/movement": torch.stack(moved).mean().item() if moved else 0.0,
    }
    return (
        results if deviations.ntk is None else {"final/NTK alignment": deviations.ntk.alignment[-1].item(), **results}
    )
