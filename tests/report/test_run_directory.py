"""Every run has one folder of its own inside of the log directory, whatever it is called."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.trajectories import two_layers
from torch_dmft.comparison import compare
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.report.events import EventLog, local, run_directory
from torch_dmft.tab.reader import read

LOGS = Path("/logs")
ODD = [
    "..",
    ".",
    "",
    "../../etc",
    "/etc/passwd",
    "a/../b",
    "x" * 1000,
    "\0",
    "comparison",
    "[bold]a[/red] b",
    "a\\b",
    "\ud800",
]


@given(st.text(alphabet=st.sampled_from("ab./\\[]() \0"), max_size=8) | st.text() | st.sampled_from(ODD))
def test_it_is_inside_of_the_log_directory(origin):
    folder = run_directory(LOGS, origin)
    assert folder.parent == LOGS
    assert folder.name not in ("", ".", "..", "comparison")
    assert len(folder.name.encode()) < 256
    assert "\0" not in folder.name


@given(st.lists(st.text(alphabet=st.sampled_from("ab./-[]"), max_size=6), unique=True, max_size=20))
def test_two_runs_have_two(origins):
    assert len({run_directory(LOGS, origin) for origin in origins}) == len(origins)


@pytest.mark.parametrize("origin", ["network (N=512)", "theory (N=inf), γ₀ = 0.3", "a.b [c] {d}"])
def test_ordinary_names_are_shown_as_they_are(origin):
    assert run_directory(LOGS, origin).name == origin


@pytest.mark.parametrize("origin", [origin for origin in ODD if origin.isprintable() or origin == "\0"])
def test_a_comparison_of_a_run_with_an_odd_name_is_written_and_read(origin, tmp_path):
    logdir = tmp_path / "inner" / "logs"
    comparison = compare(two_layers(origin=origin, noise=0.01), two_layers(origin="theory"))
    comparison.write_tensorboard(logdir)
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    assert [path.name for path in (tmp_path / "inner").iterdir()] == ["logs"]
    assert len(list(logdir.iterdir())) == 3
    folder = run_directory(logdir, origin)
    assert read(folder).about.origin == origin
    assert len(EventAccumulator(str(folder)).Reload().Scalars("loss")) == 10
    comparison.write_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("origin", ["[bold]a[/red] b", "[/]", "a [link=x]b", "[c"])
def test_brackets_of_a_name_are_shown_and_not_obeyed(origin, tmp_path):
    comparison = compare(two_layers(origin=origin), two_layers(origin="theory"))
    with (tmp_path / "printed").open("w") as file:
        console = Console(file=file, width=200)
        console.print(comparison)
        console.print(comparison.details())
        console.print(comparison.measured)
    assert origin in (tmp_path / "printed").read_text()


def test_progress_of_a_solver_with_brackets_in_its_name(capsys):
    from torch_dmft.theory.stepping import track

    assert list(track(range(2), "[/red] a", progress=True)) == [0, 1]
    assert "[/red] a" in capsys.readouterr().out


def test_a_full_disk_is_an_error_of_the_event_that_met_it(tmp_path):
    with EventLog(tmp_path) as log:
        log.scalars({"loss": 1.0}, 0)
        name = next(tmp_path.iterdir())
        before = name.stat().st_size
        log.scalars({"loss": 0.5}, 1)
        assert name.stat().st_size > before  # nothing waits in this process
    assert [event.value for event in EventAccumulator(str(tmp_path)).Reload().Scalars("loss")] == [1.0, 0.5]


@pytest.mark.parametrize("logdir", ["gs://bucket/runs", "s3://bucket", Path("gs://bucket/runs"), "memory:/runs"])
def test_addresses_are_refused_before_anything_is_written(logdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match=r"(?s)folder of this machine.*rsync"):
        compare(two_layers(), two_layers(origin="theory")).write_tensorboard(logdir)
    assert not list(tmp_path.iterdir())
    assert local("C:/runs") == Path("C:/runs")
