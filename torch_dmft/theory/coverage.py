"""What the theory covers, what can be built at another width, and how many rows layers read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from torch_dmft.architecture import Architecture, Layer, Role, describe
from torch_dmft.architecture.widen import WIDENED, owners_beside_scales
from torch_dmft.core.errors import InvalidInputError, Place, UnsupportedModelError
from torch_dmft.core.threads import of_this_thread
from torch_dmft.core.torch_private import BatchNormBase, ConvBase, NormBase
from torch_dmft.core.undisturbed import undisturbed
from torch_dmft.parameterization import Plan
from torch_dmft.theory import tables
from torch_dmft.uses.outputs import Example

UNKNOWN = "how to build it at another width is not known"
_FIXED = "fixed inner sizes are not covered by the theory yet, and this layer has the role {}"
_FEWER = "fewer groups, if they are as many at every width; wider= or a factory, if their size is fixed"
_SIGMAS = 6.0
"""Standard errors of a size beyond which it is another."""
STAND_IN = "solvers.WideEnsemble(factory=...), where factory(width) builds the model, is a reference from wide networks"


def refuse_unsupported(
    model: nn.Module,
    architecture: Architecture,
    beyond: Sequence[Place] = (),
    starts: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Refuse a model whose infinite-width law is not implemented.

    Args:
        model: the model.
        architecture: what it is made of.
        beyond: what else is known to be beyond the theory.
        starts: parameters as they started, where the model's may be others by now.

    Raises:
        UnsupportedModelError: naming every such place.
    """
    places = list(beyond)
    if not architecture.is_traced:
        places += [
            Place(layer.path, _FIXED.format(layer.role), STAND_IN)
            for layer in architecture.layers
            if layer.role in (Role.CODE, Role.INNER, Role.OUTER)
        ]
        places = places or [Place("(model)", "its data flow is not known, only the uses of its parameters", STAND_IN)]
        raise UnsupportedModelError("The theory cannot predict this model:", [*places, *architecture.random])
    modules = dict(model.named_modules())
    for layer in architecture.layers:
        module = modules.get(layer.path)
        if isinstance(module, nn.Embedding) and layer.role is Role.EMBEDDING:
            places += tables.refused(layer, module, starts)
        elif layer.role in (Role.CODE, Role.INNER, Role.OUTER):
            places.append(Place(layer.path, _FIXED.format(layer.role), STAND_IN))
        elif layer.role not in (Role.INPUT, Role.HIDDEN, Role.READOUT):
            places.append(
                Place(layer.path, f"a {layer.kind} layer cannot have the role {layer.role}", "correct roles=")
            )
        elif module is None:
            reason = "a weight that is used without a module of its own is not covered by the theory yet"
            places.append(Place(layer.path, reason, f"{STAND_IN}; or use it in an nn.Linear"))
        elif isinstance(module, ConvBase) and layer.role is Role.READOUT:
            reason = "a convolution as the readout is not covered by the theory yet"
            places.append(Place(layer.path, reason, "average over the positions, then read out with an nn.Linear"))
        elif isinstance(module, ConvBase) and module.groups != 1:
            reason = "convolutions in groups are not covered by the theory yet"
            places.append(Place(layer.path, reason, "build it with groups=1"))
    has_positions = any(layer.kind == "conv" for layer in architecture.layers)
    for path, module in model.named_modules():
        if isinstance(module, BatchNormBase):
            reason = "BatchNorm couples the samples of a batch, which the theory does not cover"
            places.append(Place(path, reason, "replace it by nn.LayerNorm or nn.RMSNorm, or leave it out"))
        elif _has_a_memory(module):
            places.append(Place(path, _MEMORY, _FORGET))
        elif has_positions and len(getattr(module, "normalized_shape", ())) > 1:
            reason = "a norm over channels and positions together is not covered by the theory yet"
            places.append(Place(path, reason, "normalise the channels of each position, or leave it out"))
        elif isinstance(module, nn.GroupNorm) and (place := _unlike_groups(path, module, architecture)):
            places.append(place)
    places += _rows_unlike(model, architecture, starts)
    places += _unequal_scales(architecture) + list(architecture.random)
    if places:
        raise UnsupportedModelError("The theory cannot predict this model:", places)


