"""What is known of each layer type: its facts, inherited by its subclasses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch
from typing import Literal

from torch import nn

from torch_dmft.core.torch_private import ConvBase, ConvTransposeBase, NormBase

Kind = Literal["linear", "conv", "embedding"]


@dataclass(frozen=True)
class Weight:
    """A layer with a weight; the fields are those of ``roles.Layer``."""

    kind: Kind
    fan_in: int
    in_features: int
    out_features: int
    taps: int = 1


@dataclass(frozen=True)
class Norm:
    """A normalisation layer: its parameters, if any, are one number per neuron."""


@singledispatch
def facts_of(module: nn.Module) -> Weight | Norm | None:
    """The facts of a layer type, None for unknown types."""
    return None


@facts_of.register
def _(module: nn.Linear) -> Weight:
    return Weight("linear", module.in_features, module.in_features, module.out_features)


@facts_of.register
def _(module: ConvBase) -> Weight:
    taps = math.prod(module.kernel_size)
    return Weight("conv", taps * module.in_channels // module.groups, module.in_channels, module.out_channels, taps)


@facts_of.register
def _(module: ConvTransposeBase) -> None:
    return None  # a subclass of ConvBase, but its fan-in depends on the position


@facts_of.register
def _(module: nn.Embedding) -> Weight | None:
    # max_norm rewrites the weight inside the forward pass
    return None if module.max_norm is not None else Weight("embedding", 1, module.num_embeddings, module.embedding_dim)


@facts_of.register(NormBase)
@facts_of.register(nn.LayerNorm)
@facts_of.register(nn.GroupNorm)
@facts_of.register(nn.RMSNorm)
def _(module: nn.Module) -> Norm:
    return Norm()


def remedy(module: nn.Module) -> str:
    """What to do about a module of unknown type that owns parameters."""
    match module:
        case nn.RNNBase() | nn.RNNCellBase():
            return "not yet; unroll the recurrence over nn.Linear modules"
        case nn.MultiheadAttention() | nn.TransformerEncoderLayer() | nn.TransformerDecoderLayer():
            return (
                "never, as it divides scores by sqrt(d); write it with four nn.Linear, heads = unflatten(-1, (H, -1)) and "
                "scaled_dot_product_attention(q, k, v, scale=1 / q.shape[-1])"
            )
        case nn.Bilinear():
            return "never; replace it by nn.Linear layers on each input"
        case ConvTransposeBase():
            return "not yet; replace it by nn.Upsample and a convolution"
        case nn.Embedding():
            return "never with max_norm; build the embedding without it"
        case nn.EmbeddingBag():
            return "not yet; replace it by nn.Embedding and a mean"
        case nn.PReLU():
            return "not yet (all neurons share its slope); replace it by nn.LeakyReLU"
        case _:
            return "replace its parameters by nn.Linear, nn.Conv, nn.Embedding or norm modules and call those"
