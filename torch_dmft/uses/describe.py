"""describe: from a model, an example input, and if need be a second width, to its Architecture."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from torch_dmft.architecture import Architecture, Multiplier, Role, Wrapper
from torch_dmft.architecture import describe as describe_one
from torch_dmft.architecture.describe import Roles, wider_copy
from torch_dmft.architecture.groups import growing_groups
from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError
from torch_dmft.core.listed import listed
from torch_dmft.core.materialised import require_materialised
from torch_dmft.core.multiplied import unmultiplied
from torch_dmft.core.random_state import random_state_kept
from torch_dmft.core.spread import whole
from torch_dmft.core.users_functions import called
from torch_dmft.uses.outputs import Example, Runs, Selection
from torch_dmft.uses.two_widths import by_two_widths

Wider = nn.Module | Callable[..., Any]
"""The model at another width, a function that builds it, or a factory width -> model."""

_WIDTHS = (256, 64, 1024, 16, 128, 512, 32, 8)
"""Widths that a factory is tried at, in this order."""


@checked
def describe(
    model: nn.Module,
    example_input: Example,
    *,
    roles: Roles | None = None,
    wider: Wider | None = None,
    outputs: Selection | None = None,
    like: Architecture | None = None,
) -> Architecture:
    """Find every weight of a model, its role and its fan-in, and which axes are widths; the model is left as it was.

    Of one instance every torch function is followed (``torch_dmft.architecture.describe``): an axis that a weight makes is a
    width unless it is combined entry by entry with the data or reaches the output, and what cannot be followed is refused.
    With a second instance of another width, sizes that differ are widths, whatever modules they are in
    (``torch_dmft.uses.two_widths``). Where both agree, the architecture is that of the first way, which theory can use.

    Args:
        model: any module.
        example_input: ``(sample, ...)``, or a tuple or mapping of the arguments of ``forward``.
        roles: for module paths or names of weights, roles that overrule what is found.
        wider: the same model at another width (also a narrower one), a function without arguments that builds it, or a factory
            ``width -> model``.
        outputs: with ``wider``: which of the model's outputs is f; see ``torch_dmft.uses.outputs.select``.
        like: the architecture of this model at another width, with which its numbers are compared; with ``wider`` it stands for
            a check that was made there, whether features have one size at both widths.

    Returns:
        The architecture; its layers are in the order of the forward pass.

    Raises:
        UnsupportedModelError: if a parameter cannot be scaled; the message lists every place and a remedy for each.
        InvalidInputError: if the model fails on the example input or has no numbers yet (meta device), ``roles`` names
            nothing, or ``wider`` is no such model.
    """
    while isinstance(model, Wrapper):
        model = model.model
    require_materialised(model)
    with whole(model), unmultiplied(model):
        return _described(model, example_input, roles, wider, outputs, like)


def _described(
    model: nn.Module,
    example_input: Example,
    roles: Roles | None,
    wider: Wider | None,
    outputs: Selection | None,
    like: Architecture | None,
) -> Architecture:
    """The architecture of a model whose parameters are whole; see ``describe``."""
    if wider is None:
        if outputs is not None:
            raise InvalidInputError(
                "`outputs` needs a second instance of the model.",
                got="outputs= without wider=",
                remedy="wider=, the same model at another width or a factory width -> model",
            )
        return _by_one(model, example_input, roles, like)
    other = _second(model, wider)
    require_materialised(other)
    runs = Runs(model, outputs), Runs(other, outputs)
    with unmultiplied(other):
        found = by_two_widths(model, runs[0], other, runs[1], example_input, checks_sizes=like is None)
    found = _overruled(found, roles or {})
    if outputs is not None or found.attributes or found.notes or not all(fold.of_scores for fold in found.folds):
        return found
    try:
        alone = _alone(model, example_input, roles, None)
        wide = describe_one(other, example_input, roles=roles, like=alone) if alone.has_parts else alone
    except (UnsupportedModelError, InvalidInputError):
        return found
    is_alike = _roles(alone) == _roles(found) and _ties(alone) == _ties(found) and _holds_alike(alone, found)
    if is_alike and _grows_alike(alone, wide):
        return replace(alone, groups=growing_groups(model, other))
    return found


def _by_one(model: nn.Module, example_input: Example, roles: Roles | None, like: Architecture | None) -> Architecture:
    """By one instance; what it has to assume is noted."""
    try:
        found = _alone(model, example_input, roles, like)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(_BY_ONE, error.places) from error
    sizes = {layer.path: layer.out_features for layer in found.layers if layer.out_axis is not None}
    given = {name.removesuffix("weight").removesuffix(".") for name in roles or ()}
    narrow = [path for path, size in sizes.items() if size * _NARROW < max(sizes.values()) and path not in given]
    if not narrow:
        return found
    assumed = (
        f"{listed(f'{path} ({sizes[path]})' for path in narrow)}: taken for widths that grow with the others "
        f"({max(sizes.values())}); if they do not, say so by wider= or roles="
    )
    return replace(found, notes=(*found.notes, assumed))


def _alone(model: nn.Module, example_input: Example, roles: Roles | None, like: Architecture | None) -> Architecture:
    """By one instance; what its scores q.k / sqrt(d) lack is held by parameters, which comparison with a wider copy finds."""
    found = describe_one(model, example_input, roles=roles, like=like, roots=True)
    if not found.lacks_roots:
        return found
    try:
        held = _of_scores(model, found, example_input)
    except UnsupportedModelError:
        held = None
    if held is None or _roles(held) != _roles(found):
        return describe_one(model, example_input, roles=roles)  # which refuses, and says why
    return found.holding(held)


def _of_scores(model: nn.Module, found: Architecture, example_input: Example) -> Architecture | None:
    """What a model is made of by comparison with a wider copy of it; None if that finds more than scores to make up for."""
    wide, generator = wider_copy(model, found), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in wide.parameters():  # zeros could be told from nothing
            drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(drawn.to(parameter.device), alpha=0.1)
    held = by_two_widths(model, model, wide, wide, example_input, checks_sizes=False)
    is_whole = held.folds and not held.attributes and all(fold.of_scores for fold in held.folds)
    # What is frozen keeps its numbers.
    return held if is_whole and all(model.get_parameter(name).requires_grad for name in held.factors) else None


def _holds_alike(one: Architecture, other: Architecture) -> bool:
    """Whether parameters hold the same numbers."""
    return one.factors.keys() == other.factors.keys() and all(
        math.isclose(factor, other.factors[name], rel_tol=1e-4) for name, factor in one.factors.items()
    )


_BY_ONE = (
    "This model cannot be scaled as it is, as far as one instance tells (wider=, the same model at another width, settles the "
    "roles in models of any kind):"
)

_NARROW = 8
"""A width this many times narrower than the widest may be a fixed size: a rank, a code, a gate."""


def _grows_alike(one: Architecture, other: Architecture) -> bool:
    """Whether what one instance by itself takes for the growing part of a width (heads) grows in the other one, too."""
    if not one.has_parts:
        return True
    ratio = other.width / one.width
    return len(one.parts) == len(other.parts) and all(
        math.isclose(wide, ratio * size) for size, wide in zip(one.parts, other.parts, strict=True)
    )


def _roles(architecture: Architecture) -> dict[str, Role]:
    layers = {layer.weight: layer.role for layer in architecture.layers}
    return layers | {vector.name: vector.role for vector in architecture.vectors}


def _ties(architecture: Architecture) -> dict[str, tuple[str, str | None, Multiplier]]:
    """The readouts that are multiplied, by path: their weight, their bias, and by what."""
    return {
        layer.path: (layer.weight, layer.bias, layer.multiplier)
        for layer in architecture.layers
        if layer.multiplier is not None
    }


def _overruled(found: Architecture, roles: Roles) -> Architecture:
    given = {name.removesuffix("weight").removesuffix("."): Role(role) for name, role in roles.items()}
    names = {name: layer.path for layer in found.layers for name in (layer.path, layer.weight.removesuffix(".weight"))}
    unknown = [name for name in given if name not in names]
    if unknown:
        raise InvalidInputError(
            "`roles` must name layers with a weight.", got=repr(unknown[0]), remedy=f"one of {listed(list(names))}"
        )
    by_path = {names[name]: role for name, role in given.items()}
    return replace(
        found, layers=tuple(replace(layer, role=by_path.get(layer.path, layer.role)) for layer in found.layers)
    )


def _second(model: nn.Module, wider: Wider) -> nn.Module:
    """The model at another width; random numbers that building it draws are put back."""
    like = next(model.parameters())
    if isinstance(wider, nn.Module):
        own = next(wider.parameters(), like)
        return wider if (own.dtype, own.device) == (like.dtype, like.device) else copy.deepcopy(wider).to(like)
    with random_state_kept({like.device}):
        if not takes_a_width(wider):
            return _built(called("wider", wider, remedy="a function that builds the model at another width")).to(like)
        shapes = [parameter.shape for parameter in model.parameters()]
        failed: Exception | None = None
        for width in _WIDTHS:
            try:
                other = _built(wider(width))
            except InvalidInputError:
                raise
            except Exception as error:
                failed = error
                continue
            if [parameter.shape for parameter in other.parameters()] != shapes:
                return other.to(like)
    raise InvalidInputError(
        "The factory must build the model at another width.",
        got=f"{type(failed).__name__}: {failed}"
        if failed
        else f"the same shapes at the widths {listed(map(str, _WIDTHS))}",
        remedy="wider=, the model at another width itself",
    )


def takes_a_width(wider: Wider | None) -> bool:
    """Whether this is a factory ``width -> model``."""
    if wider is None or isinstance(wider, nn.Module):
        return False
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(one.kind in by_position for one in inspect.signature(wider).parameters.values())


def _built(made: Any) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise InvalidInputError(
            "`wider` must be a model or a function that builds one.",
            got=type(made).__name__,
            remedy="wider=factory, where factory(width) returns an nn.Module",
        )
    return made
