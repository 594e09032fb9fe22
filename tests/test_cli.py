"""The command torch-dmft: help, mistakes and their remedies, and the comparison of saved runs."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trajectories import two_layers
from torch_dmft import cli
from torch_dmft.settings import Settings


def refused(capsys, *arguments: str) -> str:
    """What is said of a mistake, which is one line, with status 2."""
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("torch-dmft: ")
    assert said.err.count("\n") == 1
    return said.err


def test_help_lists_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["demo", "--help"])
    assert exit_.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for option in ("--data-dir", "--gamma0", "--widths", "--lr", "(default: 0.05)", "(default: digits)"):
        assert option in shown
    assert "default: None" not in shown
    assert "default: ()" not in shown


def test_options_become_settings(monkeypatch):
    received = []
    monkeypatch.setattr("torch_dmft.demo.run", received.append)
    assert cli.main(["demo"]) == 0
    arguments = "--data synthetic --widths 8,16 --gamma0 0.3 --steps 7 --logdir here --data-dir there --device cpu"
    assert cli.main(["demo", *arguments.split()]) == 0
    assert received == [
        Settings(),
        Settings("synthetic", widths=(8, 16), gamma0=0.3, steps=7, logdir=Path("here"), data_dir=Path("there")),
    ]


def test_help_and_mistakes_do_not_wait_for_torch():
    code = "import sys; from torch_dmft import cli; cli._parser(); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout == "False\n"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [("--data mnist", "--data"), ("--widths 8,x", "--widths"), ("--depth 1.5", "--depth"), ("--dept 1 --foo", "--foo")],
)
def test_what_argparse_refuses_names_the_option(capsys, arguments, name):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["demo", *arguments.split()])
    assert exit_.value.code == 2
    assert name in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--samples 5", "Remedy: 6 samples."),
        ("--samples 5000", "Remedy: at most 356 samples."),
        ("--activation sine", "Remedy: one of "),
        ("--device cuda:99", "Remedy: --device cpu."),
        ("--device abacus", "Remedy: --device cpu."),
        ("--data synthetic --neurons 20", "must be larger"),
        ("--networks 5", "at least 19"),
        ("--networks 40 --gamma0 0.1", "centered model"),
        ("--widths 0,8", "widths must be an integer >= 1"),
        ("--steps 0", "steps must be an integer >= 1"),
        ("--lr nan", "lr must be a finite number >= 1e-15"),
        ("--gamma0 0", "gamma0 must be a finite number >= 1e-15"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(capsys, tmp_path, arguments, said):
    folder = tmp_path / "logs"
    assert said in refused(capsys, "demo", *arguments.split(), "--logdir", str(folder))
    assert not folder.exists()


def test_missing_cifar10_is_told_in_one_line(capsys, monkeypatch, tmp_path):
    pytest.importorskip("torchvision.datasets")
    said = refused(capsys, "demo", "--data", "cifar10", "--data-dir", str(tmp_path), "--logdir", str(tmp_path / "logs"))
    assert "download=True" in said


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(capsys, tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("mine")
    for place in (in_the_way, in_the_way / "deeper"):
        assert "--logdir" in refused(capsys, "demo", "--data", "synthetic", "--logdir", str(place))
    assert in_the_way.read_text() == "mine"


def swapped(folder: Path) -> list[str]:
    """A prediction's file, then a network's."""
    theory = two_layers(origin="theory (N=inf)")
    replace(theory, solver="InfiniteWidth").save(folder / "theory.npz")
    return [str(folder / "theory.npz"), str(folder / "a.npz")]


def test_saved_runs_are_compared(capsys, tmp_path):
    two_layers(noise=0.02).save(tmp_path / "a.npz")
    two_layers(origin="theory (N=inf)").save(tmp_path / "b.npz")
    two_layers(richness=0, origin="static NTK (N=inf)").save(tmp_path / "c.npz")
    paths = [str(tmp_path / f"{name}.npz") for name in "abc"]
    assert cli.main(["compare", *paths, "--logdir", str(tmp_path / "logs")]) == 0
    shown = capsys.readouterr().out
    assert "network (N=256) against theory (N=inf) at step 45" in shown
    assert "What was learned" not in shown
    assert "nearest prediction first: theory (N=inf)" in " ".join(shown.split())
    assert (tmp_path / "logs" / "theory (N=inf)").is_dir()
    assert cli.main(["compare", *paths, "--details"]) == 0
    assert "What was learned" in capsys.readouterr().out
    assert "measured run must come first" in refused(capsys, "compare", *swapped(tmp_path))


def test_files_that_are_no_runs_are_refused(capsys, tmp_path):
    two_layers().save(tmp_path / "a.npz")
    (tmp_path / "text.npz").write_text("no run")
    assert "not a saved trajectory" in refused(capsys, "compare", str(tmp_path / "a.npz"), str(tmp_path / "text.npz"))
    assert "missing.npz" in refused(capsys, "compare", str(tmp_path / "a.npz"), str(tmp_path / "missing.npz"))


def test_an_interrupt_ends_it_quietly(tmp_path):
    """As Ctrl-C does in a terminal, once the first scalars are in the log."""
    arguments = (
        "-m torch_dmft.cli demo --data synthetic --samples 8 --width 16 --depth 1 --steps 1000000 --records 1000000"
    )
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", *arguments.split(), "--logdir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # Shells have what they start in the background ignore Ctrl-C, and children of that inherit it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size > 3000 for path in tmp_path.rglob("events*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # where is it? faulthandler tells
            pytest.fail(f"It did not end:\n{process.communicate()[1]}")
    finally:
        process.kill()
    assert process.returncode == 130
    assert said == "torch-dmft: interrupted; what was logged so far is readable\n"


SETUP = """
import torch
from torch import nn

