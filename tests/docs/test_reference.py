"""The reference is complete: every public name has its entry."""

import re
from pathlib import Path

import pytest

import torch_dmft

PAGES = (Path(__file__).parents[2] / "docs").rglob("*.md")
ENTRIES = {name for page in PAGES for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("name", sorted(set(torch_dmft.__all__) - {"__version__", "solvers"}))
def test_public_names(name):
    assert name in {entry.rpartition(".")[2] for entry in ENTRIES}


@pytest.mark.parametrize("name", torch_dmft.solvers.__all__)
def test_solvers(name):
    assert f"torch_dmft.theory.solvers.{name}" in ENTRIES
