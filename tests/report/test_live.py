"""A comparison while the network trains: the numbers are those that are written afterwards, and nothing is lost."""

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
from torch import nn

import torch_dmft as dmft
from torch_dmft.comparison import compare
from torch_dmft.comparison.scatter import scatter
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.report import LiveComparison, LiveScalars
from torch_dmft.tab.reader import read as read_records

THEORY = "theory (N=16)"
INPUTS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 0, 1])
STEPS = 6


def read(logdir: Path) -> EventAccumulator:
    return EventAccumulator(str(logdir), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def curve(events: EventAccumulator, tag: str) -> tuple[list[int], list[float]]:
    return [event.step for event in events.Scalars(tag)], [event.value for event in events.Scalars(tag)]


def network(width: int = 16):
    model = nn.Sequential(nn.Linear(4, width, bias=False), nn.Tanh(), nn.Linear(width, 3, bias=False))
    plan = dmft.parameterize(model, INPUTS, generator=torch.Generator().manual_seed(1))
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS))
    return model, plan, recorder, torch.optim.SGD(plan.param_groups(lr=0.1))


def train(model, optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(INPUTS), TARGETS).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def predicted() -> Trajectory:
    _, plan, _, _ = network()
    problem = dmft.Problem.like(plan, dmft.Probe(INPUTS, TARGETS), lr=0.1, steps=STEPS)
    return dmft.solve(problem, dmft.solvers.FiniteWidth(16, 20, generator=torch.Generator().manual_seed(2)))


def test_live_numbers_are_those_of_the_comparison_afterwards(predicted, tmp_path):
    model, _, recorder, optimizer = network()
    with LiveComparison(tmp_path / "live", recorder, predicted), recorder.attach(optimizer):
        train(model, optimizer, STEPS)
    measured = recorder.trajectory()
    compare(measured, predicted).write_tensorboard(tmp_path / "after")
    assert sorted(path.name for path in (tmp_path / "live").iterdir()) == ["comparison", measured.origin, THEORY]
    for origin in (measured.origin, THEORY):
        ours, theirs = (read(tmp_path / folder / origin) for folder in ("live", "after"))
        assert set(ours.Tags()["scalars"]) == set(theirs.Tags()["scalars"])
        for tag in ours.Tags()["scalars"]:
            assert curve(ours, tag)[0] == curve(theirs, tag)[0] == list(range(STEPS + 1))
            np.testing.assert_allclose(curve(ours, tag)[1], curve(theirs, tag)[1], rtol=1e-4, atol=1e-6, err_msg=tag)
    assert {"Phi deviation/1", "Phi error, root N/1", "NTK alignment/all"} <= set(
        read(tmp_path / "live" / THEORY).Tags()["scalars"]
    )


def test_units_are_those_of_one_more_network(predicted):
    """The root mean square over networks that are not in the mean, each beside the mean of the others."""
    units = scatter(predicted)["forward", 1]
    arrays = torch.stack([run.layers[1].forward.array for run in predicted.replicas]).double()
    count = len(arrays)
    others = (arrays.sum(0) - arrays) / (count - 1)
    left_out = (arrays - others).flatten(2).norm(dim=2) / arrays.mean(0).flatten(1).norm(dim=1)
    # |x - mean of n - 1 others| varies by n / (n - 1), one more network by (n + 1) / n.
    expected = left_out.square().mean(0).sqrt() * ((count + 1) * (count - 1)) ** 0.5 / count
    torch.testing.assert_close(units, expected, rtol=1e-6, atol=1e-8)
    assert scatter(replace(predicted, replicas=())) == {}


def test_a_prediction_that_comes_late_is_compared_from_the_start(predicted, tmp_path):
    model, _, recorder, optimizer = network()
    path = tmp_path / "theory.npz"
    with LiveComparison(tmp_path / "logs", recorder, path), recorder.attach(optimizer):
        train(model, optimizer, 3)
        assert not (tmp_path / "logs" / THEORY).exists()
        predicted.save(path)
        train(model, optimizer, 1)
        assert curve(read(tmp_path / "logs" / THEORY), "Phi alignment/1")[0] == [0, 1, 2, 3, 4]
        train(model, optimizer, 2)
    assert curve(read(tmp_path / "logs" / THEORY), "Phi alignment/1")[0] == list(range(STEPS + 1))


