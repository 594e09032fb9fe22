"""What the README repeats of other pages is what they say."""

import re
import tomllib

import pytest

from tests.docs.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_table_of_costs_is_that_of_the_page() -> None:
    page = (ROOT / "docs" / "scale.md").read_text().splitlines()
    rows = re.findall(r"^\| (?:tanh|relu) \|.*$", README, re.MULTILINE)
    assert len(rows) >= 5
    assert set(rows) <= set(page)
    heads = [line for line in README.splitlines() if line.startswith("| activation |")]
    assert heads
    assert set(heads) <= set(page)


def test_the_versions_of_torch_are_those_that_are_admitted_and_tested() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (oldest,) = [one.removeprefix("torch>=") for one in needed if one.startswith("torch>=")]
    (tested,) = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert f"tried with torch {oldest}.0 on" in README
    assert f"tested with torch {tested}." in README


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#\s]+)", README))))
def test_what_is_linked_is_there(link: str) -> None:
    assert (ROOT / link).exists()
