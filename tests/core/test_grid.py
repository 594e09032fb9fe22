"""Grid: whatever the width of the page, every cell is there."""

import io
import re

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from torch_dmft.core.grid import Grid

GRID = Grid(
    "Kernels at step 45",
    ("l", "weight"),
    (("Phi", "align"), ("Phi", "error"), ("G", "align"), ("G", "error"), ("NTK", "error")),
    (
        ("0", "encoder.layers.10.attention.query", "1.0000", "0", "0.9964", "0.088 ± 0.02", "0.084"),
        ("1", "fc", "0.9997", "0.024 ± 0.005", "0.9992", "0.06 ± 0.01", "0.061 ± 0.01"),
    ),
)


@given(st.integers(46, 200))
def test_no_digit_is_cut_and_no_line_is_too_long(width):
    text = GRID.text(width)
    assert max(map(len, text.splitlines())) <= width
    for row in GRID.rows:
        for cell in row[2:]:
            assert re.search(rf"(^|\s){re.escape(cell)}($|\s)", text, re.MULTILINE)
    assert all(part in text for part in ("encoder.", "layers.", "10.", "attention.", "query"))


def test_groups_share_a_heading_and_stay_together():
    first, second = GRID.text(66).split("\n\n")
    assert first.splitlines()[1].split() == ["Phi"]
    assert second.splitlines()[0].split() == ["G", "NTK"]


def test_rich_prints_the_same_at_every_width():
    for width in (30, 60, 80, 120):
        console = Console(file=io.StringIO(), width=width)
        console.print(GRID)
        printed = console.file.getvalue()
        for row in GRID.rows:
            assert all(number in printed for cell in row[2:] for number in cell.split(" ± "))


def test_markdown_and_html_have_every_cell():
    grid = Grid("a <b>", ("name",), (("", "x"),), (("p|q", "<1>"),))
    assert grid.markdown() == "| name | x |\n| --- | --: |\n| p\\|q | <1> |"
    assert "<td>p|q</td><td>&lt;1&gt;</td>" in grid.html()
    assert "a &lt;b&gt;" in grid.html()
