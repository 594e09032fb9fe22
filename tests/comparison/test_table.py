"""The printed report: the verdict first, one short table, and everything else on request; nothing is cut."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from tests.trajectories import two_layers
from torch_dmft.comparison import compare

WIDE = 200


def row_after(text: str, heading: str, *starts: str) -> list[str]:
    """The cells of the first row below a heading that holds all these words."""
    below = text[text.index(heading) :].splitlines()
    line = next(line for line in below[1:] if all(start in line for start in starts))
    return line.split()


def printed(value, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(value)
    return console.file.getvalue()


def test_the_verdict_comes_first_and_one_short_table_after_it(comparison):
    text = str(comparison)
    assert " ".join(text.split()).startswith(" ".join(comparison.verdict.split()))
    assert len(text.splitlines()) < 35
    table = text.split("\n\nnetwork (N=256) against")[1].split("\n\nalign:")[0]
    assert len(table.splitlines()) <= 10
    assert "comparison.details()" in text
    assert "the cosine of the angle" in " ".join(text.split())


def test_alignment_is_shown_at_eighty_columns(comparison):
    for text in (str(comparison), printed(comparison, 80)):
        assert max(map(len, text.splitlines())) <= 80
        for position, layer in enumerate(comparison.deviations[0].layers):
            cells = row_after(text, "against theory (N=inf) at step 45", f"{position}  ")
            for kernel in (layer.forward, layer.backward, layer.ntk):
                assert f"{kernel.alignment[-1]:.4f}" in cells


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_no_digit_is_cut_at_any_width(comparison, width):
    full = printed(comparison.details(), WIDE)
    numbers = set(re.findall(r"(?<!\S)-?\d+\.\d+(?:e-?\d+)?(?!\S)", full))
    assert len(numbers) > 50
    narrow = printed(comparison.details(), width)
    assert numbers <= set(re.findall(r"(?<!\S)-?\d+\.\d+(?:e-?\d+)?(?!\S)", narrow))
    assert "…" not in narrow
    assert max(map(len, narrow.splitlines())) <= width


def test_a_long_name_is_folded_and_not_cut(comparison):
    layers = tuple(
        replace(layer, name=f"encoder.layers.{i}.attention.fc") for i, layer in enumerate(comparison.measured.layers)
    )
    text = str(compare(replace(comparison.measured, layers=layers), *comparison.predictions))
    assert max(map(len, text.splitlines())) <= 80
    assert "".join(text.split()).count("attention.") >= 3


def test_a_deep_network_shows_the_weights_that_are_farthest_off():
    run = two_layers(noise=0.05)
    deep = replace(run, layers=run.layers[:1] + run.layers[1:2] * 30 + run.layers[2:])
    theory = two_layers(origin="theory (N=inf)")
    text = str(compare(deep, replace(theory, layers=theory.layers[:1] + theory.layers[1:2] * 30 + theory.layers[2:])))
    assert "the 8 weights of 32 that are farthest off" in " ".join(text.split())
    assert len(text.splitlines()) < 40


def test_kernels_at_the_end_show_every_prediction_with_its_bar(comparison):
    text = comparison.details().text(WIDE)
    for prediction, deviations in zip(comparison.predictions, comparison.deviations, strict=True):
        cells = row_after(text, "Kernels at step 45", prediction.origin)
        layer = deviations.layers[0]
        assert f"{layer.backward.alignment[-1]:.4f}" in cells
        assert f"{layer.ntk.relative_error[-1]:.2g}" in cells
    assert "±" in row_after(text, "Kernels at step 45", "theory (N=inf)")
    assert "±" not in row_after(text, "Kernels at step 45", "static NTK (N=inf)")


def test_means_over_time_are_means(comparison):
    cells = row_after(comparison.details().text(WIDE), "mean over the 10 steps", "static NTK")
    assert f"{comparison.deviations[1].layers[0].ntk.relative_error.mean():.2g}" in cells


def test_loss_and_learning_are_told_for_every_run(comparison):
    text = comparison.details().text(WIDE)
    for run in comparison.runs:
        assert f"{run.losses[-1]:.3g}" in row_after(text, "Loss and outputs", run.origin)
        assert row_after(text, "What was learned", run.origin)
    assert "test outputs" in text
    assert "test outputs" not in str(compare(two_layers(), two_layers(origin="theory (N=inf)")).details())


def test_lines_end_without_blanks(comparison):
    assert not any(line.endswith(" ") for line in f"{comparison}\n{comparison.details()}".splitlines())


def test_one_line_says_what_it_is_and_a_notebook_shows_tables(comparison):
    assert "\n" not in repr(comparison)
    assert len(repr(comparison)) < 200
    assert "10 common steps" in repr(comparison)
    html = comparison._repr_html_()
    assert "<table>" in html
    assert "<details>" in html
    assert f"{comparison.deviations[0].layers[0].backward.alignment[-1]:.4f}" in html


def test_several_outputs_print_too():
    found = compare(two_layers(outputs=3, noise=0.1), two_layers(outputs=3, origin="theory (N=inf)"))
    error = found.deviations[0].layers[0].backward.relative_error[-1]
    assert f"{error:.2g}" in row_after(found.details().text(WIDE), "Kernels at step 45", "theory (N=inf)")
