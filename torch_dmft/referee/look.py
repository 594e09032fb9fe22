r"""One look at a set-up: what every weight puts out on a batch, and what of it is the weight's own doing.

Every operator that takes a weight is seen (``torch_dmft.uses.watch``) and run again with the weight that was there at the
start, so that the change of an output splits into two,

.. math:: W_t x_t - W_0 x_0 = (W_t - W_0)\, x_t + W_0\, (x_t - x_0),

the weight's *own* term and what is *carried* from before. This is exact for any operator; no layer has to be known. Numbers
that multiply an output afterwards (the 1/sqrt(fan-in) of unit scaling) count as a part of it. Those that multiply what a
product reads, behind no other product (the 1/N of mup's readout), are noted as its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from torch_dmft.core.random_state import random_state_kept
from torch_dmft.core.undisturbed import all_graded
from torch_dmft.referee.eyes import Eyes
from torch_dmft.referee.setup import Setup
from torch_dmft.uses.forms import Entrywise, Part, Product
from torch_dmft.uses.outputs import select, tensors
from torch_dmft.uses.parts import parts
from torch_dmft.uses.passes import prepared
from torch_dmft.uses.watch import Slot, Use, watching

Place = tuple[str, str, str]
"""A parameter (or several, joined by "+"), the operator that takes it, and the path of the module that runs it."""


@dataclass(frozen=True)
class Sizes:
    """Root mean squares at one place; of several uses of one kind there the mean square.

    Attributes:
        start: of what the weight puts out at the start, W_0 x_0.
        own: of (W_t - W_0) x_t.
        carried: of W_0 (x_t - x_0).
        change: of the change of the output.
        taken: of x_t.
        moved: of x_t - x_0.
        weight: of the entries of W_0.
        step: of the entries of W_t - W_0.
        read: of x_0.
        scale: the number that what it reads was multiplied by, and that is the weight's own.
        unrelated: what W_t - W_0 would put out of vectors of this size that have nothing to do with it; 0 for no matrix.
        fan_in: how many numbers a neuron reads; 0 where the weight is no matrix.
        out: how many neurons there are; 0 likewise.
    """

    start: float
    own: float
    carried: float
    change: float
    taken: float
    moved: float
    weight: float = math.nan
    step: float = math.nan
    read: float = math.nan
    scale: float = 1.0
    unrelated: float = 0.0
    fan_in: int = 0
    out: int = 0


SCORES, OUTPUTS = "softmax", "outputs"
"""Operators of places without a parameter: what a softmax takes, and what the model returns."""


@dataclass(eq=False)
class Kept:
    """A use as it was, apart from the graph and from later steps.

    Attributes:
        use: with its arguments and output copied.
        factor: what its output was multiplied by afterwards.
        parts: what it does with the weight in every slot.
        scale: what its data were multiplied by before.
        start: mean squares of W_0 x_0, once they were asked for.
    """

    use: Use
    factor: float
    parts: dict[Slot, Part]
    scale: float = 1.0
    start: dict[Slot, float] = field(default_factory=dict)

    def shape(self, slot: Slot) -> tuple[int, int]:
        """How many numbers a neuron reads, and how many neurons there are; (0, 0) where the weight is no matrix."""
        part = self.parts[slot]
        if not isinstance(part, Product):
            return 0, 0
        _, out, fan_in = part.features()
        return 1 if part.kind == "embedding" else fan_in, out


@dataclass(frozen=True, eq=False)
class Look:
    """What was seen in one pass.

    Attributes:
        uses: of weights, in forward order.
        scores: what every softmax took, by the path of its module, with the number of terms in each of its sums; in order.
        places: number of uses that came before each of the scores.
        outputs: what the model returned; None where it is no tensor.
        loss: the value.
    """

    uses: tuple[Kept, ...]
    scores: tuple[tuple[str, Tensor, int], ...]
    places: tuple[int, ...]
    outputs: Tensor | None
    loss: float


def look(setup: Setup, batch: Any, *, modes: dict[str, bool] | None = None, trains: bool = True) -> Look:
    """Run the loss once on a batch and see everything; nothing of the set-up is changed.

    Args:
        setup: whose loss is run.
        batch: as the loss takes it.
        modes: training flags of modules as the user left them, by path; None for those of ``trains``.
        trains: whether in train mode, with the same draws at every look, or in eval mode.
    """
    model = setup.model
    returned: list[Any] = []
    with ExitStack() as stack:
        stack.enter_context(prepared(model, model))
        stack.enter_context(all_graded(model))
        for path, module in model.named_modules():
            module.training = trains and (modes or {}).get(path, True)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(random_state_kept({one.device for one in model.parameters()}, seed=setup.seed))
        stack.callback(model.register_forward_hook(lambda *all: returned.append(all[-1])).remove)
        given = tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, batch)
        eyes = Eyes(model, tensors(given))
        with watching(model, eyes):
            value = setup.loss(model, given)
            uses = eyes.finish()
        outputs = _outputs(returned)
        scales = [eyes.scale_of(use) for use in uses]
        kept = tuple(_keep(use, eyes.factor_of(use), scale) for use, scale in zip(uses, scales, strict=True))
    return Look(kept, tuple(eyes.scores), tuple(eyes.places), outputs, float(value.detach()))


def _outputs(returned: list[Any]) -> Tensor | None:
    if not returned:
        return None
    try:
        return select(returned[-1], None).detach().clone()
    except Exception:
        floats = [one for one in tree_leaves(returned[-1]) if isinstance(one, Tensor) and one.is_floating_point()]
        return max(floats, key=Tensor.numel).detach().clone() if floats else None


def _keep(use: Use, factor: float, scale: float) -> Kept:
    """A use with copies of its arguments, as weights move and data may be overwritten."""
    found = {part.slot: part for part in parts(use)}
    bare = tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, (use.args, use.kwargs))
    use.args, use.kwargs = bare
    use.output = use.output.detach().clone()
    use.edge, use.origins = None, {}
    return Kept(use, factor, found, scale)


def differences(first: Look, now: Look) -> dict[Place, Sizes]:
    """The sizes at every place, from the look at the start and a later one; in forward order.

    Uses that are missing in one of the two, or have other shapes (experts that other rows were sent to), are left out.
    """
    there: dict[tuple[Any, ...], Kept] = dict(zip(_numbered(first.uses), first.uses, strict=True))
    found: dict[Place, list[tuple[dict[str, float], int, int, int]]] = {}
    later = list(zip(_numbered(now.uses), now.uses, strict=True))
    scores = list(zip(first.scores, now.scores, now.places, strict=False))
    result: dict[Place, Sizes] = {}
    for number, (key, kept) in enumerate(later):
        before = there.get(key)
        if before is None or before.use.output.shape != kept.use.output.shape:
            continue
        for slot in kept.use.weights:
            if slot in before.use.weights and kept.use.argument(slot).is_floating_point():
                place = ("+".join(sorted(kept.use.weights[slot])), kept.use.operator, kept.use.path)
                squares = _squares(before, kept, slot)
                fan_in, out = kept.shape(slot)
                found.setdefault(place, []).append((squares, fan_in, out, number))
    order: list[tuple[float, Place, Sizes]] = []
    for place, several in found.items():
        means = {name: math.sqrt(sum(one[0][name] for one in several) / len(several)) for name in several[0][0]}
        order.append((several[0][3], place, Sizes(**means, fan_in=several[0][1], out=several[0][2])))
    seen: Counter[str] = Counter()
    for (path, old, _), (other, new, terms), at in scores:
        if path == other and old.shape == new.shape:
            name = ("", SCORES if not seen[path] else f"{SCORES}[{seen[path]}]", path)
            seen[path] += 1
            order.append((at - 0.5, name, _of_tensors(old, new, terms)))
    result.update((place, sizes) for _, place, sizes in sorted(order, key=lambda one: one[0]))
    if first.outputs is not None and now.outputs is not None and first.outputs.shape == now.outputs.shape:
        result["", OUTPUTS, ""] = _of_tensors(first.outputs, now.outputs, 0)
    return result


def _numbered(uses: Iterable[Kept]) -> list[tuple[Any, ...]]:
    """A key for every use: what it is, and the how many-th of its kind."""
    seen: Counter[tuple[Any, ...]] = Counter()
    keys = []
    for kept in uses:
        base = (
            kept.use.path,
            kept.use.operator,
            *sorted("+".join(sorted(names)) for names in kept.use.weights.values()),
        )
        keys.append((*base, seen[base]))
        seen[base] += 1
    return keys


def _of_tensors(old: Tensor, new: Tensor, terms: int) -> Sizes:
    """Sizes of what no weight is the last to make; masked entries, which are infinite, are left out."""
    told = old.isfinite() & new.isfinite() & (old > _MASKED) & (new > _MASKED)
    old, new = old.double()[told], new.double()[told]
    start, change = _mean_square(old), _mean_square(new - old)
    size = math.sqrt(_mean_square(new))
    return Sizes(math.sqrt(start), math.nan, math.nan, math.sqrt(change), size, math.nan, fan_in=terms)


_MASKED = -1e4
"""Scores below this were masked."""


def _squares(before: Kept, now: Kept, slot: Slot) -> dict[str, float]:
    """Mean squares of the terms of a use, by the names of ``Sizes``."""
    with torch.no_grad():
        start, own, carried = _terms(before, now, slot)
        change = now.use.output.double() - before.use.output.double()
    if slot not in before.start:
        before.start[slot] = _mean_square(start()) * before.factor**2
    scale = now.factor**2
    taken, moved = _data(now.use, before.use)
    read, _ = _data(before.use, before.use)
    step = _mean_square(now.use.argument(slot).double() - before.use.argument(slot).double())
    return {
        "start": before.start[slot],
        "own": _mean_square(own) * scale,
        "carried": _mean_square(carried) * scale,
        "change": _mean_square(change) * scale,
        "taken": taken,
        "moved": moved,
        "read": read,
        "scale": now.scale**2,
        "weight": _mean_square(before.use.argument(slot)),
        "step": step,
        "unrelated": step * taken * now.shape(slot)[0] * scale,
    }


def _terms(before: Kept, now: Kept, slot: Slot) -> tuple[Callable[[], Tensor], Tensor, Tensor]:
    """W_0 x_0, to be made when it is asked for, (W_t - W_0) x_t and W_0 (x_t - x_0)."""
    use, old = now.use, before.use
    w_0, w_t = old.argument(slot), use.argument(slot)
    part = now.parts[slot]
    if isinstance(part, Entrywise) and part.by is None and part.by_slot is None:  # it is added
        return lambda: w_0 * part.factor, (w_t - w_0) * part.factor, torch.zeros(1, device="cpu")
    if isinstance(part, Product):  # linear in both, so that differences are taken first and no digit is lost
        others = {one: torch.zeros_like(use.argument(one)) for one in use.weights if one != slot}
        own = _run(use, {**others, slot: w_t - w_0})
        if part.kind == "embedding":
            return lambda: _run(old, others), own, torch.zeros(1, device="cpu")
        x_0, x_t = old.argument(part.data), use.argument(part.data)
        return lambda: _run(old, others), own, _run(use, {**others, slot: w_0, part.data: x_t - x_0})
    weights = {one: old.argument(one) for one in use.weights if one in old.weights}
    doubled = {"doubled": True}
    own = _run(use, {}, **doubled) - _run(use, {slot: w_0}, **doubled)
    at_start = _run(old, {}, **doubled)
    carried = _run(use, weights, **doubled) - at_start
    return lambda: at_start - _run(old, {slot: torch.zeros_like(w_0)}, **doubled), own, carried


def _data(use: Use, old: Use) -> tuple[float, float]:
    """Mean squares of the first argument that is no weight, and of its change."""
    for i, arg in enumerate(use.args):
        if isinstance(arg, Tensor) and (i, None) not in use.weights and arg.is_floating_point():
            before = old.args[i]
            moved = _mean_square(arg.double() - before.double()) if before.shape == arg.shape else math.nan
            return _mean_square(arg.double()), moved
    return 1.0, 0.0  # tokens


def _run(use: Use, arguments: dict[Slot, Tensor], *, doubled: bool = False) -> Tensor:
    """What a use puts out with other tensors for some of its arguments; if it can, in float64."""
    args: list[Any] = [list(arg) if isinstance(arg, tuple | list) else arg for arg in use.args]
    for (i, j), tensor in arguments.items():
        if j is None:
            args[i] = tensor
        else:
            args[i][j] = tensor
    if doubled:
        try:
            return _made(use, *tree_map(_doubled, (args, use.kwargs)))
        except (RuntimeError, TypeError):  # an operator without float64, or that takes a dtype
            pass
    return _made(use, *tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (args, use.kwargs)))


def _made(use: Use, args: list[Any], kwargs: dict[str, Any]) -> Tensor:
    made = use.function(*args, **kwargs)
    if not isinstance(made, Tensor):
        made = next(one for one in made if isinstance(one, Tensor) and one.shape == use.output.shape)
    found: Tensor = made.double() if made.is_floating_point() else made
    return found


def _doubled(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.double() if leaf.is_floating_point() else leaf.clone()
    return leaf


def _mean_square(tensor: Tensor) -> float:
    return float(tensor.double().square().mean()) if tensor.numel() else math.nan
