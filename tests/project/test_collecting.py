"""Collecting the tests stays cheap: every worker of a run pays for all that test modules import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("transformers", "lightning", "torchvision", "timm", "accelerate", "scipy", "sklearn", "torch.distributed.fsdp")
"""What takes a fifth of a second or more, and few tests need: fixtures and functions import it."""
COLLECT = f"""
import sys, pytest
sys.path.insert(0, "")
code = pytest.main(["--collect-only", "-qq", *sys.argv[1:]])
print("imported:", sorted(set({HEAVY}) & set(sys.modules)), int(code))
"""


def collected(*arguments: str, folder: Path = ROOT) -> str:
    run = subprocess.run([sys.executable, "-c", COLLECT, *arguments], cwd=folder, capture_output=True, text=True)
    return run.stdout.splitlines()[-1]


def test_test_modules_import_nothing_heavy() -> None:
    assert collected() == "imported: [] 0"


@pytest.mark.parametrize("line", ["import scipy", "pytest.importorskip('accelerate')"])
def test_a_heavy_import_is_seen(line: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(f"import pytest\n{line}\ndef test_it(): pass\n")
    assert collected("test_it.py", folder=tmp_path) != "imported: [] 0"
