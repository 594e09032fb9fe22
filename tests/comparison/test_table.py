"""The printed table: everything is in it, in its place, and it fits a page."""

import io

from rich.console import Console

from tests.trajectories import two_layers
from torch_dmft.comparison import compare


def row_after(text: str, heading: str, *starts: str) -> list[str]:
    """The cells of the first row below a heading that holds all these words."""
    below = text[text.index(heading) :].splitlines()
    line = next(line for line in below[1:] if all(start in line for start in starts))
    return line.split()


def test_kernels_at_the_end_show_every_prediction_with_its_bar(comparison):
    text = str(comparison)
    for prediction, deviations in zip(comparison.predictions, comparison.deviations, strict=True):
        cells = row_after(text, "Kernels at step 45", prediction.origin)
        layer = deviations.layers[0]
        assert f"{layer.backward.alignment[-1]:.4f}" in cells
        assert f"{layer.ntk.relative_error[-1]:.2g}" in cells
    assert "±" in row_after(text, "Kernels at step 45", "theory (N=inf)")
    assert "±" not in row_after(text, "Kernels at step 45", "static NTK (N=inf)")


def test_means_over_time_are_means(comparison):
    cells = row_after(str(comparison), "mean over the 10 steps", "static NTK")
    assert f"{comparison.deviations[1].layers[0].ntk.relative_error.mean():.2g}" in cells


def test_loss_and_learning_are_told_for_every_run(comparison):
    text = str(comparison)
    for run in comparison.runs:
        assert f"{run.losses[-1]:.3g}" in row_after(text, "Loss and outputs", run.origin)
        assert row_after(text, "What was learned", run.origin)
    assert "test outputs" in text
    assert "test outputs" not in str(compare(two_layers(), two_layers(origin="theory (N=inf)")))


def test_the_verdict_comes_last(comparison):
    assert " ".join(str(comparison).split()).endswith(" ".join(comparison.verdict.split()))


def test_it_fits_a_page_and_leaves_no_blanks(comparison):
    lines = str(comparison).splitlines()
    assert max(map(len, lines)) <= 110
    assert not any(line.endswith(" ") for line in lines)


def test_rich_prints_the_same(comparison):
    console = Console(file=io.StringIO(), width=200)
    console.print(comparison)
    assert comparison.predictions[0].origin in console.file.getvalue()
    assert "What was learned" in console.file.getvalue()


def test_several_outputs_print_too():
    found = compare(two_layers(outputs=3, noise=0.1), two_layers(outputs=3, origin="theory (N=inf)"))
    error = found.deviations[0].layers[0].backward.relative_error[-1]
    assert f"{error:.2g}" in row_after(str(found), "Kernels at step 45", "theory (N=inf)")
