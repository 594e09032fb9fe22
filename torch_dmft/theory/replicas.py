"""Averages over independent replicas of a stochastic method, with their standard errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from torch_dmft.core.trajectory import Fields, Trajectory, combine
from torch_dmft.measurement.fields import MOST
from torch_dmft.theory.error_bars import Limit, kernel_error, standard_error


def replica_generators(generator: torch.Generator | None, count: int) -> list[torch.Generator]:
    """One source of randomness per replica, so that what one draws does not depend on how much another has drawn.

    Args:
        generator: where the replicas' seeds come from; None for a fresh one with seed 0.
        count: number of replicas.
    """
    parent = torch.Generator().manual_seed(0) if generator is None else generator
    seeds = torch.randint(2**62, (count,), generator=parent, device=parent.device)
    return [torch.Generator(parent.device).manual_seed(int(seed)) for seed in seeds]


def average(
    runs: Sequence[Trajectory],
    *,
    origin: str,
    metadata: Mapping[str, str | int | float | bool | None],
    loss: Callable[[Tensor], Tensor] | None = None,
    follows_ntk: bool = True,
) -> Trajectory:
    """The mean of independent runs of one problem, with its standard error.

    How standard errors are estimated from few replicas is in ``torch_dmft.theory.error_bars``.
    One run has no standard error.

    Args:
        runs: one trajectory per replica.
        origin: what a legend calls the answer.
        metadata: facts of the run.
        loss: what a loss is a function of where all runs approach one limit: outputs ``(sample, output)`` to a number. The
            mean outputs' loss is then the answer, as noise alone would raise the mean of losses. None for networks that
            differ, whose mean loss is the answer.
        follows_ntk: whether the outputs are those of training by the tangent kernel, so that its errors are errors of theirs;
            an expansion's are not.
    """
    mean = combine(runs, lambda values: torch.stack(list(values)).mean(0), weights=[1 / len(runs)] * len(runs))
    fields = tuple(_joined_fields([run.layers[index].fields for run in runs]) for index in range(len(mean.layers)))
    layers = tuple(replace(layer, fields=f) for layer, f in zip(mean.layers, fields, strict=True))
    stderr = combine(runs, standard_error, kernels=kernel_error) if len(runs) > 1 else None
    if loss is not None and stderr is not None:
        outputs, losses, errors = _limit(runs, loss, follows_ntk=follows_ntk).bars()
        stderr = replace(stderr, outputs=outputs.to(mean.outputs), losses=errors.to(mean.losses))
        mean = replace(mean, losses=losses.to(mean.losses))
    return replace(mean, layers=layers, origin=origin, stderr=stderr, metadata=metadata)


def _limit(runs: Sequence[Trajectory], loss: Callable[[Tensor], Tensor], *, follows_ntk: bool) -> Limit:
    """What runs of one limit tell about its outputs."""
    first, train = runs[0], runs[0].train.to(runs[0].outputs.device)
    ntk = None
    if follows_ntk and bool(train.any()) and all(run.ntk is not None for run in runs):
        kernels = [run.known_ntk.at_rows(train.nonzero().flatten()).equal_time for run in runs]
        rows = kernels[0].shape[1 : 1 + (kernels[0].ndim - 1) // 2].numel()
        ntk = [kernel.reshape(len(kernel), rows, rows) for kernel in kernels]
    momentum = torch.as_tensor(first.training.number("momentum"), device="cpu").double().mean()
    passed = first.times.to(first.outputs.device) / (1 - float(momentum))
    if first.training.batches:  # a row is seen in some steps
        seen = [len(batch) for batch in first.training.batches]
        passed = passed * (sum(seen) / len(seen) / max(1, int(train.sum())))
    return Limit(torch.stack([run.outputs for run in runs]), ntk, train, passed.double(), loss)


def _joined_fields(fields: Sequence[Fields | None]) -> Fields | None:
    """Replicas' neurons side by side, as many as are kept: more draws from the same density."""
    known = [f for f in fields if f is not None]
    if len(known) < len(fields):
        return None
    first = known[0]
    if len(known) == 1:
        return first
    known = known[: max(1, MOST // first.gradient[0].numel())]
    h, g = (torch.cat([getattr(f, name) for f in known], dim=-1) for name in ("preactivation", "gradient"))
    return Fields(first.steps, h, g, first.activation)
