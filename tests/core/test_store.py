"""Files hold every bit of a trajectory, and refuse what they cannot read."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from torch_dmft.core import store
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.kernel import Kernel
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
        lr=0.1 + 0.2,
        train=torch.tensor([True, True, False]),
        targets=draw(3, 2) if nested else None,
        stderr=example(generator, nested=False) if nested else None,
        metadata=METADATA,
    )


def identical(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        return same and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
    if is_dataclass(a):
        return type(a) is type(b) and all(identical(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(identical, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_round_trip_keeps_every_bit(dtype: torch.dtype, generator: torch.Generator, tmp_path: Path) -> None:
    trajectory = example(generator, dtype)
    trajectory.save(tmp_path / "run.npz")
    assert identical(Trajectory.load(tmp_path / "run.npz"), trajectory)


def test_views_are_saved_as_they_look(generator: torch.Generator, tmp_path: Path) -> None:
    trajectory = example(generator).at_steps(torch.tensor([5]))
    trajectory.save(tmp_path / "run")
    assert identical(Trajectory.load(tmp_path / "run"), trajectory)


def test_an_interrupted_save_leaves_the_old_file(
    generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.npz"
    old = example(generator)
    old.save(path)

    def interrupted(file: Any, **_: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        example(generator).save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert identical(Trajectory.load(path), old)


def test_what_is_no_trajectory_is_refused(tmp_path: Path) -> None:
    text, other = tmp_path / "text.npz", tmp_path / "other.npz"
    text.write_text("hello")
    np.savez(other, a=np.zeros(3))
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, header=np.array(json.dumps({"format": "something else"})))
    for path in (text, other, foreign):
        with pytest.raises(InvalidInputError, match="no saved trajectory"):
            store.load(path)
    with pytest.raises(FileNotFoundError):
        store.load(tmp_path / "missing.npz")


def test_unknown_schema_is_refused(generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SCHEMA", 99)
    example(generator).save(tmp_path / "run.npz")
    monkeypatch.undo()
    with pytest.raises(InvalidInputError, match="schema 99"):
        store.load(tmp_path / "run.npz")
