"""Numbers in the forward pass that depend on width, so that features would be scaled twice."""

from __future__ import annotations

import math
from collections import Counter

from torch_dmft.architecture.roles import Architecture, Constant
from torch_dmft.core.errors import Place

_POWERS = {-1.0: "1 / {n}", -0.5: "1 / sqrt({n})", 0.5: "sqrt({n})", 1.0: "{n}"}
_COMMON = (0.5, 2.0)
"""Factors that are no power of any width worth having."""

_EXPONENT = 0.4
"""The least power of the width, by which constants grow or fall, that is no accident."""

_DROP = "drop it, as torch_dmft sets the scale of every weight, or make it a number that is the same at every width"


def compared(constants: tuple[Constant, ...], others: tuple[Constant, ...]) -> list[Place]:
    """What is wrong with constants, in comparison with those at another width."""
    names = [[(constant.path, constant.function) for constant in each] for each in (constants, others)]
    if names[0] != names[1]:
        different = [path for path, _ in set(names[0]).symmetric_difference(names[1])]
        where = min(different, default="")
        reason = f"{len(constants)} numbers act on features here, and {len(others)} at another width, or others"
        return [Place(where or "(model)", reason, "let the width change sizes only")]
    return [
        Place(one.path or "(model)", f"{_acts(one)} {one.number:.6g}, but at another width {other.number:.6g}", _DROP)
        for one, other in zip(constants, others, strict=True)
        if not _alike(one, other)
    ]


def _alike(one: Constant, other: Constant) -> bool:
    """Whether a number is the same at two widths, one of them twice the other; constants may be random, so their size about."""
    if one.kind == "tensor" and 0 < min(one.number, other.number) < math.inf:
        return abs(math.log2(one.number / other.number)) < _EXPONENT
    return math.isclose(one.number, other.number, rel_tol=1e-6) or math.isnan(one.number)


def suspicious(constants: tuple[Constant, ...], architecture: Architecture, data_sizes: set[int]) -> list[Place]:
    """Factors that are a power of a width here, and might be so at every width.

    A number that was stored when the model was built does not change in a copy at another width, so this is the only sign of
    it. Powers of the sizes of the data (to average over tokens, for example) are no sign if these sizes are no widths too, and
    nor are those of the number of residual branches with this factor.
    """
    widths = {
        size
        for layer in architecture.layers
        for size, axis in (
            (layer.in_features, layer.in_axis),
            (layer.fan_in, layer.in_axis),
            (layer.out_features, layer.out_axis),
        )
        if axis is not None
    }
    widths |= {product.size for product in architecture.dot_products}
    branches = Counter(constant.number for constant in constants if constant.kind == "branch")
    places = []
    for constant in constants:
        if constant.kind in ("factor", "branch"):
            sizes = data_sizes if constant.on_data else data_sizes - widths
            is_depth = constant.kind == "branch" and _is_of_depth(constant.number, branches[constant.number])
            places += [] if is_depth else _suspicious(constant, widths, sizes)
    return list(dict.fromkeys(places))


def _is_of_depth(number: float, count: int) -> bool:
    """Whether the factor of so many residual branches, of which a block has one or two, is 1 / blocks or its square root."""
    return any(
        _is_power(number, blocks, power) for blocks in (count, count // 2) if blocks > 1 for power in (-1.0, -0.5)
    )


def _suspicious(constant: Constant, widths: set[int], explained: set[int]) -> list[Place]:
    number = abs(constant.number)
    if number in _COMMON or any(_is_power(number, size, power) for size in explained for power in _POWERS):
        return []
    for size in sorted(widths - {1}):
        for power, name in _POWERS.items():
            if _is_power(number, size, power):
                reason = (
                    f"{_acts(constant)} {constant.number:.6g}, which is {name.format(n=size)} with the width {size}"
                )
                return [
                    Place(
                        constant.path or "(model)", reason, f"{_DROP}; if it is one, build the model at another width"
                    )
                ]
    return []


def _is_power(number: float, size: int, power: float) -> bool:
    return math.isclose(number, size**power, rel_tol=1e-6)


def _acts(constant: Constant) -> str:
    what = "the data are" if constant.on_data else "features are"
    return (
        f"{what} multiplied by"
        if constant.kind in ("factor", "branch")
        else f"`{constant.function}` acts on features with"
    )
