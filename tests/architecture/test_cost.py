"""The cost of ``describe`` is linear in the depth of a model, and its room has no circles of imports."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
from torch import nn

import torch_dmft.architecture
from tests.architecture.models import ResidualMLP
from tests.transformer import FEATURES, TOKENS, Transformer
from torch_dmft.architecture import describe


class FusedBlocks(nn.Module):
    """Attention with one projection for queries, keys and values, in a row."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(FEATURES, 16), nn.Linear(16, 1)
        self.blocks = nn.Sequential(*(Branch() for _ in range(blocks)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean(1))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, scale=1 / q.shape[-1])
        return x + mixed.transpose(1, 2).flatten(2)


def python_calls(model: nn.Module, example: torch.Tensor) -> int:
    """How many calls, of functions of python and of C, it takes to describe a model."""
    describe(model, example)  # whatever happens at the first call only
    count = 0

    def see(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        describe(model, example)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "build", [lambda n: Transformer(16, blocks=n), FusedBlocks], ids=["projections of their own", "one projection"]
)
def test_describing_is_linear_in_the_number_of_blocks(build: Callable[[int], nn.Module]) -> None:
    example = torch.randn(3, TOKENS, FEATURES)
    few, some, many = (python_calls(build(blocks), example) for blocks in (3, 6, 12))
    assert (many - some) / 6 < 1.05 * (some - few) / 3


def test_describing_is_linear_in_the_depth_of_a_residual_stream() -> None:
    example = torch.randn(3, 5)
    few, some, many = (python_calls(ResidualMLP(16, blocks), example) for blocks in (4, 8, 16))
    assert (many - some) / 8 < 1.05 * (some - few) / 4


def test_no_module_of_the_room_imports_one_that_imports_it() -> None:
    room = Path(torch_dmft.architecture.__file__).parent
    imports: dict[str, set[str]] = {}
    for file in room.rglob("*.py"):
        name = ".".join(("torch_dmft.architecture", *file.relative_to(room).with_suffix("").parts))
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        known = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
        imports[name] = {node.module or "" for node in nodes} | known
    inside = set(imports)
    packages = {f"{package}.__init__" for package in ("torch_dmft.architecture", "torch_dmft.architecture.operations")}
    graph = {name: (uses & inside) for name, uses in imports.items() if name not in packages}
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("torch_dmft.architecture.axes") < order.index("torch_dmft.architecture.describe")
