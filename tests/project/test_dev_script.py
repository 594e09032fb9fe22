"""The development script: it explains itself, and refuses before it installs anything."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def dev(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", ROOT / "dev", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",)])
def test_it_lists_its_commands(arguments):
    shown = dev(*arguments)
    assert shown.returncode == 0
    for command in ("demo", "test", "check", "browser", "validate", "bench", "docs"):
        assert f"\n  {command} " in shown.stdout


def test_an_unknown_command_is_named():
    shown = dev("tset")
    assert shown.returncode == 1
    assert "'tset'" in shown.stderr


def test_an_old_python_is_refused_by_name(tmp_path):
    """A copy, because the real place has its environment already."""
    for name in ("dev", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    shown = subprocess.run(
        ["bash", tmp_path / "dev", "test"],
        env=os.environ | {"PYTHON": str(old)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shown.returncode == 1
    assert f"PYTHON={old}" in shown.stderr
    assert "3.11" in shown.stderr
    assert not (tmp_path / ".venv").exists()
