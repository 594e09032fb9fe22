"""Numbers in the forward pass that depend on width, so that features would be scaled twice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator

from torch_dmft.architecture.roles import Architecture, Constant
from torch_dmft.core.errors import Place

_COMMON = (0.5, 1.0, 2.0)
"""Numbers that are never taken for a law of a width, though 2 is the square root of 4."""

_POWERS = {-1.0: "1 / {n}", -0.5: "1 / sqrt({n})", 0.5: "sqrt({n})", 1.0: "{n}"}
"""The powers that people scale features by."""

_RARE_POWERS = {
    **{-0.25: "{n}^(-1/4)", 0.25: "{n}^(1/4)", -0.75: "{n}^(-3/4)", 0.75: "{n}^(3/4)"},
    **{-1.5: "{n}^(-3/2)", 1.5: "{n}^(3/2)", -2.0: "1 / {n}^2", 2.0: "{n}^2"},
}
_PREFACTORS = {0.5: "1/2", 2.0: "2", math.sqrt(0.5): "sqrt(1/2)", math.sqrt(2): "sqrt(2)"}
"""Factors in front of a power that are common in initial scales, such as that of sqrt(2 / n)."""

_SIMPLE = tuple(float(n) ** sign for n in range(1, 11) for sign in (1, -1))
"""Small integers and their inverses, which are not taken for a power with a prefactor."""

_STANDARD_ERRORS = 4.0
"""By how many standard errors the sizes of random tensors may differ."""

_EXPONENT = 0.4
"""The power of twice the width by which the sizes of tensors may differ at the most, however random they are."""

_DROP = "drop it, as torch_dmft sets the scale of every weight, or make it a number that is the same at every width"


def compared(constants: tuple[Constant, ...], others: tuple[Constant, ...]) -> list[Place]:
    """The numbers of one model that differ from those of the same model at another width."""
    names = [[(constant.path, constant.function) for constant in numbers] for numbers in (constants, others)]
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
    """Whether two numbers are the same; tensors along a width may differ as much as random ones would."""
    if one.entries != other.entries and 0 < min(one.number, other.number) < math.inf:
        random = _STANDARD_ERRORS * math.hypot(one.error, other.error)
        return abs(math.log(one.number / other.number)) < max(1e-6, min(random, _EXPONENT * math.log(2)))
    return math.isclose(one.number, other.number, rel_tol=1e-6) or math.isnan(one.number)


def suspicious(
    constants: tuple[Constant, ...],
    architecture: Architecture,
    data_sizes: set[int],
    part_sizes: Collection[int] = (),
) -> list[Place]:
    """Numbers that follow a law of a width here, and might do so at every width.

    A number that was stored when the model was built does not change in a copy at another width, so this is the only sign of
    it. Powers of the sizes of the data (to average over tokens, for example) are accepted if these sizes are not widths too,
    and so are those of the fixed sizes of parts (heads), and of the number of residual branches with this factor.
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
        sizes = data_sizes if constant.on_data else (data_sizes | set(part_sizes)) - widths
        is_depth = constant.kind == "branch" and _is_of_depth(constant.number, branches[constant.number])
        places += [] if is_depth else _suspicious(constant, widths, sizes)
    return list(dict.fromkeys(places))


def _is_of_depth(number: float, count: int) -> bool:
    """Whether the factor of ``count`` residual branches, one or two per block, is 1 / blocks or its square root."""
    return any(
        _is_close(number, blocks**power) for blocks in (count, count // 2) if blocks > 1 for power in (-1.0, -0.5)
    )


def _suspicious(constant: Constant, widths: set[int], explained: set[int]) -> list[Place]:
    number = abs(constant.number)
    if number in _COMMON or any(_is_close(number, size**power) for size in explained for power in _POWERS):
        return []
    for size in sorted(widths - {1}):
        law = law_of(number, size, with_prefactors=True)
        if law is not None:
            reason = f"{_acts(constant)} {constant.number:.6g}, which is {law} with the width {size}"
            remedy = f"{_DROP}; if it is one, build the model at another width"
            return [Place(constant.path or "(model)", reason, remedy)]
    return []


def law_of(number: float, size: int, *, with_prefactors: bool = False) -> str | None:
    """The law of a width that gives this number at this size, in words; None if no common law does."""
    return next((law for law, value in _laws(size, number, with_prefactors) if _is_close(number, value)), None)


def _laws(size: int, number: float, with_prefactors: bool) -> Iterator[tuple[str, float]]:
    for power, name in (_POWERS | _RARE_POWERS).items():
        yield name.format(n=size), float(size) ** power
    if size > 2:
        log = math.log(size)
        yield f"log({size})", log
        yield f"1 / log({size})", 1 / log
        yield f"sqrt(log({size}))", math.sqrt(log)
        yield f"1 / sqrt(log({size}))", 1 / math.sqrt(log)
    if not with_prefactors or any(_is_close(number, value) for value in _SIMPLE):
        return
    for factor, prefix in _PREFACTORS.items():
        for power, name in _POWERS.items():
            yield f"{prefix} * {name.format(n=size)}", factor * float(size) ** power


def _is_close(number: float, other: float) -> bool:
    return math.isclose(number, other, rel_tol=1e-6)


def _acts(constant: Constant) -> str:
    what = "the data are" if constant.on_data else "features are"
    return (
        f"{what} multiplied by"
        if constant.kind in ("factor", "branch")
        else f"`{constant.function}` acts on features with"
    )
