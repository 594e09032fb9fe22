"""What was written, read back with TensorBoard's own reader."""

import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import nn

from tests.trajectories import two_layers
from torch_dmft.comparison import compare, movement, target_alignments
from torch_dmft.parameterization import parameterize
from torch_dmft.report import LiveScalars
from torch_dmft.report.scalars import records

ORIGINS = ["network (N=256)", "theory (N=inf)", "static NTK (N=inf)"]


def read(logdir: Path) -> EventAccumulator:
    events = EventAccumulator(str(logdir), size_guidance={"scalars": 0, "images": 0, "histograms": 0, "tensors": 0})
    return events.Reload()


def curve(events: EventAccumulator, tag: str) -> tuple[list[int], list[float]]:
    scalars = events.Scalars(tag)
    return [event.step for event in scalars], [event.value for event in scalars]


@pytest.fixture(scope="module")
def logs(comparison, tmp_path_factory) -> Path:
    logdir = tmp_path_factory.mktemp("logs")
    comparison.write_tensorboard(logdir)
    return logdir


def test_every_run_has_its_loss_under_one_tag(comparison, logs):
    for run in comparison.runs:
        steps, values = curve(read(logs / run.origin), "loss")
        assert steps == run.steps.tolist()
        np.testing.assert_allclose(values, run.losses, rtol=1e-6)


def test_kernels_move_and_turn_towards_the_targets(comparison, logs):
    for run in comparison.runs:
        events = read(logs / run.origin)
        for position, layer in enumerate(run.layers):
            label = f"{position} ({layer.name})"
            for kind, kernel in (("Phi", layer.forward), ("G", layer.backward), ("NTK", layer.ntk)):
                np.testing.assert_allclose(curve(events, f"{kind} moved/{label}")[1], movement(kernel), atol=1e-6)
                trace = kernel.array.diagonal(dim1=1, dim2=2).mean(1)
                np.testing.assert_allclose(curve(events, f"{kind} trace/{label}")[1], trace, rtol=1e-5)
            expected = target_alignments(layer.forward, comparison.targets)
            np.testing.assert_allclose(curve(events, f"Phi on targets/{label}")[1], expected, rtol=1e-5)


def test_predictions_carry_the_deviation_from_them(comparison, logs):
    for prediction, deviations in zip(comparison.predictions, comparison.deviations, strict=True):
        _, errors = curve(read(logs / prediction.origin), "G relative error/1 (2)")
        np.testing.assert_allclose(errors, deviations.layers[1].backward.relative_error, rtol=1e-5)
    assert "G relative error/1 (2)" not in read(logs / ORIGINS[0]).Tags()["scalars"]


def test_the_layout_puts_all_runs_in_one_chart(logs):
    proto = read(logs / "comparison").Tensors("custom_scalars__config__")[0].tensor_proto
    layout = layout_pb2.Layout.FromString(proto.string_val[0])
    patterns = [pattern for category in layout.category for chart in category.chart for pattern in chart.multiline.tag]
    tags = {origin: read(logs / origin).Tags()["scalars"] for origin in ORIGINS}
    for pattern in patterns:
        matching = [origin for origin in ORIGINS if any(re.match(pattern, tag) for tag in tags[origin])]
        assert matching == (ORIGINS[1:] if "error" in pattern else ORIGINS)


def test_kernel_images_are_bytes_with_their_step_in_the_tag(logs):
    events = read(logs / "comparison")
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("Phi kernels/1 (2)")]
    assert [tag.rsplit(" ", 1)[1] for tag in tags] == ["0", "25", "45"]
    image = events.Images(tags[0])[0]
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert image.width > 4 * image.height * 0.95  # network, theory, static NTK, difference


def test_figures_histograms_and_text_are_there(comparison, logs):
    events = read(logs / "comparison")
    assert {f"figures/{name}" for name in comparison.figures()} <= set(events.Tags()["images"])
    text = events.Tensors("comparison/text_summary")[0].tensor_proto.string_val[0].decode()
    assert comparison.verdict in text
    assert "What was learned" in text
    histograms = read(logs / ORIGINS[1]).Histograms("preactivations/0 (0)")
    assert [event.step for event in histograms] == [0, 45]
    h = comparison.predictions[0].layers[0].fields.preactivation[1]
    assert histograms[1].histogram_value.num == h.numel()


def test_the_plan_is_shown_as_a_table(tmp_path, generator):
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    plan = parameterize(model, torch.ones(2, 4), generator=generator)
    run = two_layers(steps=(0, 5))
    compare(run, replace(run, origin=ORIGINS[1])).write_tensorboard(tmp_path, plan=plan)
    text = read(tmp_path / "comparison").Tensors("plan/text_summary")[0].tensor_proto.string_val[0].decode()
    for rule in plan.rules:
        assert f"| `{rule.name}` | {rule.role} | {rule.fan_in} |" in text


def test_writing_again_replaces(comparison, logs, tmp_path):
    comparison.write_tensorboard(tmp_path)
    shorter = compare(*(run.at_steps(torch.tensor([0, 45])) for run in comparison.runs))
    shorter.write_tensorboard(tmp_path)
    assert curve(read(tmp_path / ORIGINS[0]), "loss")[0] == [0, 45]


def test_an_origin_with_a_slash_is_one_run(tmp_path):
    run = two_layers(steps=(0, 5))
    compare(run, replace(run, origin="theory (N=1/0)")).write_tensorboard(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison", ORIGINS[0], "theory (N=1-0)"]


def test_live_scalars_are_the_measured_runs(comparison, logs, tmp_path):
    run = comparison.measured
    with LiveScalars(tmp_path, targets=run.targets) as live:
        for record in records(run):
            live(record.step, record)
    ours, theirs = read(tmp_path), read(logs / run.origin)
    assert set(ours.Tags()["scalars"]) == set(theirs.Tags()["scalars"])
    for tag in ours.Tags()["scalars"]:
        assert curve(ours, tag) == curve(theirs, tag)


def test_a_killed_run_leaves_every_record_readable(tmp_path):
    code = """
        import os, signal, sys
        import torch
        from torch import nn
        from torch_dmft.measurement import Probe, Recorder
        from torch_dmft.report import LiveScalars

        torch.set_num_threads(1)
        inputs = torch.eye(4)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        probe = Probe(inputs, torch.ones(4, 1))
        recorder = Recorder(model, probe, callbacks=[LiveScalars(sys.argv[1], targets=torch.ones(4))])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with recorder.attach(optimizer):
            for _ in range(3):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(inputs), torch.ones(4, 1)).backward()
                optimizer.step()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    events = read(tmp_path)
    steps, losses = curve(events, "loss")
    assert steps == [0, 1, 2, 3]
    assert losses == sorted(losses, reverse=True)
    assert {"Phi moved/1 (2)", "G trace/0 (0)", "NTK trace/all", "Phi on targets/1 (2)"} <= set(
        events.Tags()["scalars"]
    )