def _rows_unlike(model: nn.Module, architecture: Architecture, starts: Mapping[str, Tensor]) -> Iterator[Place]:
    """Parameters outside of layers whose rows are not those that theory draws."""
    for name, vector in architecture.bare.items():
        yield from tables.refused_rows(vector, starts.get(name, model.get_parameter(name)))


def _unequal_scales(architecture: Architecture) -> list[Place]:
    """Layer scales that start at several numbers, of which other widths are not known."""
    remedy = "start all of it at one number"
    scales = [vector for vector in architecture.vectors if vector.is_scale and vector.start is None]
    return [
        Place(vector.path or "(model)", f"{vector.name} starts at numbers that differ", remedy) for vector in scales
    ]


_MEMORY = "a norm over instances that has running statistics is another function in evaluation mode than in train mode"
_FORGET = "track_running_stats=False"


def _has_a_memory(module: nn.Module) -> bool:
    """Whether it is a norm over instances that keeps running statistics."""
    return isinstance(module, NormBase) and not isinstance(module, BatchNormBase) and module.track_running_stats


def _may_grow(path: str, norm: nn.GroupNorm, architecture: Architecture) -> bool:
    """Whether the number of a norm's groups may grow with the width, though nothing tells: one group for each channel."""
    return path not in architecture.groups and 1 < norm.num_groups == norm.num_channels


def _unlike_groups(path: str, norm: nn.GroupNorm, architecture: Architecture) -> Place | None:
    """What is beyond the theory in a GroupNorm, whose groups have to be alike if they grow with the width."""
    if _may_grow(path, norm, architecture):
        return Place(path, f"GroupNorm of {norm.num_groups} groups of one channel each", _FEWER)
    if path in architecture.groups:
        varies = architecture.groups[path] is None
        reason = "GroupNorm of which neither the number of groups nor their size is the same at every width"
        return Place(path, reason, "as many groups at every width, or as large ones") if varies else None
    written = {layer.out_axis for layer in architecture.layers}
    axes = {vector.axis for vector in architecture.vectors if vector.path == path}
    if norm.num_groups > 1 and not (axes and axes <= written):
        reason = "GroupNorm whose groups may be unlike: of an axis made from others, or without gain and shift"
        return Place(path, reason, "one group, or normalise what one layer puts out, with affine=True")
    if norm.num_groups > 1 and not axes.isdisjoint(architecture.split):
        return Place(
            path, "GroupNorm of a width that is laid out in heads is not covered yet", "replace it by nn.LayerNorm"
        )
    return None


def readouts_of_own_size(plan: Plan) -> list[tuple[str, float]]:
    """The weights that read out at another size than 1/(gamma0 N), as a plan left them, and how many times that it is."""
    found = []
    for layer in plan.architecture.layers:
        number = 1.0 if layer.multiplier is None else layer.multiplier.number  # of a readout whose weight is tied
        times = plan.rule(layer.weight).std * number * layer.fan_in * plan.gamma0
        if layer.role is Role.READOUT and times and abs(math.log(times)) > _SIGMAS / math.sqrt(2 * layer.fan_in):
            found.append((layer.weight, times))
    return found if plan.wrapping.init == "untouched" and plan.scheme == "mean_field" else []


def _of_own_size(plan: Plan) -> Iterator[Place]:
    for name, times in readouts_of_own_size(plan):
        yield Place(
            name, f"it keeps a size that is {times:.3g} times the 1/(gamma0 N) at which readouts are drawn", STAND_IN
        )


