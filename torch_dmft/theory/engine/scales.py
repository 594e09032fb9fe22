"""Gains, shifts and layer scales in a twin: what they start at, and which starts have no limit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from torch_dmft.architecture import Architecture
from torch_dmft.core.errors import Place, UnsupportedModelError
from torch_dmft.parameterization import ParameterRule


def refuse_other_starts(architecture: Architecture, rules: tuple[ParameterRule, ...]) -> None:
    """Refuse norm layers whose gain or shift did not start at one and zero, as those of the twin do."""
    started = {rule.name: rule.std / rule.start for rule in rules}
    places = [
        Place(
            vector.path,
            f"{vector.name} starts at a root mean square of {started[vector.name]:.3g}, which the twin cannot take over",
            "start norm layers at gain 1 and shift 0",
        )
        for vector in architecture.vectors
        if vector.is_norm
        and not math.isclose(started[vector.name], float(vector.name.endswith("weight")), abs_tol=1e-6)
    ]
    if places:
        raise UnsupportedModelError("The theory cannot predict this model:", places)


def refuse_other_scales(architecture: Architecture, other: Architecture) -> None:
    """Refuse layer scales whose start depends on the width."""
    places = [
        Place(
            one.path or "(model)",
            f"{one.name} starts at {one.start:.6g}, but at another width at {two.start:.6g}",
            _ALIKE,
        )
        for one, two in zip(architecture.vectors, other.vectors, strict=True)
        if one.start is not None and two.start is not None and not math.isclose(one.start, two.start, rel_tol=1e-6)
    ]
    if places:
        raise UnsupportedModelError("The theory cannot predict this model:", places)


_ALIKE = "one number at every width"


def fill_scales(wide: nn.Module, architecture: Architecture, like: Tensor) -> None:
    """Let the layer scales of a factory's model, which are on "meta", start."""
    for vector in architecture.vectors:
        if vector.start is not None:
            owner, name = wide.get_submodule(vector.path), vector.name.rpartition(".")[2]
            value = torch.full(owner.get_parameter(name).shape, vector.start, dtype=like.dtype, device=like.device)
            setattr(owner, name, nn.Parameter(value))
