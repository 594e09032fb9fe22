"""A trajectory that is saved, and what happens to its file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.training import Training
from torch_dmft.core.trajectory import Fields, LayerKernels, Trajectory

METADATA = {"width": 64, "gamma0": 0.1 + 0.2, "scheme": "mean_field", "two_time": True, "seed": None}


def example(generator: torch.Generator, dtype: torch.dtype = torch.float32, *, nested: bool = True) -> Trajectory:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    layers = tuple(
        LayerKernels(
            name,
            Kernel(draw(2, 3, 2, 3)),
            Kernel(draw(2, 3, 2, 3, 2)),
            Kernel(draw(2, 3, 2, 3, 2)),
            Fields(torch.tensor([0, 5]), draw(2, 3, 4), draw(2, 3, 2, 4), "tanh") if name == "fc.0" else None,
        )
        for name in ("fc.0", "head")
    )
    losses = draw(2)
    losses[0] = math.nan
    return Trajectory(
        steps=torch.tensor([0, 5]),
        outputs=draw(2, 3, 2),
        losses=losses,
        layers=layers,
        ntk=Kernel(draw(2, 3, 2, 3, 2)),
        origin="theory (N=inf), γ₀ = 0.3",
        training=Training(
            steps=5,
            numbers={"lr": torch.linspace(0.1, 0.3, 5, dtype=torch.float64), "momentum": 0.1 + 0.2},
            exceptions={"head.weight": {"lr": 0.7}},
            frozen=("fc.0.bias",),
            batches=tuple(torch.tensor([step % 2, 0]) for step in range(5)) if nested else None,
        ),
        train=torch.tensor([True, True, False]),
        targets=draw(3, 2) if nested else None,
        stderr=example(generator, nested=False) if nested else None,
        metadata=METADATA,
    )


def refused(path: Path, match: str) -> None:
    with pytest.raises(InvalidInputError, match=match) as caught:
        Trajectory.load(path)
    assert " Got: " in str(caught.value)
    assert " Remedy: " in str(caught.value)


def loads_equal_or_is_refused(path: Path, run: Trajectory) -> bool:
    """Whether it loads; any other error than an InvalidInputError fails the test."""
    try:
        again = Trajectory.load(path)
    except InvalidInputError:
        return False
    assert again == run
    return True


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the header and the arrays of a file, whose checksums then are right."""
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(str(arrays.pop("header")))
    change(header, arrays)
    np.savez(path, header=np.array(json.dumps(header)), **arrays)
