"""The demo, whole and small: what it prints, what it writes, and that all of it can be read back."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from torch_dmft import data
from torch_dmft.core.errors import ConvergenceError, NotWrittenError
from torch_dmft.core.replacing import replacing
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.demo import run, train, wrap
from torch_dmft.measurement import Probe
from torch_dmft.settings import Settings

NETWORK, THEORY, STATIC = ORIGINS = ["network (N=32)", "theory (N=inf)", "static NTK (N=inf)"]
TINY = {"samples": 6, "width": 32, "depth": 2, "steps": 20, "records": 5, "neurons": 128, "replicas": 2}


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def run_demo(folder: Path, columns: int = 110, **settings) -> tuple[str, Path]:
    """What a demo prints without a terminal, and its folder."""
    file = folder / "printed.txt"
    with file.open("w") as printed:
        run(Settings(**{**TINY, "logdir": folder / "logs", **settings}), Console(file=printed, width=columns))
    return file.read_text(), folder / "logs"


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[str, Path]:
    return run_demo(tmp_path_factory.mktemp("demo"), widths=(16, 32))


def test_it_prints_its_four_steps_and_the_way_to_tensorboard(demo):
    printed, logdir = demo
    for heading in (
        "1. Wrap",
        "2. Train and measure",
        "3. Predict",
        "4. Compare",
        "At step 20",
        "comparison.details()",
    ):
        assert heading in printed
    assert f'tensorboard --logdir "{logdir}"' in printed
    assert "in the DMFT tab of" in printed
    assert "nearest prediction first" in " ".join(printed.split())


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> tuple[str, Path]:
    return run_demo(tmp_path_factory.mktemp("judged"), networks=19)


def test_more_networks_of_its_width_tell_what_the_width_explains(judged):
    printed, _ = judged
    assert re.search("is (not )?consistent with width N = 32", " ".join(printed.split()))
    assert "among 19 networks" in " ".join(printed.split())


def test_a_linear_network_is_predicted_exactly(tmp_path):
    _, logdir = run_demo(tmp_path, activation="linear")
    assert Trajectory.load(logdir / "theory.npz").solver == "DeepLinear"


def test_the_networks_of_its_width_are_kept(judged):
    _, logdir = judged
    assert len(Trajectory.load(logdir / "networks.npz").replicas) == 19


@pytest.mark.parametrize(
    ("fails_at", "kept"), [("solve", ["network"]), ("compare", ["network", "static_ntk", "theory"])]
)
def test_what_was_finished_is_kept_when_a_later_part_ends_it(fails_at, kept, tmp_path, monkeypatch):
    """As a kill or an interrupt would."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"torch_dmft.demo.{fails_at}", killed)
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, data="synthetic", depth=1)
    logdir = tmp_path / "logs"
    assert sorted(path.stem for path in logdir.glob("*.npz")) == kept
    assert len(Trajectory.load(logdir / "network.npz").steps) == 6
    assert len(read(logdir / NETWORK).Scalars("loss")) == 6


