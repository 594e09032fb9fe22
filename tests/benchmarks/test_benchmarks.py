"""Every benchmark runs with its quick settings, and the page is written from what it found. No time is judged."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import NAMES
from benchmarks.__main__ import main, measure
from benchmarks.agreement import PROBLEMS
from benchmarks.clock import exponent
from benchmarks.ensemble import Pilot, _amplitudes
from benchmarks.limits import LIMITS
from benchmarks.page import page

FIELDS = {
    "neurons": {"reference_stderr", "points", "exponent", "exponents"},
    "steps": {"tanh, longer", "tanh, finer", "relu, longer"},
    "turning": {"ReLU", "minibatches"},
    "ensemble": {"theory", "ensemble", "reduced_ensemble", "ratio", "reduced_ratio", "reference_check", "costs"},
    "algorithm1": {"algorithm1", "engine", "ratio", "algorithm1_times", "engine_times"},
    "large": {"estimate", "stderr", "peak", "cpu", "wall", "rank"},
    "ranks": {"P = 4", "P = 4, strides"},
    "recorder": {"mlp", "cnn"},
    "record": {"mlp", "cnn", "vit"},
    "agreement": set(PROBLEMS),
    "coverage": {"tanh", "cross entropy"},
    "limits": set(LIMITS),
    "scatter": {"influences", "networks"},
    "versions": {"cpu", "ratio", "first_ratio", "errors", "error_ratios"},
    "costs": {"static NTK, two-time"},
    "referee": {"right", "wrong", "named", "kinds"},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_writes_its_result_beside_where_it_ran(name: str, results: Path) -> None:
    path = measure(name, results, quick=True)
    assert path == results / "quick" / f"{name}.json"
    found = json.loads(path.read_text())
    assert found["quick"] is True
    assert {"date", "commit", "python", "torch", "cpu", "cores", "threads", "load"} <= set(found["environment"])
    assert FIELDS[name] <= set(found["result"])
    assert {"cpu", "wall"} <= set(found["spent"])
    assert all(math.isfinite(number) for number in _numbers(found["result"]))


def test_the_page_shows_what_was_found_and_what_was_not(results: Path, tmp_path: Path) -> None:
    path = results / "quick" / "recorder.json"
    found = json.loads((path if path.exists() else measure("recorder", results, quick=True)).read_text())
    found["result"]["mlp"][0]["overhead"] = 123.456
    (tmp_path / "recorder.json").write_text(json.dumps(found))
    target = tmp_path / "page.md"
    main(["--table", "--out", str(tmp_path), "--page", str(target)])
    text = target.read_text()
    assert "| 123.46 |" in text
    assert found["environment"]["commit"] in text
    assert text.count("Not measured yet") == len(NAMES) - 1


def test_every_report_can_be_written(results: Path) -> None:
    for name in NAMES:
        if not (results / "quick" / f"{name}.json").exists():
            measure(name, results, quick=True)
    text = page(results / "quick")
    assert text.count("\n## ") == len(NAMES)
    assert "Not measured yet" not in text


def test_the_committed_page_is_the_one_its_results_make() -> None:
    root = Path(__file__).parents[2]
    assert (root / "docs" / "benchmarks.md").read_text() == page(root / "benchmarks" / "results")


def test_help_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in NAMES)


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["nurons"])
    assert "nurons" in capsys.readouterr().err


def test_exponent_is_the_slope_of_a_power_law() -> None:
    assert exponent([1.0, 2.0, 8.0], [5.0, 10.0 / 2**1.5, 5.0 / 8**0.5]) == pytest.approx(-0.5, abs=1e-10)


def test_a_bias_is_told_from_noise() -> None:
    """K_N = K* + c / N + noise of a known variance: c comes out, and zero does if there is nothing but noise."""
    import torch

    generator = torch.Generator().manual_seed(0)
    exact = torch.ones(200, 4, 4, dtype=torch.float64)
    for bias in (3.0, 0.0):
        pilots = []
        for width in (16, 32, 64):
            noise = 0.1 * torch.randn(200, 4, 4, generator=generator, dtype=torch.float64)
            pilots.append(Pilot(width, 10, {"Phi1": exact + bias / width + noise}, {"Phi1": 10 * 0.1**2}, 1.0, 1))
        found = _amplitudes([((pilot, 1.0),) for pilot in pilots], {"Phi1": exact}, power=1)
        # The noise of the mean square over 3200 entries limits c^2: at N = 16, 2.5% of (0.1 * 16)^2.
        assert found["Phi1"] ** 2 == pytest.approx(bias**2, abs=0.5)


def _numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in _numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []
