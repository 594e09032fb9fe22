from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.trajectories import two_layers
from torch_dmft.core.errors import InvalidInputError, NotRecordedError


def test_times_are_steps_times_lr() -> None:
    trajectory = two_layers(steps=(0, 10, 30))
    assert trajectory.times.tolist() == pytest.approx([step * trajectory.lr for step in (0, 10, 30)], rel=1e-6)


def test_at_steps_selects_everything_together() -> None:
    whole = two_layers(steps=(0, 10, 30), noise=0.1, stderr=0.2)
    part = whole.at_steps(torch.tensor([30, 0]))
    assert part.steps.tolist() == [30, 0]
    for of in (lambda t: t.outputs, lambda t: t.losses, lambda t: t.ntk.array, lambda t: t.layers[1].backward.array):
        assert torch.equal(of(part), of(whole)[[2, 0]])
    assert part.stderr is not None
    assert part.stderr.steps.tolist() == [30, 0]
    with pytest.raises(NotRecordedError, match="20"):
        whole.at_steps(torch.tensor([0, 20]))


def test_layer_by_name() -> None:
    trajectory = two_layers()
    assert trajectory.layer(trajectory.layers[1].name) is trajectory.layers[1]
    with pytest.raises(NotRecordedError, match=trajectory.layers[2].name):
        trajectory.layer("elsewhere")


def test_to_converts_floats_and_nothing_else() -> None:
    trajectory = two_layers(stderr=0.1)
    single = trajectory.to(torch.float32)
    assert single.outputs.dtype == single.layers[0].forward.array.dtype == torch.float32
    assert single.stderr is not None
    assert single.stderr.ntk.array.dtype == torch.float32
    assert single.steps.dtype == trajectory.steps.dtype
    assert single.train.dtype == torch.bool
    assert single.origin == trajectory.origin


def test_parts_must_fit() -> None:
    trajectory = two_layers()
    for change in (
        {"losses": trajectory.losses[:-1]},
        {"train": trajectory.train[:-1]},
        {"steps": trajectory.steps[1:]},
    ):
        with pytest.raises(InvalidInputError, match="must have equal lengths"):
            replace(trajectory, **change)


def test_one_line_says_what_it_is_and_print_a_summary() -> None:
    run = two_layers(stderr=0.1)
    assert repr(run) == "<Trajectory 'network (N=256)': 10 steps (0 to 45), 6 samples, 1 output, 3 weights>"
    assert repr(run.layers[1].forward) == "<Kernel: time 10, sample 6, sample 6; float64>"
    assert "\n" not in repr(run.layers[1])
    lines = str(run).splitlines()
    assert len(lines) < 15
    assert max(map(len, lines)) <= 80
    moved = (run.layers[2].forward.array[-1] - run.layers[2].forward.array[0]).norm()
    row = next(line.split() for line in lines if line.startswith("2 "))
    assert row[:3] == ["2", "4", f"{moved / run.layers[2].forward.array[0].norm():.3g}"]
    assert f"{run.losses[-1]:.4g} at step 45" in " ".join(str(run).split())
    assert "<table>" in run._repr_html_()


def test_a_deep_run_has_a_short_summary_too() -> None:
    run = two_layers()
    deep = replace(run, layers=run.layers[:1] + run.layers[1:2] * 60 + run.layers[2:])
    assert len(str(deep).splitlines()) < 24
    assert "of 62 weights" in " ".join(str(deep).split())
