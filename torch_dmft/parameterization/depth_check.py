"""Depth check: do the features of a residual network move by the same amount at every depth?"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from rich.progress import track
from torch import Generator, Tensor, nn

from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.loss import Loss
from torch_dmft.parameterization.apply import parameterize
from torch_dmft.parameterization.coordinate_check import CoordinateCheck, built, changes_of, check_settings, summary
from torch_dmft.parameterization.steppers import steppers
from torch_dmft.uses.outputs import Example, Selection

_THIRDS = ("first third", "middle third", "last third")


@checked
def depth_check(
    factory: Callable[[int], nn.Module],
    inputs: Example,
    targets: Tensor,
    *,
    depths: Sequence[int] = (4, 8, 16, 32, 64),
    depth: str | None = "1/sqrt(L)",
    lr: float = 0.1,
    gamma0: float = 1.0,
    optimizer: str = "sgd",
    loss: Loss = nn.functional.mse_loss,
    steps: int = 5,
    seeds: int = 4,
    tolerance: float = 0.15,
    outputs: Selection | None = None,
    wider: Callable[[int], nn.Module] | None = None,
    generator: Generator | None = None,
    progress: bool = False,
) -> CoordinateCheck:
    """Train a residual network for a few steps at several depths and see whether its features move alike.

    With branches at 1/sqrt(L) or 1/L and the rates of the plan, the stream and what is computed from it change by O(1) in L at
    fixed gamma0, so that the slope of log rms[h(T) - h(0)] against log L is 0. Here h is the output of a layer, and for layers
    that end a branch the stream behind the sum. Layers of one kind, whose paths differ in numbers alone, are averaged over the
    first, middle and last third of the depth. As in ``coordinate_check``, f - f_0 is trained, in evaluation mode.

    Args:
        factory: depth -> a freshly built model with so many blocks.
        inputs: ``(sample, ...)``, or a tuple or mapping of the arguments of ``forward``; the batch of every step.
        targets: ``(sample, ...)``, as the loss takes them.
        depths: numbers of blocks, at least two, each at least 3.
        depth: "1/sqrt(L)" or "1/L"; None fails, which shows what the check can see.
        lr: the base learning rate eta.
        gamma0: richness.
        optimizer: "sgd", "adam", "adamw" or "muon" (beside AdamW).
        loss: (outputs, targets) -> scalar.
        steps: number of steps T.
        seeds: networks at each depth, whose updates are averaged.
        tolerance: largest exponent that counts as none.
        outputs: which of the model's outputs is f, a key, an index or a function; default as in ``Recorder``.
        wider: depth -> the model of that depth at another width, as ``parameterize`` takes it; None: roles from one instance.
        generator: where weights are drawn from.
        progress: show a progress bar.

    Returns:
        The updates, with an exponent and a verdict for each kind of layer and third of the depth; print it.

    Raises:
        InvalidInputError: if there are fewer than two depths, or one is below 3, or the kinds of layers differ between them.
        UnsupportedModelError: if the model cannot be wrapped, or its branches cannot be scaled.
    """
    check_settings(depths, inputs, targets, lr, optimizer, loss, steps, seeds, tolerance)
    if len(set(depths)) < 2 or min(depths) < len(_THIRDS):
        raise InvalidInputError(
            "`depths` must hold at least two depths of 3 or more, as a slope is fitted in every third.",
            got=str(tuple(depths)),
            remedy="depths=(4, 8, 16, 32)",
        )
    found: list[dict[str, list[float]]] = []
    for number in track(range(len(depths) * seeds), "depth check", disable=not progress):
        blocks = depths[number // seeds]
        example = None if wider is None else built(wider, blocks)
        plan = parameterize(
            built(factory, blocks), inputs, gamma0, wider=example, outputs=outputs, depth=depth, generator=generator
        )
        changes = changes_of(
            plan, steppers(plan, lr, optimizer), inputs, targets, loss, steps, outputs, along_stream=True
        )
        order = [layer.path for layer in plan.architecture.layers]
        places = {path: place for place, path in enumerate(order)}
        ordered = sorted(changes, key=lambda path: places.get(path, len(order)))
        if number % seeds == 0:
            found.append(defaultdict(list))
        known = {path: change for path in ordered if (change := changes[path]) is not None}
        for kind, change in _by_thirds(known).items():
            found[-1][kind].append(change)
    kinds = tuple(found[0])
    if any(set(row) != set(kinds) for row in found):
        raise InvalidInputError(
            "The model must have the same kinds of layers at every depth.", remedy="let factory change the depth only"
        )
    return summary(depths, kinds, found, tolerance, "depth")


def _by_thirds(changes: dict[str, float]) -> dict[str, float]:
    """Root mean squares over the layers of one kind in a third of the depth."""
    kinds = {path: re.sub(r"\d+", "*", path) for path in changes}
    counts = Counter(kinds.values())
    seen: Counter[str] = Counter()
    parts: dict[str, list[float]] = defaultdict(list)
    for path, change in changes.items():
        kind, count = kinds[path], counts[kinds[path]]
        third = int(len(_THIRDS) * (seen[kind] + 0.5) / count)
        seen[kind] += 1
        few = kind if count == 1 else f"{kind}, {seen[kind]} of {count}"  # a path may hold the number of blocks
        parts[few if count < len(_THIRDS) else f"{kind}, {_THIRDS[third]}"].append(change)
    return {name: math.sqrt(sum(one**2 for one in several) / len(several)) for name, several in parts.items()}