def make(width):
    model = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))
    return model, torch.optim.Adam(model.parameters(), 0.01)

def right(width):
    import torch_dmft as dmft
    model, _ = make(width)
    plan = dmft.parameterize(model, torch.zeros(2, 8))
    return model, torch.optim.Adam(plan.param_groups(0.05, optimizer="adam"))

def broken(width):
    raise RuntimeError("no such width")
"""


def test_check_has_a_status_and_files_for_machines(tmp_path, monkeypatch, capsys):
    import json

    (tmp_path / "setup_of_a_user.py").write_text(SETUP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    quick = ["--widths", "16,32,64,128", "--steps", "4"]
    files = ["--json", "out/check.json", "--markdown", "check.md", "--figures", "figures", "--logdir", "logs"]
    assert cli.main(["check", "setup_of_a_user:make", *quick, *files]) == 1
    assert "2.weight (hidden): its rate is wrong" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "out/check.json").read_text())["exit_code"] == 1
    assert (tmp_path / "check.md").read_text().startswith("### Width check: WRONG")
    assert (tmp_path / "figures/sizes.png").exists()
    assert list(tmp_path.glob("logs/N=16/events*"))
    assert cli.main(["check", "setup_of_a_user:right", *quick, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "right"
    assert "no such width" in refused(capsys, "check", "setup_of_a_user:broken")
    assert "setup_of_a_user:right" in refused(capsys, "check", "setup_of_a_user:rigth")


def test_check_tells_not_decided_from_what_could_not_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "another_setup_of_a_user.py").write_text(SETUP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    check = ["check", "another_setup_of_a_user:right", "--widths", "8,16", "--steps", "1", "--processes", "1"]
    assert cli.main([*check, "--seeds", "1"]) == 3
    assert "NOT DECIDED" in capsys.readouterr().out
    assert "at least two different widths" in refused(capsys, *check, "--widths", "8")
    monkeypatch.setattr("torch_dmft.referee.measure.look", None)  # a mistake of ours is no verdict either
    assert cli.main(check) == 2
    assert "Traceback" in capsys.readouterr().err
