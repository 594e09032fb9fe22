"""Every parameter of a model is accounted for and used as its layer's type says, or the model is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from torch_dmft.architecture.constants import law_of
from torch_dmft.architecture.facts import facts_of, remedy
from torch_dmft.architecture.roles import DotProduct
from torch_dmft.architecture.ties import shared, tied_readouts
from torch_dmft.architecture.trace import Trace
from torch_dmft.core.errors import Place
from torch_dmft.core.torch_private import has_backward_hooks, is_compiled, modules_of, own_parameters, parameters_of


def standing(model: nn.Module) -> tuple[list[Place], set[str]]:
    """What is wrong with a model before it runs, and the paths of the modules that are refused as a whole."""
    places: list[Place] = []
    refused: set[str] = set()
    modules = modules_of(model)
    for path, module in modules:
        place = None if _inside(path, refused) else _module(path, module)
        if place is not None:
            places.append(place)
            refused.add(path)
    return places + _tied(model) + _hooked(modules), refused


def _inside(path: str, refused: set[str]) -> bool:
    return any(not outer or path == outer or path.startswith(f"{outer}.") for outer in refused)


def _module(path: str, module: nn.Module) -> Place | None:
    where = path or "(model)"
    kind = type(module).__name__
    own = own_parameters(module)
    if is_compiled(module):
        return Place(where, "is compiled, which hides its data flow", "wrap it first, and compile it afterwards")
    if _is_lazy(module):
        return Place(where, f"{kind} is not initialised yet", "run the model once on an example input first")
    if is_parametrized(module):
        return Place(where, "its parameters are computed by a parametrization", _PARAMETRIZED)
    facts = facts_of(module)
    if facts is not None and not own.keys() <= {"weight", "bias"}:
        return Place(where, f"{kind} owns {', '.join(sorted(own))} instead of a weight and a bias", _PARAMETRIZED)
    # The forward pass of a user's own module is followed like any other code, parameters of its own included.
    if own and facts is None and type(module).__module__.startswith("torch."):
        return Place(where, f"{kind} cannot be scaled", remedy(module))
    return None


def _is_lazy(module: nn.Module) -> bool:
    return any(isinstance(parameter, UninitializedParameter) for parameter in own_parameters(module).values())


def can_run(model: nn.Module) -> bool:
    """Whether the model can be run and followed at all."""
    return not any(is_compiled(module) or _is_lazy(module) for _, module in modules_of(model))


_PARAMETRIZED = "not yet; remove the parametrization (weight or spectral norm) or replace it by a norm layer"


def _hooked(named: list[tuple[str, nn.Module]]) -> list[Place]:
    """Modules and parameters with a hook that sees gradients, and may change them."""
    reason, fix = (
        "has a gradient hook, which may change gradients",
        "remove the hook, and register it after parameterize",
    )
    modules = [path or "(model)" for path, one in named if has_backward_hooks(one)]
    parameters = {
        id(one): f"{path}.{name}" if path else name
        for path, module in reversed(named)
        for name, one in own_parameters(module).items()
        if has_backward_hooks(one)
    }
    return [Place(where, reason, fix) for where in (*modules, *reversed(parameters.values()))]


def _tied(model: nn.Module) -> list[Place]:
    ties = tied_readouts(model)
    allowed = {frozenset((f"{head}.weight", f"{table}.weight")) for head, table in ties.items()}
    return [
        Place(", ".join(names), "share one tensor (tied weights)", _TIED)
        for names in shared(model)
        if frozenset(names) not in allowed
    ]


_TIED = (
    "not yet; give each its own parameter (one tensor cannot have two scalings), but for one nn.Embedding and one nn.Linear "
    "that reads out"
)


def followed(trace: Trace, model: nn.Module, refused: set[str]) -> list[Place]:
    """What is wrong in the forward pass: parameters never reached, sums over widths without a limit."""
    places = list(trace.places)
    for name, parameter in parameters_of(model).items():
        if id(parameter) not in trace.used and not _inside(name, refused):
            fix = "remove it, or give an example input that reaches it"
            places.append(Place(name, "is never reached in the forward pass", fix))
    places.extend(place for label, place in trace.must_be_fixed if trace.axes.is_width(label))
    return list(dict.fromkeys(places))


def scaled(products: tuple[DotProduct, ...], others: tuple[DotProduct, ...] | None) -> list[Place]:
    """Dot products whose factors are wrong, by comparison with another width, or by their values."""
    if others is None:
        return [place for product in products for place in _by_look(product)]
    if len(others) != len(products):
        reason = f"it takes {len(products)} dot products over widths here, and {len(others)} at another width"
        return [Place("(model)", reason, "let the width change sizes only")]
    return [place for product, other in zip(products, others, strict=True) for place in _in_comparison(product, other)]


def scaled_in_copy(products: tuple[DotProduct, ...], copies: tuple[DotProduct, ...] | None) -> list[Place]:
    """Dot products whose factors are wrong, unless a copy of the model at another width shows that they fall like 1 / width.

    A factor that is the same in the copy may have been stored when the model was built, so it is judged by its value.
    """
    if copies is None or len(copies) != len(products):
        return scaled(products, copies)
    places: list[Place] = []
    for product, copy in zip(products, copies, strict=True):
        differs = list(_in_comparison(product, copy))
        is_stored = math.isclose(product.factor, copy.factor, rel_tol=1e-6)
        places += (list(_by_look(product)) or ([] if is_stored else differs)) if differs else []
    return places


def rooted(products: tuple[DotProduct, ...], others: tuple[DotProduct, ...] | None) -> tuple[DotProduct, ...]:
    """Dot products, with the power 1/2 where their factors fall like 1 / sqrt(width) to those of another width."""
    if others is None or len(others) != len(products):
        return products
    halves = [replace(product, power=0.5) for product in products]
    return tuple(
        half
        if half.size != other.size and math.isclose(half.scale, replace(other, power=0.5).scale, rel_tol=1e-6)
        else product
        for half, product, other in zip(halves, products, others, strict=True)
    )


def like_others(products: tuple[DotProduct, ...], others: tuple[DotProduct, ...]) -> tuple[DotProduct, ...]:
    """Dot products with the powers of those at another width."""
    if len(others) != len(products):
        return products
    return tuple(replace(product, power=other.power) for product, other in zip(products, others, strict=True))


def _in_comparison(product: DotProduct, other: DotProduct) -> Iterator[Place]:
    if product.power != other.power:
        yield from _by_look(product)
    elif not math.isclose(product.scale, other.scale, rel_tol=1e-4):
        reason = f"{_over(product)} is multiplied by {product.factor:.4g}, but over {other.size} neurons by {other.factor:.4g}"
        fix = "let it fall like 1 / width: compute it in forward, as a constant times 1 / q.shape[-1]"
        yield Place(product.path or "(model)", reason, fix)


def _by_look(product: DotProduct) -> Iterator[Place]:
    where, root = product.path or "(model)", math.sqrt(product.size)
    if math.isclose(product.factor, 1.0, rel_tol=1e-6):
        yield Place(where, f"{_over(product)} is not divided by it", _DIVIDE)
    elif math.isclose(abs(product.factor), 1 / root, rel_tol=1e-6):
        yield Place(where, f"{_over(product)} is divided by its square root, {root:.4g}", _DIVIDE)
    elif not math.isclose(abs(product.scale), 1.0, rel_tol=1e-6):
        law = law_of(abs(product.factor), product.size)
        if law is not None:
            yield Place(where, f"{_over(product)} is multiplied by {product.factor:.4g}, which is {law}", _DIVIDE)


def _over(product: DotProduct) -> str:
    return f"`{product.function}` over a width, here {product.size} neurons,"


_DIVIDE = (
    "divide by the width d of a head instead: scaled_dot_product_attention(q, k, v, scale=1 / q.shape[-1]) or "
    "q @ k.mT / q.shape[-1], times any constant; or fix the size of heads and let their number grow: unflatten(-1, (-1, size))"
)
