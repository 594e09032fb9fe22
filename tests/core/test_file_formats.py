"""Any registered dataclass goes to a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torch_dmft.core import serial
from torch_dmft.core.equality import by_value
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.trajectory import Trajectory


@dataclass(frozen=True)
class Leaf:
    number: int
    facts: Mapping[Any, Any]


@by_value
@dataclass(frozen=True)
class Tree:
    leaves: tuple[Leaf, ...]
    first: Leaf | None = None


@dataclass(frozen=True)
class Stranger:
    number: int


TREES = serial.FileFormat("trees", 1, root=Tree, parts=(Leaf,))


def test_any_registered_dataclass_goes_to_a_file(tmp_path: Path) -> None:
    tree = Tree((Leaf(1, {"a": "b"}), Leaf(2, {"leaf": Leaf(3, {}), "infinite": math.inf})), first=Leaf(4, {}))
    serial.write(tree, tmp_path / "tree", TREES)
    assert serial.read(tmp_path / "tree", TREES) == tree
    with pytest.raises(InvalidInputError, match=r"not a saved trajectory.*Trajectory\.save"):
        Trajectory.load(tmp_path / "tree")


def test_mappings_hold_tensors_tuples_and_mappings(tmp_path: Path) -> None:
    facts = {"lr": torch.tensor(0.1), "widths": (8, 16), "a.b": {"c": torch.arange(3)}, "a": {"b": torch.ones(())}}
    facts |= {3: math.nan, None: [1, None, "x"], "numpy": np.int64(3), "single": np.float32(0.1), "/": torch.ones(0, 3)}
    tree = Tree((Leaf(1, facts),))
    serial.write(tree, tmp_path / "tree", TREES)
    again = serial.read(tmp_path / "tree", TREES)
    assert again == tree
    (leaf,) = again.leaves
    assert list(leaf.facts) == list(facts)
    assert (type(leaf.facts["widths"]), type(leaf.facts[None]), type(leaf.facts["numpy"])) == (tuple, list, int)


def test_what_cannot_be_saved_is_named_and_leaves_the_old_file(tmp_path: Path) -> None:
    path, tree = tmp_path / "tree", Tree((Leaf(1, {}),))
    serial.write(tree, path, TREES)
    for wrong, name in (
        (Tree((Leaf(1, {"a": {"loss": len}}),)), "tree.leaves.0.facts.0.0"),
        (Tree((Leaf(1, {(1, 2): 3}),)), "tree.leaves.0.facts"),
        (Tree((Leaf(1, {"z": 1j}),)), "tree.leaves.0.facts.0"),
        (Tree((Leaf(1, {"a": Stranger(1)}),)), "tree.leaves.0.facts.0"),
        (Tree((Leaf(1.5, {}),)), "tree.leaves.0.number"),
        (Tree([Leaf(1, {})]), "tree.leaves"),
    ):
        with pytest.raises(InvalidInputError, match=f"`{name}` cannot be saved.*Got.*Remedy"):
            serial.write(wrong, path, TREES)
    with pytest.raises(InvalidInputError, match="must be a Tree"):
        serial.write(Stranger(1), path, TREES)
    assert serial.read(path, TREES) == tree
    assert list(tmp_path.iterdir()) == [path]
