"""nn.Module -> Architecture: which weights a model has, their roles, fan-in, and which axes are widths."""

from torch_dmft.architecture.describe import Wrapper, describe
from torch_dmft.architecture.roles import (
    Architecture,
    Attribute,
    Constant,
    DotProduct,
    Fold,
    Layer,
    Multiplier,
    Part,
    Role,
    Stream,
    Vector,
)

__all__ = [
    "Architecture",
    "Attribute",
    "Constant",
    "DotProduct",
    "Fold",
    "Layer",
    "Multiplier",
    "Part",
    "Role",
    "Stream",
    "Vector",
    "Wrapper",
    "describe",
]
