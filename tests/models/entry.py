"""One model of the compatibility table, at any width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Model:
    """A model, and what it is measured on.

    Attributes:
        library: where it comes from.
        name: what it is called there.
        build: makes it with all widths multiplied by a whole number; random numbers are seeded.
        inputs: for so many samples, what ``forward`` takes.
        outputs: which of its outputs is f.
        scales: what widths are multiplied by in the coordinate check; empty where only wrapping is tried.
        fixed: why its widths cannot be varied; empty if they can.
    """

    library: str
    name: str
    build: Callable[[int], nn.Module]
    inputs: Callable[[int], Any]
    outputs: Any = None
    scales: tuple[int, ...] = (2, 4, 8)
    fixed: str = ""


@dataclass(frozen=True)
class Width:
    """A number in a configuration that grows with the width: a size, or a number of heads of fixed size."""

    base: float


def at_scale(settings: Any, scale: int) -> Any:
    """A configuration with its widths multiplied by a whole number."""
    match settings:
        case Width():
            return scale * settings.base
        case dict():
            return {name: at_scale(value, scale) for name, value in settings.items()}
        case list() | tuple():
            return type(settings)(at_scale(value, scale) for value in settings)
    return settings


def images(size: int = 32, channels: int = 3) -> Callable[[int], Tensor]:
    return lambda samples: torch.randn(samples, channels, size, size, dtype=torch.float64)


def vectors(*shape: int) -> Callable[[int], Tensor]:
    return lambda samples: torch.randn(samples, *shape, dtype=torch.float64)


def tokens(length: int = 6, vocabulary: int = 40, *, masked: bool = True) -> Callable[[int], dict[str, Tensor]]:
    """Token ids, of which the last of the first sample are padding where models take masks."""

    def draw(samples: int) -> dict[str, Tensor]:
        ids = torch.randint(3, vocabulary, (samples, length))
        mask = torch.ones_like(ids)
        mask[0, length - 2 :] = 0
        return {"input_ids": ids, "attention_mask": mask} if masked else {"input_ids": ids}

    return draw