def test_another_problem_is_refused_at_the_start_and_only_told_when_it_comes_late(predicted, tmp_path):
    other = replace(predicted, targets=-predicted.targets)
    model, _, recorder, optimizer = network()
    with (
        pytest.raises(InvalidInputError, match="targets differ"),
        LiveComparison(tmp_path / "a", recorder, other),
        recorder.attach(optimizer),
    ):
        train(model, optimizer, 1)
    other.save(tmp_path / "late.npz")
    model, _, recorder, optimizer = network()
    with (
        pytest.warns(UserWarning, match=r"late\.npz is not compared.*targets differ"),
        LiveComparison(tmp_path / "b", recorder, tmp_path / "late.npz"),
        recorder.attach(optimizer),
    ):
        train(model, optimizer, 2)
    assert recorder.step == 2


def test_training_otherwise_is_compared_no_longer(predicted, tmp_path):
    model, _, recorder, optimizer = network()
    with LiveComparison(tmp_path, recorder, predicted), recorder.attach(optimizer):
        train(model, optimizer, 2)
        optimizer.param_groups[0]["lr"] *= 2
        with pytest.warns(UserWarning, match=r"From step 4 on theory .*learning rate"):
            train(model, optimizer, 3)
    assert curve(read(tmp_path / THEORY), "Phi alignment/1")[0] == [0, 1, 2, 3]
    assert curve(read(tmp_path / recorder.trajectory().origin), "loss")[0] == [0, 1, 2, 3, 4, 5]


def test_training_otherwise_near_the_end_is_told_at_the_end(predicted, tmp_path):
    model, _, recorder, optimizer = network()

    def run():
        with LiveComparison(tmp_path, recorder, predicted), recorder.attach(optimizer):
            train(model, optimizer, 5)
            optimizer.param_groups[0]["lr"] *= 2
            train(model, optimizer, 1)

    with pytest.warns(UserWarning, match=r"theory .* is of another training .*learning rate at step 5"):
        run()


def test_training_is_the_same_with_a_comparison(predicted, tmp_path):
    plain, _, _, optimizer = network()
    train(plain, optimizer, STEPS)
    model, _, recorder, optimizer = network()
    with LiveComparison(tmp_path, recorder, predicted), recorder.attach(optimizer):
        train(model, optimizer, STEPS)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_killed_run_leaves_the_comparison_readable(predicted, tmp_path):
    predicted.save(tmp_path / "theory.npz")
    code = """
        import os, signal, sys
        import torch
        from tests.report.test_live import LiveComparison, Trajectory, network, train

        torch.set_num_threads(1)
        model, plan, recorder, optimizer = network()
        theory = Trajectory.load(sys.argv[1] + "/theory.npz")
        with LiveComparison(sys.argv[1] + "/logs", recorder, theory), recorder.attach(optimizer):
            train(model, optimizer, 3)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert curve(read(tmp_path / "logs" / THEORY), "Phi relative error/1")[0] == [0, 1, 2, 3]
    assert curve(read(tmp_path / "logs" / "network (N=16)"), "loss")[0] == [0, 1, 2, 3]
    for origin in (THEORY, "network (N=16)"):
        records = read_records(tmp_path / "logs" / origin)
        assert records.steps.tolist() == sorted(records.frames) == [0, 1, 2, 3]
        assert records.problems == ()


def test_a_full_disk_ends_the_records_and_not_the_training(tmp_path, monkeypatch):
    model, _, recorder, optimizer = network()

    def full(*arguments: object, **options: object) -> None:
        raise OSError("No space left on device")

    with LiveScalars(tmp_path, recorder), recorder.attach(optimizer):
        train(model, optimizer, 2)
        monkeypatch.setattr("torch_dmft.tab.log.RecordLog.record", full)
        with pytest.warns(UserWarning, match="shows nothing from step 3 on: No space left"):
            train(model, optimizer, 2)
    assert read_records(tmp_path).steps.tolist() == [0, 1, 2]
    monkeypatch.setattr("torch_dmft.report.recorded.RecordLog", full)
    model, _, recorder, optimizer = network()
    with (
        pytest.warns(UserWarning, match="shows nothing from step 0 on"),
        LiveScalars(tmp_path / "other", recorder),
        recorder.attach(optimizer),
    ):
        train(model, optimizer, 1)
    assert curve(read(tmp_path), "loss")[0] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("room", [0, 1000, 8000, 12_000])
def test_files_that_may_not_grow_end_the_logs_and_not_the_training(predicted, room, tmp_path):
    """The system refuses to write beyond a size, as it does on a full disk; in a process of its own."""
    predicted.save(tmp_path / "theory.npz")
    code = """
        import resource, signal, sys, warnings
        import torch
        from tests.report.test_live import LiveComparison, Trajectory, network, train

        torch.set_num_threads(1)
        told = []
        warnings.showwarning = lambda message, *_, **__: told.append(str(message))
        plain, _, _, optimizer = network()
        train(plain, optimizer, 6)
        model, plan, recorder, optimizer = network()
        theory = Trajectory.load(sys.argv[1] + "/theory.npz")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        with LiveComparison(sys.argv[1] + "/logs", recorder, theory), recorder.attach(optimizer):
            train(model, optimizer, 6)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        same = all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
        print(recorder.step, len(recorder.records), same, sum("Training goes on" in line for line in told))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), str(room)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *state, told = done.stdout.split()
    assert state == ["6", "7", "True"]
    assert int(told) >= 1
    assert done.stderr == ""


