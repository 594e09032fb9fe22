"""The script that draws the pictures of the pages draws all of them, and each of them is shown."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from tests.docs.conftest import ROOT


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["kernels", "ntk", "lazy-or-rich", "random", "coordinate-check"])
def test_a_picture(name, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "STEPS", 5)  # less than on the pages
    monkeypatch.setattr(pictures, "SEEDS", 2)
    pictures.main([name, "--folder", str(tmp_path)])
    drawn = tmp_path / f"{name}.png"
    assert capsys.readouterr().out.strip() == str(drawn)
    shown = ROOT / "docs" / "assets" / f"{name}.png"
    assert (drawn.read_bytes()[:24], len(drawn.read_bytes()) < 200_000) == (shown.read_bytes()[:24], True)  # head, size
    assert any(f"](assets/{name}.png)" in page.read_text() for page in (ROOT / "docs").glob("*.md"))


def test_all_are_tried(pictures):
    assert set(pictures.PICTURES) == {"kernels", "ntk", "lazy-or-rich", "random", "coordinate-check"}
