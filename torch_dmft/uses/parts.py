"""Which form each operator that reads a weight has: a product, a sum or a scaling, or one of which nothing else is known."""

from __future__ import annotations

from torch import Tensor

from torch_dmft.core.errors import Place, UnsupportedModelError
from torch_dmft.uses.forms import Entrywise, Opaque, Part, Product
from torch_dmft.uses.watch import Slot, Use


def parts(use: Use) -> list[Part]:
    """What a use does with each of its weights.

    Raises:
        UnsupportedModelError: for gradients that are no derivatives.
    """
    found: list[Part] = []
    for slot in use.weights:
        part = _product(use, slot) or _entrywise(use, slot) or Opaque(use, slot)
        found.append(part)
    return found


def _is_plain(use: Use) -> bool:
    return all(use.kwargs.get(name, 1) == 1 for name in ("alpha", "beta"))


def _product(use: Use, slot: Slot) -> Product | None:
    name, at = use.operator, slot[0]
    others = use.weights
    # A Gram matrix of complex numbers, of weights made of real parameters, is another thing.
    if slot in use.per_sample or use.argument(slot).is_complex():
        return None
    if name in ("mm", "bmm", "addmm", "baddbmm") and _is_plain(use):
        left, right = (1, 2) if name in ("addmm", "baddbmm") else (0, 1)
        if at == right and (left, None) not in others:
            return Product(use, slot, (left, None), "linear")
        if at == left and (right, None) not in others:
            return Product(use, slot, (right, None), "linear", columns=True)
    if name == "mv" and at == 1 and (0, None) not in others:
        return Product(use, slot, (0, None), "linear")
    if (
        name == "convolution"
        and at == 1
        and (0, None) not in others
        and use.argument((0, None)).ndim == use.args[1].ndim
    ):
        return Product(use, slot, (0, None), "conv")
    if name == "embedding" and at == 0:
        if len(use.args) > 3 and use.args[3]:
            raise UnsupportedModelError(
                "Gradients are not derivatives:",
                [Place(use.path or "(model)", "scale_grad_by_freq divides them by counts in the batch", "turn it off")],
            )
        return Product(use, slot, (1, None), "embedding")
    return None


def _entrywise(use: Use, slot: Slot) -> Entrywise | None:
    name, at = use.operator, slot[0]
    if not isinstance(use.args[0], Tensor) or use.output.is_complex():
        return None
    if name in ("add", "add_", "sub", "sub_") and at < 2:
        factor = float(use.kwargs.get("alpha", 1)) * (-1 if name.startswith("sub") else 1) if at == 1 else 1.0
        return Entrywise(use, slot, factor)
    if name in ("addmm", "baddbmm") and at == 0 and _is_plain(use):
        return Entrywise(use, slot)
    if name in ("mul", "mul_") and at < 2:
        other = use.args[1 - at]
        if isinstance(other, Tensor) and (1 - at, None) not in use.weights:
            return Entrywise(use, slot, by_slot=(1 - at, None))
    if name == "convolution" and at == 2:
        return Entrywise(use, slot, on_channels=True)
    return _of_norm(use, slot)


_NORMS = {
    "native_layer_norm": (2, 3),
    "native_batch_norm": (1, 2),
    "native_group_norm": (1, 2),
    "_fused_rms_norm": (2, -1),
}
"""Operators that scale and shift what they normalise: positions of gain and shift."""


def _of_norm(use: Use, slot: Slot) -> Entrywise | None:
    gain, shift = _NORMS.get(use.operator, (-1, -1))
    if slot[0] not in (gain, shift) or (0, None) in use.weights:
        return None
    on_channels = use.operator in ("native_batch_norm", "native_group_norm")
    if slot[0] == shift:
        return Entrywise(use, slot, on_channels=on_channels)

    def normalised() -> Tensor:
        bare = [arg.detach() if isinstance(arg, Tensor) else arg for arg in use.args]
        bare[gain] = None
        if shift >= 0:
            bare[shift] = None
        made: Tensor = use.function(*bare, **use.kwargs)[0]
        return made

    return Entrywise(use, slot, by=normalised, on_channels=on_channels)
