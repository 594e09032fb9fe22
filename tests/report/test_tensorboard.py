"""What was written, read back with TensorBoard's own reader."""

import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn

from tests.trajectories import two_layers
from torch_dmft.comparison import compare, movement, target_alignments
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement import Probe, Recorder
from torch_dmft.parameterization import parameterize
from torch_dmft.report import LiveScalars

ORIGINS = ["network (N=256)", "theory (N=inf)", "static NTK (N=inf)"]


def read(logdir: Path) -> EventAccumulator:
    events = EventAccumulator(str(logdir), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
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
            for kind, kernel in (("Phi", layer.forward), ("G", layer.backward), ("NTK", layer.ntk)):
                np.testing.assert_allclose(curve(events, f"{kind} moved/{position}")[1], movement(kernel), atol=1e-6)
                trace = kernel.array.diagonal(dim1=1, dim2=2).mean(1)
                np.testing.assert_allclose(curve(events, f"{kind} trace/{position}")[1], trace, rtol=1e-5)
            expected = target_alignments(layer.forward, comparison.targets)
            np.testing.assert_allclose(curve(events, f"Phi on targets/{position}")[1], expected, rtol=1e-5)


def test_predictions_carry_the_deviation_from_them(comparison, logs):
    for prediction, deviations in zip(comparison.predictions, comparison.deviations, strict=True):
        events = read(logs / prediction.origin)
        for tag, expected in (
            ("G relative error/1", deviations.layers[1].backward.relative_error),
            ("NTK alignment/all", deviations.ntk.alignment),
            ("NTK relative error/all", deviations.ntk.relative_error),
            ("relative error/all", deviations.mean_error),
        ):
            np.testing.assert_allclose(curve(events, tag)[1], expected, rtol=1e-5)
    assert "G relative error/1" not in read(logs / ORIGINS[0]).Tags()["scalars"]


def test_the_loss_is_also_written_as_its_logarithm(comparison, logs):
    for run in comparison.runs:
        np.testing.assert_allclose(curve(read(logs / run.origin), "loss, log10")[1], run.losses.log10(), rtol=1e-5)


def test_bands_are_two_standard_errors_and_of_no_width_without(comparison, logs):
    for run in comparison.runs:
        events = read(logs / run.origin)
        half = 0.0 if run.stderr is None else 2 * 0.002
        for tag in ("loss", "NTK trace/all", "Phi trace/1", "G trace/0"):
            middle = np.array(curve(events, tag)[1])
            np.testing.assert_allclose(curve(events, f"band lower/{tag}")[1], middle - half, atol=1e-5)
            np.testing.assert_allclose(curve(events, f"band upper/{tag}")[1], middle + half, atol=1e-5)


def test_no_tag_holds_parentheses_and_the_description_names_the_weight(comparison, logs):
    for path in logs.iterdir():
        events = read(path)
        tags = events.Tags()
        every = [*tags["scalars"], *tags["images"], *tags["tensors"]]
        assert len(every) > 3
        assert not [tag for tag in every if "(" in tag or ")" in tag]
    described = {}
    for event in EventFileLoader(str(next((logs / ORIGINS[1]).glob("events*")))).Load():
        described |= {
            v.tag: v.metadata.summary_description for v in event.summary.value if v.metadata.summary_description
        }
    assert described["Phi moved/1"].startswith("Weight 1 is `2`.")
    assert described["band lower/loss"].startswith("Lower end of the band")
    assert set(described) >= set(read(logs / ORIGINS[1]).Tags()["scalars"])


def test_models_with_other_names_share_charts(comparison, logs, tmp_path):
    layers = tuple(replace(layer, name=f"blocks.{i}.fc") for i, layer in enumerate(comparison.measured.layers))
    compare(replace(comparison.measured, layers=layers), *comparison.predictions).write_tensorboard(tmp_path)
    ours, theirs = (read(folder / ORIGINS[0]).Tags()["scalars"] for folder in (tmp_path, logs))
    assert set(ours) == set(theirs)
    assert page(tmp_path) == page(logs)


def page(logdir: Path) -> layout_pb2.Layout:
    proto = read(logdir / "comparison").Tensors("custom_scalars__config__")[0].tensor_proto
    return layout_pb2.Layout.FromString(proto.string_val[0])


def test_the_layout_puts_all_runs_in_one_chart(logs):
    charts = [chart for category in page(logs).category for chart in category.chart]
    patterns = [pattern for chart in charts for pattern in chart.multiline.tag]
    assert len(charts) == len({chart.title for chart in charts})
    tags = {origin: read(logs / origin).Tags()["scalars"] for origin in ORIGINS}
    for pattern in patterns:
        matching = [origin for origin in ORIGINS if any(re.match(pattern, tag) for tag in tags[origin])]
        is_deviation = "error" in pattern or ("alignment" in pattern)
        assert matching == (ORIGINS[1:] if is_deviation else ORIGINS)
    series = [series for chart in charts for series in chart.margin.series]
    assert {"loss", "NTK trace/all", "Phi trace/0", "G trace/2"} <= {one.value for one in series}
    for one in series:
        assert all({one.value, one.lower, one.upper} <= set(tags[origin]) for origin in ORIGINS)


def test_kernel_images_have_a_slider_over_steps(comparison, logs):
    images = read(logs / "comparison").Images("Phi kernels/1")
    assert [image.step for image in images] == [0, 15, 30, 45]
    assert images[0].encoded_image_string.startswith(b"\x89PNG")
    assert images[0].width > 3 * images[0].height  # network, theory, static NTK, difference


def test_figures_and_text_are_there(comparison, logs):
    events = read(logs / "comparison")
    assert {"figures/preactivations", "figures/gradients"} <= set(events.Tags()["images"])
    report, details, runs = (
        events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
        for name in ("1 report", "2 details", "3 runs")
    )
    assert report.startswith(comparison.verdict)
    assert "What was learned" in details
    assert "| width | 256 | 256 | 256 |" in runs
    assert runs.splitlines()[0].count("|") == 5  # a column for each run


def test_hyperparameters_and_results_are_on_the_hparams_page(comparison, tmp_path):
    comparison.write_tensorboard(tmp_path, hparams={"seed": 3})
    events = read(tmp_path / "comparison")
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = HParamsPluginData.FromString(content).session_start_info.hparams
    assert start["seed"].number_value == 3
    assert start["width"].number_value == 256
    assert start["lr"].number_value == pytest.approx(0.1)
    assert start["optimizer"].string_value == "SGD"
    assert set(start) == {"gamma0", "width", "depth", "lr", "optimizer", "seed"}
    deviations = comparison.deviations[0]
    for tag, expected in (
        ("final/NTK alignment", deviations.ntk.alignment[-1]),
        ("final/relative error", deviations.mean_error[-1]),
        ("final/loss", comparison.measured.losses[-1]),
        ("final/movement", sum(movement(layer.forward)[-1] for layer in comparison.measured.layers[1:]) / 2),
    ):
        assert curve(events, tag)[1] == [pytest.approx(float(expected), rel=1e-5)]


def test_progress_is_shown_on_demand(comparison, tmp_path, capsys):
    comparison.write_tensorboard(tmp_path, progress=True)
    assert "writing TensorBoard logs" in capsys.readouterr().out
    comparison.write_tensorboard(tmp_path)
    assert capsys.readouterr().out == ""


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
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "comparison",
        ORIGINS[0],
        "theory (N=1\N{DIVISION SLASH}0)",
    ]


