"""The scripts of the paper's figures run at small sizes, find what they should, and the gallery says what full runs found."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from torch_dmft.core.errors import InvalidInputError

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "examples" / "figures"
SCRIPTS = sorted(path.stem for path in FIGURES.glob("*.py") if path.stem != "common")
PNG = b"\x89PNG"


@pytest.fixture
def scope(monkeypatch) -> Callable[[str], dict]:
    """The names of a script, which finds ``common`` beside it."""
    monkeypatch.syspath_prepend(FIGURES)
    return lambda name: runpy.run_path(str(FIGURES / f"{name}.py"))


@pytest.fixture
def quick(scope, tmp_path) -> Callable[[str], dict[str, bool | None]]:
    """Claim -> whether it holds, as a script finds with --quick and writes down."""

    def run(name: str) -> dict[str, bool | None]:
        claims = scope(name)["main"](["--quick", "--folder", str(tmp_path)])
        known = json.loads((tmp_path / f"{name}.json").read_text())
        assert known["quick"]
        assert [claim["found"] for claim in known["claims"]] == [claim.found for claim in claims]
        if name.startswith("figure"):
            assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)
        return {claim.said: claim.holds for claim in claims}

    return run


def otherwise(claims: dict[str, bool | None]) -> list[str]:
    """The beginnings of the claims that were not found."""
    return [said[:17] for said, holds in claims.items() if not holds]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_explains_it(name, scope, capsys):
    with pytest.raises(SystemExit) as exit_:
        scope(name)["main"](["--help"])
    assert exit_.value.code == 0
    assert f"python examples/figures/{name}.py" in capsys.readouterr().out


def test_figure1(quick):
    assert otherwise(quick("figure1")) == ["(f, i) Around N =", "(f) Finite-width "]  # at N = 64


def test_figure2(quick):
    """Networks this narrow scatter by more than depth makes of them."""
    assert otherwise(quick("figure2")) == ["(c) At equal gamm", "(c) ... each laye"]


def test_figure3(quick):
    """Of this few images the tangent kernel's alignment rises no more from gamma0 = 1 to 2."""
    assert otherwise(quick("figure3")) == ["gamma0 > 0 has a ", "(b) The final ker", "4.2: ... of ReLU "]


def test_figure4(quick):
    assert otherwise(quick("figure4")) == ["5.2, eq. 12: the ", "5.2: ... and at a"]


def test_the_leading_order_of_the_tangent_kernel(scope):
    """Perturbation theory has (L + 1) (L + 2) / 6 times the kernel's move that the paper prints."""
    *_, printed = scope("figure4")["leading_order"]((1, 2, 3))
    assert printed == pytest.approx([1, 2, 10 / 3], rel=0.01)


def test_figure5(quick):
    """Networks this narrow tell no widths apart, but richness."""
    claims = quick("figure5")
    assert len(claims) == 6
    assert [*claims.values()][3:] == [True, True, True]


def test_table1(quick):
    claims = quick("table1")
    assert len(claims) == 14
    assert [said for said, holds in claims.items() if holds is None] == [
        said for said in claims if "not in the table" in said
    ]


def test_costs_are_measured(scope):
    """Memory of a square matrix grows with the square of its size, time of loops with their number."""
    names = scope("table1")

    def run(sizes: dict[str, int]) -> object:
        kept = torch.ones(sizes["P"], sizes["P"], device="cpu")
        sum(range(20_000 * sizes["T"]))
        return kept

    method = names["Method"](
        run, {"P": 10, "T": 1}, {"P": (8000, 16000), "T": (100, 400)}
    )  # 256 MB and more, which no heap has to spare
    found = names["exponents"](method, 1)
    assert found["P"][1] == pytest.approx(2, abs=0.4)
    assert found["T"][0] == pytest.approx(1, abs=0.3)
    assert abs(found["T"][1]) < 0.7


def test_laws_are_shown_short(scope):
    law = scope("table1")["law"]
    assert law({"P": 1.04, "T": 0.02, "N": 2.1}) == "P N^2.1"
    assert law({"P": 0.0}) == "1"


def test_the_gallery_says_what_full_runs_found():
    page = (ROOT / "docs" / "gallery.md").read_text()
    verdicts = {True: "yes", False: "**no**", None: "-"}
    folder = ROOT / "docs" / "assets" / "gallery"
    files = sorted(folder.glob("*.json"))
    assert [file.stem for file in files] == SCRIPTS
    others = sorted(folder.glob("cifar10/*.json"))
    assert [file.stem for file in others] == SCRIPTS[:5]
    rows = page.count("\n| ") - page.count("| the paper says |")
    for file in [*files, *others]:
        known = json.loads(file.read_text())
        assert not known["quick"]
        assert f"*{known['settings']}; {known['cpu_seconds']} s of CPU time" in page
        assert f"python examples/figures/{file.stem}.py{' --data cifar10' if file in others else ''}" in page
        for claim in known["claims"]:
            said, found = (claim[key].replace("|", "\\|") for key in ("said", "found"))
            assert f"| {said} | {found} | {verdicts[claim['holds']]} |" in page
            rows -= 1
    assert rows == 0


def test_missing_data_are_told(scope, tmp_path):
    with pytest.raises(InvalidInputError, match=r"CIFAR-10"):
        scope("figure2")["main"](
            ["--quick", "--data", "cifar10", "--data-dir", str(tmp_path), "--folder", str(tmp_path)]
        )
