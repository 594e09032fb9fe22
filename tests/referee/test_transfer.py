"""Whether a best rate transfers: of losses that are known, of networks, and after a kill."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import torch_dmft as dmft
from tests.referee import sweeps
from torch_dmft import cli
from torch_dmft.core.errors import InsufficientMemoryError, InvalidInputError
from torch_dmft.referee import Transferred, transfer
from torch_dmft.referee.one_run import final_loss, has_diverged

ROOT = Path(__file__).parents[2]
WIDTHS = (64, 128, 256)


def of_valley(power: float, drop: float = 0.0, **settings) -> Transferred:
    settings = {"steps": 2, "seeds": 3, "data": sweeps.BATCH, **settings}
    return transfer(partial(sweeps.valley, power=power, drop=drop), WIDTHS, **settings)


@pytest.fixture(scope="module")
def level() -> Transferred:
    return of_valley(0.0)


@pytest.fixture(scope="module")
def falling() -> Transferred:
    return of_valley(-0.5)


def test_a_rate_that_transfers(level: Transferred) -> None:
    assert level.word == "transfers"
    assert level.exit_code == 0
    assert abs(level.exponent.value) <= level.exponent.reach
    for value in WIDTHS:
        assert level.lr(level.optima[value].value) == pytest.approx(0.1, rel=0.05)
        assert level.least[value] == pytest.approx(1, abs=0.03)  # no parabola in the log of the loss
        # 8 times the best rate holds and the next one of the grid does not.
        assert 0.4 < level.lr(level.ceilings[value].value) < 1.7
    assert level.enough == 64
    assert level.ceiling_exponent.low < 0 < level.ceiling_exponent.high
    assert "base width 64 is enough" in str(level)


def test_a_rate_that_does_not(falling: Transferred) -> None:
    assert falling.word == "does not transfer"
    assert falling.exit_code == 1
    assert falling.exponent.low < -0.5 < falling.exponent.high < 0
    assert falling.ceiling_exponent.low < -0.5 < falling.ceiling_exponent.high
    # Too large by a factor 2 from 64 to 256, and by sqrt(2) from 128.
    assert falling.costs[64].value == pytest.approx(math.log1p(1 / 8), abs=0.04)
    assert falling.costs[128].value == pytest.approx(math.log1p(0.5**2 / 8), abs=0.02)
    assert falling.enough is None


def test_a_transferred_rate_that_diverges_does_not_transfer() -> None:
    found = of_valley(-2.5)
    assert math.isinf(found.costs[64].value)
    assert found.word == "does not transfer"
    assert "the best rates of 64, 128 diverge at 256" in " ".join(str(found).split())
    assert found.exponent.low < -2.5 < found.exponent.high


def test_a_negative_loss_costs_what_it_is_above_its_least_one() -> None:
    found = of_valley(-0.5, drop=6.0)
    assert found.word == "does not transfer"
    assert found.least[256] == pytest.approx(-5, abs=0.03)
    assert found.costs[64].value == pytest.approx(math.log1p(1 / 8) / 5, abs=0.01)
    assert found.enough == 128
    lost = of_valley(-2.5, drop=6.0)  # an infinite loss over a negative one is not -100%
    assert math.isinf(lost.costs[64].value)
    assert "the best rates of 64, 128 diverge at 256" in " ".join(str(lost).split())


@pytest.mark.parametrize(("first", "bound"), [(2.0, 20.0), (-2.0, 16.0)])
def test_a_loss_is_given_up_nine_times_its_size_above_the_first(first: float, bound: float) -> None:
    assert not has_diverged(bound, first)
    assert has_diverged(bound + 0.1, first)
    assert has_diverged(math.nan, first)
    assert final_loss([first, first + 0.9 * abs(first)]) == first + 0.9 * abs(first)
    assert math.isinf(final_loss([first, first + 1.1 * abs(first)]))


def test_one_seed_decides_nothing_and_says_how_many_would() -> None:
    found = of_valley(0.0, seeds=1)
    assert found.word == "not decided"
    assert found.exit_code == 3
    assert found.seeds_needed == 3
    assert "one seed has no interval" in str(found)


def test_the_search_leaves_the_rates_that_were_asked_for() -> None:
    for lrs in ((1e-6,), (10.0, 20.0), (0.1,)):
        found = of_valley(0.0, lrs=lrs)
        assert found.lr(found.optima[64].value) == pytest.approx(0.1, rel=0.05)


def test_it_tries_few_rates(level: Transferred) -> None:
    """Coarse ones once, then five around the best of every width, and up from there to the first that diverges."""
    coarse = [run for run in level.runs if run.value == 64 and run.seed == 0]
    assert len(coarse) <= 9 + 5 + 3
    for value in WIDTHS[1:]:
        assert len([run for run in level.runs if run.value == value and run.seed == 1]) <= 5 + 3
    assert all(run.steps < 2 or run.holds or run.power > level.best[run.value] for run in level.runs)


def test_without_a_best_rate_it_is_refused() -> None:
    def deaf(width: int, lr: float):
        model, _, loss = sweeps.valley(width, 0.1)
        return model, torch.optim.SGD(model.parameters(), lr=0.1), loss

    with pytest.raises(InvalidInputError, match="the loss is the same at all rates"):
        transfer(deaf, WIDTHS, steps=2, seeds=1, data=sweeps.BATCH)

    def wild(width: int, lr: float):
        return sweeps.valley(width, 1e9)

    with pytest.raises(InvalidInputError, match="all rates diverge"):
        transfer(wild, WIDTHS, steps=2, seeds=1, data=sweeps.BATCH)


def test_theory_beside_it() -> None:
    asked = []

    def theory(lr: float) -> list[float]:
        asked.append(lr)
        return [9.0, 9.0, 9.0, 1 + math.log2(lr / 0.05) ** 2 / 8 if lr < 0.5 else math.inf]

    found = of_valley(0.0, theory=theory)
    assert found.theory is not None
    assert found.lr(found._of_theory().at) == pytest.approx(0.05, rel=0.02)
    assert len(asked) == len(set(asked)) < 10
    assert "theory's best rate at infinite width is 0.05" in " ".join(str(found).split())
    assert "theory" in str(found.table())


def test_networks_beside_the_theory_of_infinite_width() -> None:
    inputs, targets = sweeps.INPUTS[:8], sweeps.TARGETS[:8]
    problem = dmft.Problem.mlp(inputs, targets, depth=1, steps=12)
    limit = dmft.solvers.InfiniteWidth(neurons=256, replicas=1, generator=torch.Generator().manual_seed(0))

    def theory(lr: float) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rates near the edge, which are asked about as well
            return dmft.solve(problem.trained(lr=lr), limit).losses[:-1]

    batches = [(inputs, targets)]
    found = transfer(sweeps.limited, (64, 256), lrs=(0.8,), steps=12, seeds=3, data=batches, theory=theory)
    at = found._of_theory().at
    assert abs(at - found.optima[256].value) < 0.5, str(found)
    # 1/sqrt(N) away at each rate that is stable in both, as the loss is.
    for power, loss in found.theory.items():
        losses = found.curves[256].get(power)
        if losses is not None and math.isfinite(loss) and power < at:
            assert sum(losses) / 3 == pytest.approx(loss, rel=5 / math.sqrt(256))


def test_factors_of_the_optimizers_own_rates() -> None:
    found = transfer(sweeps.plain_at_its_own_rate, (8, 16), steps=20, seeds=1, data=sweeps.data)
    same = transfer(
        sweeps.plain, (8, 16), lrs=[0.01 * 4.0**p for p in range(-3, 4)], steps=20, seeds=1, data=sweeps.data
    )
    assert [replace(run, seconds=0.0) for run in found.runs] == [replace(run, seconds=0.0) for run in same.runs]
    assert "factors" in str(found)
    assert found.to_dict()["rates_are"] == "factors"


class TestNetworks:
    """An MLP with Adam, of few steps."""

    def test_in_mean_field_parameterization_it_transfers(self) -> None:
        found = transfer(sweeps.scaled, (64, 256), lrs=(0.1, 0.4), steps=24, seeds=3, data=sweeps.data, processes=2)
        assert found.word == "transfers", str(found)
        assert found.exponent.low < 0 < found.exponent.high

    def test_in_pytorchs_own_it_does_not(self) -> None:
        found = transfer(
            sweeps.plain, (32, 64, 256), lrs=(0.005, 0.02), steps=24, seeds=4, data=sweeps.data, processes=2
        )
        assert found.word == "does not transfer", str(found)
        assert found.exponent.high < 0
        assert found.ceiling_exponent.high < 0


class TestTheLog:
    """What is kept, and gone on from."""

    def test_a_sweep_that_goes_on_equals_an_unbroken_one(self, tmp_path: Path) -> None:
        whole = transfer(sweeps.plain, **sweeps.SWEEP, data=sweeps.data, log=tmp_path / "whole.jsonl")
        lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
        for kept in (1, 7, len(lines)):
            log = tmp_path / f"{kept}.jsonl"
            log.write_bytes(b"".join(lines[:kept]) + b'{"value": 8, "po' * (kept == 7))
            seen = []
            found = transfer(
                sweeps.plain,
                **sweeps.SWEEP,
                data=sweeps.data,
                log=log,
                progress=lambda done, *_, seen=seen: seen.append(done),
            )
            assert len(seen) == len(lines) - kept
            assert _lasting(found) == _lasting(whole)
            assert len(log.read_bytes().splitlines()) == len(lines)

    def test_more_seeds_and_widths_take_what_is_there(self, tmp_path: Path) -> None:
        log = tmp_path / "runs.jsonl"
        of_valley(0.0, log=log, seeds=2)
        there = log.read_bytes()
        found = of_valley(0.0, log=log, seeds=3)
        assert log.read_bytes().startswith(there)
        assert _lasting(found) == _lasting(of_valley(0.0, seeds=3))

    def test_that_of_another_sweep_is_refused(self, tmp_path: Path) -> None:
        log = tmp_path / "runs.jsonl"
        of_valley(0.0, log=log)
        with pytest.raises(InvalidInputError, match="steps=2 and not 3"):
            of_valley(0.0, log=log, steps=3)
        log.write_text("hello\n")
        with pytest.raises(InvalidInputError, match="must hold the runs of a sweep"):
            of_valley(0.0, log=log)

    def test_a_kill(self, tmp_path: Path) -> None:
        """SIGKILL after some runs: its worker processes end, the file is whole but perhaps for its last line."""
        log = tmp_path / "runs.jsonl"
        command = [sys.executable, "-m", "tests.referee.sweeps", str(log)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert 5 <= len(log.read_text().splitlines()) - 1 < 20
        deadline = time.monotonic() + 30
        while _group_is_alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not _group_is_alive(process.pid)
        found = transfer(sweeps.plain, **sweeps.SWEEP, data=sweeps.data, log=log)
        assert _lasting(found) == _lasting(transfer(sweeps.plain, **sweeps.SWEEP, data=sweeps.data))

    def test_a_worker_that_is_killed(self, tmp_path: Path) -> None:
        def deadly(width: int, lr: float):
            if width == 128:
                os.kill(os.getpid(), signal.SIGKILL)
            return sweeps.valley(width, lr)

        log = tmp_path / "runs.jsonl"
        with pytest.raises(InsufficientMemoryError, match="fewer processes"):
            transfer(deadly, WIDTHS, steps=2, seeds=2, data=sweeps.BATCH, log=log, processes=2)
        assert len(log.read_text().splitlines()) > 10


def _lasting(found: Transferred) -> dict:
    """What does not depend on the clock."""
    told = found.to_dict()
    return {**told, "runs": [{**run, "seconds": 0} for run in told["runs"]]}


def _group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


class TestTheCommand:
    """What it prints, writes and returns."""

    @pytest.fixture
    def words(self, monkeypatch) -> list[str]:
        monkeypatch.chdir(ROOT)
        common = "--widths 64,128,256 --steps 2 --processes 1 --data tests.referee.test_transfer:batches"
        return ["transfer", *common.split()]

    def test_all_it_writes(self, words: list[str], tmp_path: Path, capsys) -> None:
        names = {name: tmp_path / "new" / name for name in ("out.json", "out.md", "out.png", "runs.jsonl")}
        options = ["--json", "--markdown", "--figure", "--log"]
        files = [str(word) for pair in zip(options, names.values(), strict=True) for word in pair]
        assert cli.main([*words, "tests.referee.sweeps:drifting", *files]) == 1
        said = capsys.readouterr().out
        assert said.startswith("does not transfer: the best rate goes like width^(-0.5")
        assert max(map(len, said.splitlines())) <= 80
        told = json.loads(names["out.json"].read_text())
        assert (told["schema"], told["verdict"], told["exit_code"]) == ("torch_dmft/transfer/1", "does not transfer", 1)
        assert told["exponent"]["low"] < -0.5 < told["exponent"]["high"]
        assert "❌" in names["out.md"].read_text()
        assert names["out.png"].stat().st_size > 10_000
        assert len(names["runs.jsonl"].read_text().splitlines()) == 1 + len(told["runs"])

    def test_right_ones_and_depth(self, words: list[str], capsys) -> None:
        assert cli.main([*words, "tests.referee.sweeps:valley", "--axis", "depth", "--json", "-"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["axis"] == "depth"
        assert told["enough"] == 64

    def test_what_cannot_run(self, words: list[str], capsys) -> None:
        assert cli.main([*words, "tests.referee.sweeps:valey"]) == 2
        assert "tests.referee.sweeps:valley" in capsys.readouterr().err
        one_seed_decides_nothing = cli.main([*words, "tests.referee.sweeps:valley", "--seeds", "1"])
        assert one_seed_decides_nothing == 3


def batches(seed: int) -> list[torch.Tensor]:
    return sweeps.BATCH


def test_json_fits_its_schema(level: Transferred, falling: Transferred) -> None:
    """Every key of the committed schema is there, of its type, and no other."""
    schema = json.loads((Path(dmft.__file__).parent / "referee" / "transfer.schema.json").read_text())
    for found in (level, falling, of_valley(0.0, seeds=1)):
        _check(json.loads(found.to_json()), schema)
    with pytest.raises(AssertionError):
        _check({**json.loads(level.to_json()), "verdict": 3}, schema)


def _check(value, schema: dict) -> None:
    kinds = {"object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "null": type(None)}
    wanted = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert any(isinstance(value, kinds[kind]) for kind in wanted), (value, schema)
    assert value in schema.get("enum", [value])
    if isinstance(value, dict):
        assert set(value) == set(schema["properties"])
        for name, one in value.items():
            _check(one, schema["properties"][name])
    if isinstance(value, list):
        for one in value:
            _check(one, schema["items"])


def test_the_figure_has_labelled_axes(level: Transferred) -> None:
    figure = replace(level, theory={-3: 2.0, -2: 1.0, -1: 2.0}).figure()
    left, right = figure.axes
    assert (left.get_xlabel(), right.get_xlabel(), right.get_ylabel()) == ("learning rate", "width", "learning rate")
    assert "loss" in left.get_ylabel()
    assert [text.get_text() for text in left.get_legend().get_texts()][-1] == "theory (infinite)"


def test_wrong_settings() -> None:
    for settings, said in (
        ({"widths": (64,)}, "two different widths"),
        ({"lrs": ()}, "at least one rate"),
        ({"lrs": (0.0,)}, "lrs must"),
        ({"seeds": 0}, "seeds"),
        ({"processes": 0}, "processes"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            transfer(sweeps.valley, **{"widths": WIDTHS, "data": sweeps.BATCH, **settings})
