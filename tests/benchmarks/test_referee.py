"""The benchmark of the referee: right and wrong set-ups in turn, a log that a run goes on from, and exact bounds of shares."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.binomial import bounds, share
from benchmarks.referee import QUICK, Settings, report, run

TINY = replace(QUICK, widths=(16, 32), steps=1)


def without_times(found: dict) -> dict:
    return json.loads(
        json.dumps(found), object_hook=lambda one: {name: one[name] for name in one if name not in ("cpu", "wall")}
    )


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    logged = replace(TINY, log=str(tmp_path / "runs" / "referee.jsonl"))

    def killed(text: str) -> None:
        if text.startswith("3 of"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(logged, killed)
    log = Path(logged.log)
    about, *lines = log.read_text().splitlines()
    assert [bool(json.loads(line)["fault"]) for line in lines] == [False, True, False]
    log.write_text("\n".join([about, *lines[:2], lines[2][:40]]))  # the last line is cut short
    said: list[str] = []
    found = run(logged, said.append)
    assert [text.split(":")[0] for text in said] == [f"2 of 4 are in {log}", "3 of 4", "4 of 4"]
    assert without_times(found) == without_times(run(TINY, lambda text: None))
    assert len(log.read_text().splitlines()) == 5
    assert run(logged, said.append) == found
    with pytest.raises(ValueError, match="other settings"):
        run(replace(logged, steps=2), said.append)


def test_no_seed_is_used_twice_and_none_that_the_rules_were_made_with() -> None:
    found = run(TINY, lambda text: None)
    seeds = [one["seed"] for one in (*found["false_alarms"], *found["missed"])]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 1000
    assert sum(found["right"].values()) == sum(found["wrong"].values()) == 2


def test_the_report_counts() -> None:
    result = {
        "right": {"right": 196, "wrong": 1, "not decided": 3},
        "wrong": {"right": 2, "wrong": 190, "not decided": 8},
        "named": 187,
        "kinds": {"rate": {"set-ups": 200, "found": 190, "named": 187}},
        "networks": 4.5,
        "spent": {"cpu": 600.0, "wall": 900.0},
    }
    text = report(Settings(), result)
    assert "1 called wrong, 0.5% (0.0% to 2.8%)" in text
    assert "187, 93.5% (89.1% to 96.5%)" in text
    assert "| rate | 200 | 190 | 187 |" in text
    assert "up to 16 while nothing is decided, 4.5 in the mean" in text


def test_the_docs_have_the_figures_that_were_found() -> None:
    root = Path(__file__).parents[2]
    result = json.loads((root / "benchmarks" / "results" / "referee.json").read_text())["result"]
    text = " ".join((root / "docs" / "referee.md").read_text().split())
    right, wrong = (sum(result[kind].values()) for kind in ("right", "wrong"))
    alarms, found, named = result["right"]["wrong"], result["wrong"]["wrong"], result["named"]
    assert f"of {right} right set-ups {alarms} are called wrong, {share(alarms, right)};" in text
    assert f"of {wrong} with a random fault {found} are called wrong, {share(found, wrong)}, and" in text
    assert f"{named} with the right layer, {share(named, wrong)}." in text


@pytest.mark.parametrize(("hits", "trials"), [(0, 200), (1, 200), (7, 20), (20, 20)])
def test_bounds_leave_half_the_level_on_each_side(hits: int, trials: int) -> None:
    lower, upper = bounds(hits, trials)

    def chance(counts: range, p: float) -> float:
        return sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in counts)

    if hits:
        assert chance(range(hits, trials + 1), lower) == pytest.approx(0.025, rel=1e-9)
    else:
        assert lower == 0.0
    if hits < trials:
        assert chance(range(hits + 1), upper) == pytest.approx(0.025, rel=1e-9)
    else:
        assert upper == 1.0
    assert share(hits, trials) == f"{hits / trials:.1%} ({lower:.1%} to {upper:.1%})"
    assert share(0, 0) == "of none"


def test_settings_are_given_by_name(tmp_path: Path) -> None:
    tiny = ["count=2", "first=2000", "widths=8,16", "steps=1", "log="]
    main(["referee", "--quick", "--set", *tiny, "--out", str(tmp_path)])
    settings = json.loads((tmp_path / "quick" / "referee.json").read_text())["settings"]
    assert settings == {
        "count": 2, "first": 2000, "widths": [8, 16], "seeds": 2, "steps": 1, "processes": 1, "log": ""
    }  # fmt: skip
    for arguments in (["referee", "--set", "cuont=2"], ["referee", "--set", "count=two"], ["--set", "count=2"]):
        with pytest.raises(SystemExit, match="--set"):
            main([*arguments, "--quick", "--out", str(tmp_path)])
