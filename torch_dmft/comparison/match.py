"""Whether runs can be compared, and at which steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.prints import prints_agree
from torch_dmft.core.trajectory import Trajectory


def common_steps(runs: Sequence[Trajectory]) -> Tensor:
    """The steps that every run recorded, in order: ``(time,)``.

    Raises:
        InvalidInputError: if there are none.
    """
    common = set.intersection(*({int(step) for step in run.steps} for run in runs))
    if not common:
        raise InvalidInputError(
            "These runs have no recorded step in common.",
            got="; ".join(f"{run.origin}: steps {_shown(run.steps)}" for run in runs),
            remedy="record both on one schedule: solve(problem, record=measured.steps)",
        )
    return torch.tensor(sorted(common), dtype=torch.int64)


def distinct_origins(runs: Sequence[Trajectory]) -> tuple[Trajectory, ...]:
    """The same runs, numbered where two share an origin, since an origin is what a legend calls a run."""
    count, seen = Counter(run.origin for run in runs), Counter[str]()
    named = []
    for run in runs:
        seen[run.origin] += 1
        numbered = f"{run.origin} #{seen[run.origin]}"
        named.append(replace(run, origin=numbered) if count[run.origin] > 1 else run)
    return tuple(named)


def refuse_swapped(measured: Trajectory, *predictions: Trajectory) -> None:
    """Refuse a prediction where the measured run belongs, with a measured run among those that it is judged by.

    Raises:
        InvalidInputError: naming both.
    """
    network = next((run for run in predictions if not run.solver), None)
    if measured.solver and network is not None:
        raise InvalidInputError(
            "The measured run must come first, and predictions after it.",
            got=f"the prediction {measured.origin!r}, then {network.origin!r}, which no solver made",
            remedy="compare(measured, predicted)",
        )


def refuse_mismatch(measured: Trajectory, predicted: Trajectory) -> None:
    """Refuse runs that are not about the same training of the same kind of network.

    Raises:
        InvalidInputError: listing every difference.
    """
    differences = list(_differences(measured, predicted))
    if differences:
        raise InvalidInputError(
            f"{measured.origin!r} and {predicted.origin!r} are not runs of one problem: {'; '.join(differences)}.",
            got=f"{measured!r} and {predicted!r}",
            remedy="solve the run itself: theory = solve(recorder.problem(), record=measured.steps)",
        )


def in_one_layout(runs: Sequence[Trajectory]) -> tuple[Trajectory, ...]:
    """The same runs with the kernels that all of them have, averaged over equal outputs where one of them has no others."""
    if not all(run.is_per_output for run in runs):
        runs = [run.per_sample() for run in runs]
    if any(run.ntk is None for run in runs):
        runs = [run.without_ntk() for run in runs]
    return tuple(runs)


def _differences(measured: Trajectory, predicted: Trajectory) -> Iterator[str]:
    shapes = tuple(measured.outputs.shape[1:]), tuple(predicted.outputs.shape[1:])
    if shapes[0] != shapes[1]:
        yield f"outputs are (sample, output) = {shapes[0]} and {shapes[1]}"
        return  # everything below has samples as an axis
    if not torch.equal(measured.train.cpu(), predicted.train.cpu()):
        yield f"{int(measured.train.sum())} and {int(predicted.train.sum())} rows are trained on, or other ones"
    if (
        measured.targets is not None
        and predicted.targets is not None
        and not _close(measured.targets, predicted.targets)
    ):
        yield "the targets differ"
    if not prints_agree(measured.probe_print, predicted.probe_print):
        yield "the inputs of the probe differ"
    for weight, functions in enumerate(zip(measured.network, predicted.network, strict=False)):
        if functions[0] != functions[1]:
            yield f"behind weight {weight} is {functions[0]} and {functions[1]}"
    if measured.centered and predicted.replicas:
        yield "the network is centered (its outputs are those minus their start), and the networks of equal width are not"
    last = int(torch.minimum(measured.steps[-1], predicted.steps[-1]))
    names = ("network", "theory") if predicted.solver else (measured.origin, predicted.origin)
    yield from measured.training.differences(predicted.training, names=names, until=last)
    if len(measured.layers) != len(predicted.layers):
        weights = [", ".join(layer.name for layer in run.layers) or "none" for run in (measured, predicted)]
        yield f"the weights are [{weights[0]}] and [{weights[1]}]"
        return
    for ours, theirs in zip(measured.layers, predicted.layers, strict=True):
        for kernel in ("forward", "backward", "ntk"):
            axes = [_axes(getattr(layer, kernel)) for layer in (ours, theirs)]
            if axes[0] != axes[1]:
                yield f"the {kernel} kernel of weight {ours.name!r} is {axes[0]} and that of {theirs.name!r} {axes[1]}"
    if _axes(measured.ntk) != _axes(predicted.ntk):
        yield "the NTKs differ in shape"


def _axes(kernel: Kernel | None) -> tuple[int, ...] | None:
    return None if kernel is None else tuple(kernel.equal_time.shape[1:])


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.cpu().double(), b.cpu().double(), rtol=1e-5, atol=1e-6)


def _shown(steps: Tensor) -> str:
    listed = [str(int(step)) for step in steps]
    return ", ".join(listed if len(listed) <= 6 else [*listed[:3], "...", *listed[-2:]])
