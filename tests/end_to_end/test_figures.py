"""The scripts of the paper's figures run at small sizes, find what they should, and the gallery says what full runs found."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

FIGURES = Path(__file__).parents[2] / "examples" / "figures"
PNG = b"\x89PNG"


@pytest.fixture
def script(monkeypatch) -> Callable:
    """What a script's ``main`` returns with --quick, beside its folder."""
    monkeypatch.syspath_prepend(FIGURES)

    def run(name: str, folder: Path) -> dict[str, bool]:
        found = runpy.run_path(str(FIGURES / f"{name}.py"))["main"](["--quick", "--folder", str(folder)])
        known = json.loads((folder / f"{name}.json").read_text())
        assert known["quick"]
        assert [claim["found"] for claim in known["claims"]] == [claim.found for claim in found]
        return {claim.said: claim.holds for claim in found}

    return run


def otherwise(claims: dict[str, bool]) -> list[str]:
    """The beginnings of the claims that were not found."""
    return [said[:17] for said, holds in claims.items() if not holds]


def test_figure2(script, tmp_path):
    assert otherwise(script("figure2", tmp_path)) == ["(c) At equal gamm", "(c) ... each laye"]
    assert (tmp_path / "figure2.png").read_bytes().startswith(PNG)


def test_figure3(script, tmp_path):
    assert otherwise(script("figure3", tmp_path)) == ["gamma0 > 0 has a ", "4.2: ... of ReLU "]
    assert (tmp_path / "figure3.png").read_bytes().startswith(PNG)
