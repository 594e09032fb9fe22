"""The same model at another width: what can be widened, and how."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd

from torch_dmft.architecture import Architecture, Role
from torch_dmft.core.errors import Place, UnsupportedModelError

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
        if layer.kind != "linear":
            places.append(
                Place(
                    layer.path,
                    f"the theory has no infinite {layer.kind} layer yet",
                    "compare wide networks of several widths instead, or use nn.Linear layers",
                )
            )
        elif layer.role not in (Role.INPUT, Role.HIDDEN, Role.READOUT):
            places.append(Place(layer.path, f"a linear layer cannot have the role {layer.role}", "correct roles="))
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            reason = "BatchNorm couples the samples of a batch, which the theory does not cover"
            places.append(Place(path, reason, "replace it by nn.LayerNorm or nn.RMSNorm, or leave it out"))
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


def widened(model: nn.Module, architecture: Architecture, neurons: int) -> nn.Module:
    """A copy of a model with every width scaled so that the readout reads ``neurons`` neurons; parameters on "meta".

    Behind a flattened feature map the readout reads a multiple of its positions, so the width is the nearest possible.
    """
    sizes = {layer.out_axis: layer.out_features for layer in architecture.layers if layer.out_axis is not None}

    def wide(features: int, axis: int | None) -> int:
        if axis is None:
            return features
        size = sizes.get(axis, features)  # a flattened axis holds this many neurons at every position
        return features // size * max(1, round(size * neurons / architecture.width))

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


def materialise(model: nn.Module, like: Tensor) -> None:
    """Give every module that is still on "meta" memory and its own initial values.

    Raises:
        UnsupportedModelError: for modules that cannot initialise themselves, naming all of them.
    """
    places = []
    for path, module in model.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if not any(tensor.is_meta for tensor in own):
            continue
        if not isinstance(module, NORMS):
            reason = f"{type(module).__name__} holds tensors of its own"
            remedy = "build them in forward, or pass a model rather than a factory"
            places.append(Place(path or "(model)", reason, remedy))
            continue
        module.to_empty(device=like.device, recurse=False)
        module.to(like.dtype)
        module.reset_parameters()
    if places:
        raise UnsupportedModelError("The wide model cannot be built:", places)