def test_a_kill_while_theory_is_solved_loses_nothing_that_was_finished(tmp_path):
    arguments = "-m torch_dmft.cli demo --data synthetic --samples 8 --width 16 --depth 1 --steps 40 --neurons 1000000"
    process = subprocess.Popen(
        [sys.executable, *arguments.split(), "--replicas", "2", "--logdir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "network.npz").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert Trajectory.load(tmp_path / "network.npz").steps[-1] == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network (N=16)", "network.npz"]


def test_a_full_disk_loses_what_it_does_not_take_and_nothing_else(tmp_path, monkeypatch):
    """The disk is full while the theories are saved."""

    @contextmanager
    def on_a_full_disk(path):
        with replacing(path) as file:
            if Path(path).stem in ("theory", "static_ntk"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield file

    monkeypatch.setattr("torch_dmft.core.serial.replacing", on_a_full_disk)
    with pytest.raises(NotWrittenError, match=r"theory\.npz, static_ntk\.npz.*--logdir"):
        run_demo(tmp_path, data="synthetic", depth=1)
    printed, logdir = (tmp_path / "printed.txt").read_text(), tmp_path / "logs"
    assert "theory.npz could not be written" in printed
    assert "nearest prediction first" in " ".join(printed.split())
    assert [path.stem for path in logdir.glob("*.npz")] == ["network"]
    assert (logdir / "overview.png").exists()
    assert "final/loss" in read(logdir / "comparison").Tags()["scalars"]


def test_a_terminal_that_knows_no_dashes_and_a_folder_with_brackets_lose_nothing(tmp_path):
    logdir = tmp_path / "a [red]b[/bold] [c"
    arguments = "-m torch_dmft.cli demo --data synthetic --samples 6 --width 16 --depth 1 --steps 4 --neurons 64"
    done = subprocess.run(
        [sys.executable, *arguments.split(), "--replicas", "2", "--logdir", str(logdir)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert f'tensorboard --logdir "{logdir}"' in done.stdout
    assert sorted(path.stem for path in logdir.glob("*.npz")) == ["network", "static_ntk", "theory"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_under_what_is_printed_ends_no_run(tmp_path):
    """As when the log of a long run shares a full disk with others."""
    arguments = "-m torch_dmft.cli demo --data synthetic --samples 6 --width 16 --depth 1 --steps 4 --neurons 64"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, *arguments.split(), "--replicas", "2", "--logdir", str(tmp_path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    assert done.returncode == 2
    assert "Not everything could be printed; all else is done. Got: No space left" in done.stderr
    assert sorted(path.stem for path in tmp_path.glob("*.npz")) == ["network", "static_ntk", "theory"]
    assert (tmp_path / "overview.png").exists()


def test_without_a_terminal_it_draws_no_progress_bars(demo):
    assert "replica 1" not in demo[0]
    assert "100%" not in demo[0]


def test_trajectories_load_and_are_complete(demo):
    _, logdir = demo
    for name, origin in zip(("network", "theory", "static_ntk"), ORIGINS, strict=True):
        found = Trajectory.load(logdir / f"{name}.npz")
        assert found.origin == origin
        assert found.steps.tolist() == [0, 4, 8, 12, 16, 20]
        assert found.losses[-1] < found.losses[0]
        assert len(found.layers) == 3
        assert found.outputs.shape == (6, 6, 1)


def test_network_and_predictions_share_their_charts(demo):
    _, logdir = demo
    tags = {origin: set(read(logdir / origin).Tags()["scalars"]) for origin in ORIGINS}
    assert tags[NETWORK]
    assert tags[NETWORK] <= tags[THEORY]
    assert tags[THEORY] == tags[STATIC]
    for origin, name in zip(ORIGINS, ("network", "theory", "static_ntk"), strict=True):
        scalars = read(logdir / origin).Scalars("loss")
        saved = Trajectory.load(logdir / f"{name}.npz")
        assert [event.step for event in scalars] == saved.steps.tolist()
        torch.testing.assert_close(torch.tensor([event.value for event in scalars]), saved.losses.float())


def test_the_network_was_logged_while_it_trained(demo):
    files = sorted((demo[1] / NETWORK).glob("events*"))
    live, final = (EventAccumulator(str(file)).Reload() for file in files)
    assert len(live.Scalars("loss")) == 6
    assert set(live.Tags()["scalars"]) == set(final.Tags()["scalars"])


def test_the_comparison_has_layout_images_and_text(demo):
    events = read(demo[1] / "comparison")
    proto = events.Tensors("custom_scalars__config__")[0].tensor_proto
    assert "Loss" in [category.title for category in layout_pb2.Layout.FromString(proto.string_val[0]).category]
    images = events.Tags()["images"]
    assert {"figures/preactivations", "figures/gradients", "G kernels/0"} <= set(images)
    texts = {"1 report/text_summary", "2 details/text_summary", "3 runs/text_summary", "plan/text_summary"}
    assert texts <= set(events.Tags()["tensors"])
    assert "final/loss" in events.Tags()["scalars"]


def test_figures_are_pictures(demo):
    _, logdir = demo
    assert sorted(path.stem for path in logdir.glob("*.png")) == ["overview", "widths"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in logdir.glob("*.png"))


def test_widths_are_compared_and_their_exponents_shown(demo):
    printed, _ = demo
    table = printed[printed.index("by width") :]
    assert re.search(r"\n\W+16\W+0\.\d+\W+0\.\d+", table)
    assert re.search(r"exponent\W+-?\d\.\d\d", table)


def test_it_fits_eighty_columns(tmp_path):
    printed, _ = run_demo(tmp_path, columns=80, data="synthetic", depth=1)
    tables = printed[printed.index("4. Compare") : printed.index("Done in")]
    assert "…" not in tables
    assert max(map(len, tables.splitlines())) <= 80


def test_small_gamma0_is_centered_and_said_to_be(tmp_path):
    printed, logdir = run_demo(tmp_path, data="synthetic", depth=1, gamma0=0.1)
    assert "centered model f - f_0" in " ".join(printed.split())
    for name in ("network", "theory"):
        found = Trajectory.load(logdir / f"{name}.npz")
        assert found.outputs[0].abs().max() < (1e-6 if name == "network" else 0.05)


def test_divergence_is_told_before_any_theory_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr("torch_dmft.demo.solve", lambda *_, **__: pytest.fail("the theory was tried"))
    with pytest.raises(ConvergenceError, match=r"network \(N=32\) diverges.*--lr 25"):
        run_demo(tmp_path, data="synthetic", activation="relu", lr=100.0)


@pytest.mark.parametrize(("lr", "said"), [(0.2, True), (0.01, False)])
def test_closeness_to_instability_is_said(lr, said):
    settings = Settings(**TINY, data="synthetic", activation="relu", gamma0=3.0, lr=lr)
    probe = Probe(*data.load("synthetic", settings.samples))
    console = Console(file=io.StringIO(), width=400)
    train(settings, wrap(settings, probe, settings.width), probe, console)
    assert ("close to instability" in console.file.getvalue()) == said


def test_folders_are_named_by_what_differs_from_the_defaults():
    assert Settings().directory == Path("runs/demo")
    assert Settings(gamma0=0.3, widths=(64, 128)).directory == Path("runs/demo-widths=64+128-gamma0=0.3")
    assert Settings(device="cuda", data_dir=Path("there")).directory == Path("runs/demo")
    assert Settings(depth=2, logdir=Path("here")).directory == Path("here")


def test_a_killed_demo_leaves_every_record_readable(tmp_path):
    arguments = (
        "-m torch_dmft.cli demo --data synthetic --samples 8 --width 16 --depth 1 --steps 1000000 --records 1000000"
    )
    process = subprocess.Popen(
        [sys.executable, *arguments.split(), "--logdir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while sum(path.stat().st_size for path in tmp_path.rglob("events*")) < 10_000:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    steps = [event.step for event in read(tmp_path / "network (N=16)").Scalars("loss")]
    assert len(steps) > 3
    assert steps == list(range(len(steps)))
