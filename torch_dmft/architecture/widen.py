"""The same model at another width: its layers anew, everything else as it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from functools import partial

import torch
from torch import Tensor, nn

from torch_dmft.architecture.groups import size_of_groups
from torch_dmft.architecture.roles import Architecture
from torch_dmft.core.errors import Place, UnsupportedModelError
from torch_dmft.core.torch_private import ConvBase, NormBase, modules_of, own_buffers, own_parameters, parameters_of

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, NormBase)
WIDENED = (nn.Linear, nn.Embedding, ConvBase, *NORMS)
"""What can be built at another width."""
_ANY_WIDTH = -1
"""Stands for the axis of a norm layer without parameters."""


def has_composite_axes(architecture: Architecture) -> bool:
    """Whether a layer reads an axis made from those that layers write: a flattened feature map, a concatenation."""
    written = {layer.out_axis for layer in architecture.layers}
    return any(layer.in_axis not in written for layer in architecture.layers if layer.in_axis is not None)


def widened(model: nn.Module, architecture: Architecture, neurons: int) -> nn.Module:
    """A copy of a model with every width scaled so that the readout reads ``neurons`` neurons; parameters on "meta".

    None of them are frozen. Layer scales have their start. Where an axis is made from others (a flattened feature map holds
    every channel at every position), laid out in heads or normalised in groups, of which either number or size is the same at
    every width, all widths scale by one ratio that keeps sizes integers, so the width is the nearest possible.
    """
    ratio = neurons / architecture.width
    norms = [(path, one) for path, one in modules_of(model) if isinstance(one, nn.GroupNorm)]
    groups = [one.num_groups if path in architecture.groups else size_of_groups(one) for path, one in norms]
    if has_composite_axes(architecture) or architecture.has_parts or architecture.folds or groups:
        sizes = [layer.in_features for layer in architecture.layers if layer.in_axis is not None]
        unit = math.gcd(*sizes, *architecture.parts, *groups, *(product.size for product in architecture.dot_products))
        ratio = max(1, round(ratio * unit)) / unit

    def wide(features: int, axis: int | None) -> int:
        return features if axis is None else max(1, round(features * ratio))

    # Layers are replaced, so they are not copied.
    replaced: dict[int, nn.Module] = {}
    modules = dict(modules_of(model))
    for layer in architecture.layers:
        size = wide(layer.in_features, layer.in_axis), wide(layer.out_features, layer.out_axis)
        module = modules[layer.path]
        replaced[id(module)] = _wide_layer(module, *size)
    tables = {layer.weight: replaced[id(modules[layer.path])] for layer in architecture.layers if not layer.multiplier}
    for layer in architecture.layers:
        if layer.multiplier is not None:
            replaced[id(modules[layer.path])].register_parameter("weight", tables[layer.weight].get_parameter("weight"))
    axes = {vector.path: vector.axis for vector in architecture.vectors if vector.is_norm}
    for path, module in modules.items():
        if isinstance(module, NORMS):
            replaced[id(module)] = _wide_norm(
                module, partial(wide, axis=axes.get(path, _ANY_WIDTH)), architecture.groups.get(path)
            )
    kept = {id(parameter): parameter for parameter in parameters_of(model).values()}
    for vector in architecture.vectors:
        if vector.is_scale or vector.is_scalar:
            parameter = parameters_of(model)[vector.name]
            kept[id(parameter)] = _wide_scale(parameter, wide(vector.size, vector.axis), vector.start)
    for name, vector in architecture.bare.items():
        parameter = model.get_parameter(name)
        shape = [wide(size, vector.axis if axis == vector.place else None) for axis, size in enumerate(parameter.shape)]
        value = torch.empty(shape, device="meta")
        kept[id(parameter)] = nn.Parameter(value if vector.start is None else parameter.new_full(shape, vector.start))
    return copy.deepcopy(model, memo={**kept, **replaced})


def _wide_scale(parameter: nn.Parameter, size: int, start: float | None) -> nn.Parameter:
    """A layer scale of another size, or a single number, where all of it start at one number; at one if they differ."""
    shape = [size if entries > 1 else 1 for entries in parameter.shape]
    return nn.Parameter(parameter.detach().new_full(shape, 1.0 if start is None else start))


def owners_beside_scales(model: nn.Module, architecture: Architecture) -> list[tuple[str, nn.Module]]:
    """The modules with parameters of their own other than layer scales, single numbers, positions and class tokens."""
    scales = {vector.name for vector in architecture.vectors if not vector.is_norm}
    return [
        (path, module)
        for path, module in modules_of(model)
        if any((f"{path}.{name}" if path else name) not in scales for name in own_parameters(module))
    ]


def _wide_layer(module: nn.Module, inputs: int, outputs: int) -> nn.Module:
    has_bias = getattr(module, "bias", None) is not None
    if isinstance(module, nn.Embedding):
        return nn.Embedding(inputs, outputs, module.padding_idx, device="meta")
    if not isinstance(module, ConvBase):
        return nn.Linear(inputs, outputs, has_bias, device="meta")
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(module.kernel_size)]
    return convolution(
        inputs,
        outputs,
        module.kernel_size,  # type: ignore[arg-type]
        stride=module.stride,  # type: ignore[arg-type]
        padding=module.padding,  # type: ignore[arg-type]
        dilation=module.dilation,  # type: ignore[arg-type]
        groups=1 if module.groups == 1 else inputs,
        bias=has_bias,
        padding_mode=module.padding_mode,  # type: ignore[arg-type]
        device="meta",
    )


def _wide_norm(module: nn.Module, wide: Callable[[int], int], group: int | None) -> nn.Module:
    """A norm layer of another width; ``group`` is the size of groups that grow in number."""
    if isinstance(module, NormBase):
        settings = module.eps, module.momentum, module.affine, module.track_running_stats
        return type(module)(wide(module.num_features), *settings, device="meta")
    if isinstance(module, nn.GroupNorm):
        channels = wide(module.num_channels)
        number = module.num_groups if group is None else channels // group
        return nn.GroupNorm(number, channels, module.eps, module.affine, device="meta")
    assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
    *positions, features = module.normalized_shape
    shape = [*positions, wide(features)]
    if isinstance(module, nn.RMSNorm):
        return nn.RMSNorm(shape, module.eps, module.elementwise_affine, device="meta")
    has_shift = getattr(module, "bias", None) is not None
    return nn.LayerNorm(shape, module.eps, module.elementwise_affine, bias=has_shift, device="meta")


def materialise(model: nn.Module, like: Tensor, bare: Collection[str] = ()) -> None:
    """Give every module that is still on "meta" memory: norm layers with their own initial values, weights with zeros.

    Args:
        model: the model.
        like: a tensor of the type and on the device that its numbers get.
        bare: names of parameters outside of layers, which are given zeros too.

    Raises:
        UnsupportedModelError: for modules that cannot initialise themselves, naming all of them.
    """
    places = []
    made: dict[int, nn.Parameter] = {}  # so that weights that are tied stay so
    for path, module in modules_of(model):
        own = own_parameters(module)
        lacking = {f"{path}.{name}" if path else name for name, one in own.items() if one.is_meta}
        if not lacking and not any(tensor.is_meta for tensor in own_buffers(module).values()):
            continue
        is_bare = bool(lacking) and lacking <= {*bare} and not any(b.is_meta for b in own_buffers(module).values())
        if not isinstance(module, WIDENED) and not is_bare:
            reason = f"{type(module).__name__} holds tensors of its own"
            remedy = "build them in forward, or pass a model rather than a factory"
            places.append(Place(path or "(model)", reason, remedy))
            continue
        if isinstance(module, NORMS):
            module.to_empty(device=like.device, recurse=False)
            module.to(like.dtype)
            module.reset_parameters()
            continue
        for name, parameter in own.items():
            if parameter.is_meta:
                zeros = torch.zeros(parameter.shape, dtype=like.dtype, device=like.device)
                setattr(module, name, made.setdefault(id(parameter), nn.Parameter(zeros, parameter.requires_grad)))
    if places:
        raise UnsupportedModelError("The wide model cannot be built:", places)