def trained(logdir: Path, targets: torch.Tensor, loss, *, steps: int = 2) -> Trajectory:
    """A network that is trained under the eyes of LiveScalars."""
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    plan = parameterize(model, inputs, generator=torch.Generator().manual_seed(1))
    recorder = Recorder(plan, Probe(inputs, targets))
    optimizer = torch.optim.SGD(plan.param_groups(lr=0.1))
    with LiveScalars(logdir, recorder), recorder.attach(optimizer):
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
    assert recorder.callbacks == ()
    return recorder.trajectory()


def test_live_scalars_are_the_measured_runs(tmp_path):
    """Of classes too: they count as one-hot, live and afterwards."""
    run = trained(tmp_path / "live", torch.tensor([0, 1, 2, 0, 1, 2]), nn.CrossEntropyLoss())
    compare(run, replace(run, origin=ORIGINS[1])).write_tensorboard(tmp_path / "after")
    ours, theirs = read(tmp_path / "live"), read(tmp_path / "after" / run.origin)
    assert set(ours.Tags()["scalars"]) == set(theirs.Tags()["scalars"])
    assert "Phi on targets/1" in ours.Tags()["scalars"]
    for tag in ours.Tags()["scalars"]:
        assert curve(ours, tag)[0] == curve(theirs, tag)[0]
        np.testing.assert_allclose(curve(ours, tag)[1], curve(theirs, tag)[1], rtol=1e-6)


def test_live_scalars_go_on_from_a_checkpoint(tmp_path):
    """Kernels have moved since the first record of all, whichever process wrote it."""
    inputs, targets = torch.eye(4), torch.ones(4, 1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    plan = parameterize(model, inputs, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(plan.param_groups(lr=0.1))

    def train(recorder: Recorder) -> None:
        with LiveScalars(tmp_path, recorder), recorder.attach(optimizer):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()

    first = Recorder(plan, Probe(inputs, targets))
    train(first)
    second = Recorder(plan, Probe(inputs, targets))
    second.load_state_dict(first.state_dict())
    train(second)
    expected = movement(second.trajectory().layers[1].forward)
    assert curve(read(tmp_path), "Phi moved/1")[1][-1] == pytest.approx(float(expected[-1]), rel=1e-5)


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
        recorder = Recorder(model, probe)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with LiveScalars(sys.argv[1], recorder), recorder.attach(optimizer):
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
    assert {"Phi moved/1", "G trace/0", "NTK trace/all", "Phi on targets/1"} <= set(events.Tags()["scalars"])


def test_writing_costs_less_than_drawing_every_figure(comparison, tmp_path):
    """What charts show is not drawn again; it cost more than all figures."""

    def seconds(work) -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    def draw() -> None:
        for figure in comparison.figures().values():
            figure.canvas.draw()

    comparison.write_tensorboard(tmp_path / "first")  # fonts and imports are loaded
    ratios = [seconds(lambda i=i: comparison.write_tensorboard(tmp_path / str(i))) / seconds(draw) for i in range(3)]
    assert sorted(ratios)[1] < 0.75


def test_a_network_that_diverges_is_written_whole(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(6, 5)
    model = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    plan = parameterize(model, x)
    optimizer = torch.optim.SGD(plan.param_groups(60.0))
    recorder = Recorder(plan, Probe(x, x[:, :1].sign()), every=2)
    with recorder.attach(optimizer):
        for _ in range(20):
            optimizer.zero_grad()
            (model(x) - x[:, :1].sign()).square().mean().backward()
            optimizer.step()
    run = recorder.trajectory()
    assert not bool(run.losses[-1].isfinite())
    compare(run, replace(run, origin="twin")).write_tensorboard(tmp_path)
    for origin in (run.origin, "twin"):
        assert curve(read(tmp_path / origin), "loss")[0] == run.steps.tolist()
