"""Runs that recorded Phi and G alone, or kernels averaged over outputs, in every view."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import torch_dmft as dmft
from tests.trajectories import two_layers
from torch_dmft.comparison import Comparison, compare, ntk_spectrum
from torch_dmft.core.errors import NotRecordedError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement import Recorder
from torch_dmft.report import figures
from torch_dmft.report.live import LiveComparison
from torch_dmft.tab.reader import read

CHANGES = {"without": Trajectory.without_ntk, "averaged": Trajectory.per_sample}


def runs(outputs: int = 2) -> tuple[Trajectory, Trajectory]:
    return (
        two_layers(noise=0.02, seed=1, outputs=outputs),
        two_layers(noise=0.002, seed=2, outputs=outputs, origin="theory (N=inf)", stderr=0.002),
    )


@pytest.fixture(params=CHANGES)
def change(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def partial(change: str) -> Comparison:
    measured, theory = runs()
    return compare(CHANGES[change](measured), theory)


def test_a_theory_that_has_everything_is_compared_in_the_layout_of_the_run(change: str, partial: Comparison) -> None:
    measured, theory = (CHANGES[change](run) for run in runs())
    same = compare(measured, theory)
    swapped = compare(runs()[0], theory)
    for one in (same, swapped):
        for a, b in zip(partial.deviations[0].layers, one.deviations[0].layers, strict=True):
            assert torch.equal(a.forward.relative_error, b.forward.relative_error)
            assert torch.equal(a.backward.relative_error, b.backward.relative_error)
    full = compare(*runs())
    assert torch.equal(
        partial.deviations[0].layers[1].forward.alignment, full.deviations[0].layers[1].forward.alignment
    )
    if change == "averaged":
        kernel, other = (run.ntk.per_sample().array for run in runs())
        error = (kernel - other).flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1)
        torch.testing.assert_close(partial.deviations[0].ntk.relative_error, error)
    else:
        assert partial.deviations[0].ntk is None


def test_it_says_what_is_compared(change: str, partial: Comparison) -> None:
    text, details = " ".join(str(partial).split()), str(partial.details())
    if change == "without":
        assert "The NTK was not recorded: Phi and G alone are compared." in text
        assert "NTK" not in details
        assert "Phi and G are recorded, the NTK is not." in " ".join(str(partial.measured).split())
    else:
        assert "G and the NTK are averaged over equal outputs." in text
        assert "Kernels are averaged over equal outputs." in " ".join(str(partial.measured).split())


def test_files_come_back(change: str, tmp_path: Path) -> None:
    run = CHANGES[change](runs()[1])
    run.save(tmp_path / "run.npz")
    assert Trajectory.load(tmp_path / "run.npz") == run


def test_every_view_is_written(change: str, partial: Comparison, tmp_path: Path) -> None:
    assert {"alignment", "relative_error", "forward_kernels"} <= partial.figures().keys()
    partial.write_tensorboard(tmp_path / "logs")
    partial.write_html(tmp_path / "report.html")
    assert "Phi/1" in (tmp_path / "report.html").read_text()
    for folder in ("network (N=256)", "theory (N=inf)"):
        records = read(tmp_path / "logs" / folder)
        assert not records.problems
        assert records.about.ntk is (change == "averaged")
        assert ("NTK/all" in records.about.kernels) is (change == "averaged")
        assert records.kernel("G/1", 0) is not None
        assert (records.kernel("NTK/all", 0) is not None) is (change == "averaged")
        assert (records.eigenvalues.size > 0) is (change == "averaged")
    events = EventAccumulator(str(tmp_path / "logs" / "theory (N=inf)")).Reload()
    tags = events.Tags()["scalars"]
    assert "G alignment/1" in tags
    assert any(tag.startswith("NTK") for tag in tags) is (change == "averaged")


def test_a_single_weight_without_an_ntk() -> None:
    one, other = (replace(run.without_ntk(), layers=run.layers[:1], stderr=None) for run in runs(1))
    assert "Phi of weight 0" in str(compare(one, other))


def test_what_needs_an_ntk_says_so(partial: Comparison, change: str) -> None:
    if change == "averaged":
        figures.kernels(partial, "ntk")
        return
    for ask in (lambda: ntk_spectrum(partial.measured), lambda: figures.kernels(partial, "ntk")):
        with pytest.raises(NotRecordedError, match="per_output=False where it is too large"):
            ask()


def test_the_spectrum_of_an_averaged_ntk() -> None:
    """Where outputs do not mix and are alike, each eigenvalue is there once for every output."""
    run = two_layers(outputs=3)
    full, averaged = ntk_spectrum(run), ntk_spectrum(run.per_sample())
    torch.testing.assert_close(averaged.eigenvalues, full.eigenvalues[:, ::3])
    torch.testing.assert_close(averaged.target_weights, full.target_weights.unflatten(1, (-1, 3)).sum(2))
    torch.testing.assert_close(averaged.target_weights.sum(1), torch.ones(len(run.steps), dtype=torch.float64))


@pytest.mark.parametrize("settings", [{"ntk": False}, {"per_output": False}], ids=["without", "averaged"])
def test_live(settings: dict[str, bool], tmp_path: Path, generator: torch.Generator) -> None:
    inputs = torch.randn(6, 4, generator=generator)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    plan = dmft.parameterize(model, inputs, gamma0=0.3, generator=generator)
    optimizer = torch.optim.SGD(plan.param_groups(0.1))
    theory = dmft.solve(dmft.Problem.like(plan, dmft.Probe(inputs, labels), lr=0.1, steps=3), dmft.solvers.StaticNTK())
    recorder = Recorder(plan, dmft.Probe(inputs, labels), **settings)
    with LiveComparison(tmp_path, recorder, theory), recorder.attach(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    has_ntk = "ntk" not in settings
    for origin in (plan.origin, theory.origin):
        records = read(tmp_path / origin)
        assert not records.problems
        assert records.steps.tolist() == [0, 1, 2, 3]
        assert any(name.startswith("NTK") for name in records.columns) is has_ntk
    assert "G alignment/1" in read(tmp_path / theory.origin).columns
    comparison = compare(recorder.trajectory(), theory)
    assert (comparison.deviations[0].ntk is not None) is has_ntk
    assert recorder.trajectory().edge is None