def beyond_theory(plan: Plan, example: Example | None) -> Iterator[Place]:
    """What of a wrapped model is beyond networks of layers in sight, that map one tensor of numbers or tokens to f.

    Args:
        plan: the model and its scaling.
        example: two rows that it runs on; None if they are one tensor of numbers.
    """
    if example is not None and not isinstance(example, Tensor):
        yield Place("(model)", f"its inputs are a {type(example).__name__} and not one tensor", STAND_IN)
    found: tuple[Place, ...] = ()
    if example is not None and not plan.architecture.is_traced:
        try:
            describe(plan.model, example)
        except UnsupportedModelError as error:
            found = error.places
        except InvalidInputError:  # of a model whose outputs are no rows
            pass
    for place in found:
        yield Place(place.path, place.reason, STAND_IN)
    yield from _of_own_size(plan)
    if any(fold.of_scores for fold in plan.architecture.folds):
        if plan.wrapping.init == "untouched":
            yield Place("(model)", "its scores stay q.k/sqrt(d), which has no limit where d grows", _IN_FORWARD)
        elif not plan.architecture.is_traced:
            reason = (
                "parameters hold the 1/sqrt(d) that its scores lack, which is not followed from layer to layer here"
            )
            yield Place("(model)", reason, _IN_FORWARD)


_IN_FORWARD = "divide by d in forward, scale=1 / q.shape[-1]: it is trained alike, and predicted"


def refuse_unwidenable(plan: Plan, *, is_plain: bool = True) -> None:
    """Refuse a model that cannot be built at another width, or whose training is random.

    Args:
        plan: the model and its scaling.
        is_plain: whether it maps one tensor of numbers to all of f.

    Raises:
        UnsupportedModelError: naming every such place.
    """
    model, architecture, starts = plan.model, plan.architecture, plan.initial
    places = list(_of_own_size(plan))
    if not is_plain or not architecture.is_traced:
        places.append(Place("(model)", UNKNOWN, STAND_IN))
        raise UnsupportedModelError("This model cannot be widened:", [*places, *architecture.random])
    others = dict(owners_beside_scales(model, architecture))
    for path, module in model.named_modules():
        groups = getattr(module, "groups", 1)
        if isinstance(module, ConvBase) and groups not in (1, module.in_channels):
            places.append(Place(path, f"{groups} groups of channels cannot be scaled with the width", STAND_IN))
        elif _has_a_memory(module):
            places.append(Place(path, _MEMORY, _FORGET))
        elif isinstance(module, nn.GroupNorm) and architecture.groups.get(path, 1) is None:
            places.append(Place(path, "GroupNorm whose groups grow in number and size", STAND_IN))
        elif isinstance(module, nn.GroupNorm) and _may_grow(path, module, architecture):
            places.append(Place(path, f"GroupNorm of {module.num_groups} groups of one channel each", _FEWER))
        elif path in others and not isinstance(module, WIDENED):
            reason = f"a {type(module).__name__} cannot be built at another width yet"
            places.append(Place(path or "(model)", reason, STAND_IN))
    for layer in architecture.layers:
        table = model.get_submodule(layer.path)
        if isinstance(table, nn.Embedding):
            places += tables.refused(layer, table, starts)
    places += _rows_unlike(model, architecture, starts)
    places += _unequal_scales(architecture) + list(architecture.random)
    if places:
        raise UnsupportedModelError("This model cannot be widened:", places)


def rows_per_sample(
    model: nn.Module, architecture: Architecture, example_input: Tensor
) -> Mapping[str, tuple[int, int]]:
    """How many rows per sample (tokens, pixels) each layer reads and writes in a call, by module path."""
    rows = {layer.path: (1, 1) for layer in architecture.layers}

    def count(layer: Layer) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            read = inputs[0].numel() // (layer.in_features * len(example_input))
            written = output.numel() // (layer.out_features * len(example_input))
            rows[layer.path] = (read, written)

        return hook

    kept = [layer for layer in architecture.layers if layer.kind != "embedding"]
    handles = [model.get_submodule(layer.path).register_forward_hook(of_this_thread(count(layer))) for layer in kept]
    try:
        with undisturbed(model), torch.no_grad():
            model(example_input)
    finally:
        for handle in handles:
            handle.remove()
    return rows