def test_two_runs_in_one_directory_are_told_on_both_sides(tmp_path, recwarn):
    """The first one runs in a process of its own."""
    code = """
        import sys, warnings
        from tests.report.test_live import LiveScalars, network, train

        warnings.showwarning = lambda message, *_, **__: print(message, flush=True)
        model, _, recorder, optimizer = network()
        with LiveScalars(sys.argv[1], recorder), recorder.attach(optimizer):
            train(model, optimizer, 2)
            print("writing", flush=True)
            sys.stdin.readline()
            train(model, optimizer, 2)
    """
    first = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "writing\n"
    model, _, recorder, optimizer = network()
    live = LiveScalars(tmp_path, recorder)
    with live, recorder.attach(optimizer):
        said, _ = first.communicate("\n", timeout=60)
        train(model, optimizer, 3)
    told = [str(warning.message) for warning in recwarn]
    assert any(
        "Another run is writing its records" in line and "Remedy: a folder for each run" in line for line in told
    )
    assert "shows nothing from step 3 on: another run writes its records" in said
    records = read_records(tmp_path)
    assert records.steps.tolist() == [0, 1, 2, 3]
    assert any("Two runs write" in problem for problem in records.problems)


def test_a_run_that_was_killed_is_not_said_to_be_writing(tmp_path, recwarn):
    for _ in range(2):
        model, _, recorder, optimizer = network()
        with LiveScalars(tmp_path, recorder), recorder.attach(optimizer):
            train(model, optimizer, 1)
    code = """
        import os, signal, sys
        from tests.report.test_live import LiveScalars, network, train

        model, _, recorder, optimizer = network()
        with LiveScalars(sys.argv[1], recorder), recorder.attach(optimizer):
            train(model, optimizer, 1)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], timeout=120, check=False)
    model, _, recorder, optimizer = network()
    with LiveScalars(tmp_path, recorder), recorder.attach(optimizer):
        train(model, optimizer, 1)
    assert not [warning for warning in recwarn if "writing" in str(warning.message)]


@pytest.mark.filterwarnings("ignore:network")
def test_a_network_that_diverges_is_said_to_while_it_trains(tmp_path):
    x, y = INPUTS, INPUTS[:, :1].sign()
    model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1))
    plan = dmft.parameterize(model, x, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(plan.param_groups(lr=60.0))
    recorder = dmft.Recorder(plan, dmft.Probe(x, y))
    with LiveScalars(tmp_path, recorder), recorder.attach(optimizer):
        for _ in range(6):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            told = [text for text in read_records(tmp_path).problems if text.startswith("diverged: at step ")]
            assert len(told) == len(recorder.trajectory().notes)
    assert len(told) == 1
