"""The figure of gaps against width can be read."""

import pytest

from torch_dmft.comparison.width import Gap
from torch_dmft.report.widths import gap_figure


@pytest.mark.parametrize("narrow", [0.011, 0.04, 0.2])
def test_errors_within_a_factor_of_two_have_ticks_with_numbers(narrow):
    figure = gap_figure([Gap(128, 2 * narrow, 2 * narrow, 2 * narrow), Gap(512, narrow, narrow, narrow)])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    ticks = zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
    shown = [label.get_text() for label, place in ticks if low <= place <= high]
    assert len(shown) >= 3
    assert all(0.01 <= float(text) <= 0.5 for text in shown)
