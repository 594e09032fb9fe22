"""The same model at another width: what can be widened, and how."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd

from torch_dmft.architecture import Architecture, Layer, Role
from torch_dmft.core.errors import Place, UnsupportedModelError
from torch_dmft.core.undisturbed import undisturbed

NORMS = (nn.LayerNorm, nn.RMSNorm, _NormBase)
_WIDENED = (nn.Linear, _ConvNd, *NORMS)
_ANY_WIDTH = -1
"""Axis of a norm layer without parameters, which nothing names."""


def refuse_unsupported(model: nn.Module, architecture: Architecture) -> None:
    """Refuse a model whose infinite-width law is not implemented.

    Raises:
        UnsupportedModelError: naming every such place.
    """
    places = []
    for layer in architecture.layers:
        module = model.get_submodule(layer.path)
        if layer.kind == "embedding":
            places.append(
                Place(
                    layer.path,
                    "the theory has no infinite embedding yet",
                    "compare wide networks of several widths instead, or feed one-hot rows to an nn.Linear",
                )
            )
        elif layer.role not in (Role.INPUT, Role.HIDDEN, Role.READOUT):
            places.append(
                Place(layer.path, f"a {layer.kind} layer cannot have the role {layer.role}", "correct roles=")
            )
        elif isinstance(module, _ConvNd) and layer.role is Role.READOUT:
            reason = "the theory has no convolution as the readout yet"
            places.append(Place(layer.path, reason, "average over the positions, then read out with an nn.Linear"))
        elif isinstance(module, _ConvNd) and module.groups != 1:
            places.append(Place(layer.path, "the theory has no convolution in groups yet", "build it with groups=1"))
    has_positions = any(layer.kind == "conv" for layer in architecture.layers)
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            reason = "BatchNorm couples the samples of a batch, which the theory does not cover"
            places.append(Place(path, reason, "replace it by nn.LayerNorm or nn.RMSNorm, or leave it out"))
        elif has_positions and len(getattr(module, "normalized_shape", ())) > 1:
            reason = "the theory has no norm over channels and positions together yet"
            places.append(Place(path, reason, "normalise the channels of each position, or leave it out"))
        elif isinstance(module, nn.GroupNorm):
            places.append(Place(path, "the theory has no GroupNorm yet", "replace it by nn.LayerNorm"))
        elif isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            places.append(Place(path, "dropout makes training random", "set p=0, also in the network to compare with"))
    if places:
        raise UnsupportedModelError("The theory cannot predict this model:", places)


def refuse_unwidenable(model: nn.Module) -> None:
    """Refuse a model that cannot be built at another width.

    Raises:
        UnsupportedModelError: naming every such place.
    """
    places = []
    for path, module in model.named_modules():
        groups = getattr(module, "groups", 1)
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            places.append(Place(path, "dropout makes training random", "set p=0, also in the network to compare with"))
        elif isinstance(module, _ConvNd) and groups not in (1, module.in_channels):
            places.append(Place(path, f"{groups} groups of channels have no meaning at other widths", "groups=1"))
        elif any(True for _ in module.parameters(recurse=False)) and not isinstance(module, _WIDENED):
            reason = f"a {type(module).__name__} cannot be built at another width yet"
            places.append(Place(path or "(model)", reason, "use linear, convolution, LayerNorm, RMSNorm or BatchNorm"))
    if places:
        raise UnsupportedModelError("This model cannot be widened:", places)


def has_composite_axes(architecture: Architecture) -> bool:
    """Whether a layer reads an axis made from those that layers write: a flattened feature map, a concatenation."""
    written = {layer.out_axis for layer in architecture.layers}
    return any(layer.in_axis not in written for layer in architecture.layers if layer.in_axis is not None)


def widened(model: nn.Module, architecture: Architecture, neurons: int) -> nn.Module:
    """A copy of a model with every width scaled so that the readout reads ``neurons`` neurons; parameters on "meta".

    Where an axis is made from others (a flattened feature map holds every channel at every position) or laid out in heads,
    all widths scale by one ratio that keeps them integers, so the width is the nearest possible.
    """
    ratio = neurons / architecture.width
    if has_composite_axes(architecture) or architecture.has_parts:
        sizes = [layer.in_features for layer in architecture.layers if layer.in_axis is not None]
        unit = math.gcd(*sizes, *(product.size for product in architecture.dot_products))
        ratio = max(1, round(ratio * unit)) / unit

    def wide(features: int, axis: int | None) -> int:
        return features if axis is None else max(1, round(features * ratio))

    # Weights are replaced, so they are not copied.
    kept = {id(parameter): parameter for parameter in model.parameters()}
    result = copy.deepcopy(model, memo=dict(kept))
    with torch.device("meta"):
        for layer in architecture.layers:
            size = wide(layer.in_features, layer.in_axis), wide(layer.out_features, layer.out_axis)
            result.set_submodule(layer.path, _wide_layer(model.get_submodule(layer.path), *size))
        axes = {vector.path: vector.axis for vector in architecture.vectors}
        for path, module in model.named_modules():
            if isinstance(module, NORMS):
                result.set_submodule(path, _wide_norm(module, partial(wide, axis=axes.get(path, _ANY_WIDTH))))
    return result


def _wide_layer(module: nn.Module, inputs: int, outputs: int) -> nn.Module:
    has_bias = getattr(module, "bias", None) is not None
    if not isinstance(module, _ConvNd):
        return nn.Linear(inputs, outputs, has_bias)
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
    )


def _wide_norm(module: nn.Module, wide: Callable[[int], int]) -> nn.Module:
    if isinstance(module, _NormBase):
        settings = module.eps, module.momentum, module.affine, module.track_running_stats
        return type(module)(wide(module.num_features), *settings)
    assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
    *positions, features = module.normalized_shape
    shape = [*positions, wide(features)]
    if isinstance(module, nn.RMSNorm):
        return nn.RMSNorm(shape, module.eps, module.elementwise_affine)
    has_shift = getattr(module, "bias", None) is not None
    return nn.LayerNorm(shape, module.eps, module.elementwise_affine, bias=has_shift)


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
    handles = [model.get_submodule(layer.path).register_forward_hook(count(layer)) for layer in kept]
    try:
        with undisturbed(model), torch.no_grad():
            model(example_input)
    finally:
        for handle in handles:
            handle.remove()
    return rows


def materialise(model: nn.Module, like: Tensor) -> None:
    """Give every module that is still on "meta" memory: norm layers with their own initial values, weights with zeros.

    Raises:
        UnsupportedModelError: for modules that cannot initialise themselves, naming all of them.
    """
    places = []
    for path, module in model.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if not any(tensor.is_meta for tensor in own):
            continue
        if not isinstance(module, _WIDENED):
            reason = f"{type(module).__name__} holds tensors of its own"
            remedy = "build them in forward, or pass a model rather than a factory"
            places.append(Place(path or "(model)", reason, remedy))
            continue
        module.to_empty(device=like.device, recurse=False)
        module.to(like.dtype)
        if isinstance(module, NORMS):
            module.reset_parameters()
        else:
            for parameter in module.parameters(recurse=False):
                nn.init.zeros_(parameter)
    if places:
        raise UnsupportedModelError("The wide model cannot be built:", places)
