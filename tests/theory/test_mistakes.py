"""A user's mistakes are refused before any work, each with its remedy; in a process whose annotations are not checked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.theory.mistakes import mistakes

WANTED = {name: told for name, (_, told) in mistakes().items()}


@pytest.fixture(scope="module")
def answers() -> dict[str, list[str]]:
    """Error, message and remedy of every mistake."""
    command = [sys.executable, "-m", "tests.theory.mistakes"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=root)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("mistake", WANTED)
def test_is_refused_with_a_remedy(answers: dict[str, list[str]], mistake: str) -> None:
    kind, message, remedy = answers[mistake]
    assert kind == "InvalidInputError", message
    assert re.search(WANTED[mistake], message), message
    assert remedy
