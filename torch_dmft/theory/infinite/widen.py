"""The same model at another width: what can be widened, and how."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torch_dmft.architecture import Architecture, Role
from torch_dmft.core.errors import Place, UnsupportedModelError

_NORMS = (nn.LayerNorm, nn.RMSNorm)


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


def widened(model: nn.Module, architecture: Architecture, neurons: int) -> nn.Module:
    """A copy of a model with every width scaled so that the readout reads ``neurons`` neurons; parameters on "meta"."""

    def wide(features: int, is_width: bool) -> int:
        return max(1, round(features * neurons / architecture.width)) if is_width else features

    # Weights are replaced, so they are not copied.
    kept = {id(parameter): parameter for parameter in model.parameters()}
    result = copy.deepcopy(model, memo=dict(kept))
    with torch.device("meta"):
        for layer in architecture.layers:
            features = wide(layer.in_features, layer.in_axis is not None)
            linear = nn.Linear(features, wide(layer.out_features, layer.out_axis is not None), layer.bias is not None)
            result.set_submodule(layer.path, linear)
        for path, module in model.named_modules():
            if isinstance(module, _NORMS):
                result.set_submodule(path, _wide_norm(module, wide))
    return result


def _wide_norm(module: nn.LayerNorm | nn.RMSNorm, wide: Callable[[int, bool], int]) -> nn.Module:
    *positions, features = module.normalized_shape
    shape = [*positions, wide(features, True)]
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
        if not isinstance(module, _NORMS):
            reason = f"{type(module).__name__} holds tensors of its own"
            remedy = "build them in forward, or pass a model rather than a factory"
            places.append(Place(path or "(model)", reason, remedy))
            continue
        module.to_empty(device=like.device, recurse=False)
        module.to(like.dtype)
        module.reset_parameters()
    if places:
        raise UnsupportedModelError("The wide model cannot be built:", places)
