"""Replicas over the ranks of torch.distributed: the numbers of one process, errors of one are errors of all, kills lose little.

The processes are started once, as importing torch takes most of the time.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn

import torch_dmft as dmft
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.ranks import Ranks
from torch_dmft.theory.sharing import fingerprint
from torch_dmft.theory.solver import shareable
from torch_dmft.theory.solvers import GradientIndependence, InfiniteWidth, StaticNTK

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs torch.distributed with gloo"
)
ROOT = Path(__file__).parents[2]
_SECONDS = 200
"""After which processes that wait for each other are ended."""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two processes found, the second of which has been killed at last."""
    from tests.theory import ranks

    folder: Path = tmp_path_factory.mktemp("ranks")
    (folder / "port").write_text(str(_free_port()))
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=ranks.work, args=(rank, str(folder))) for rank in range(ranks.PROCESSES)]
    for process in processes:
        process.start()
    until = time.monotonic() + _SECONDS
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.exitcode is None:
            for one in processes:
                one.kill()
            pytest.fail(f"the processes were not done after {_SECONDS} seconds")
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
    return folder


@pytest.fixture(scope="module")
def found(ended: Path) -> list[dict[str, Any]]:
    return [torch.load(ended / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(
    "name", ["replicas", "strides", "gradient independence", "one replica", "no replicas", "chosen"]
)
def test_each_process_has_the_answer_of_a_single_one(found: list[dict[str, Any]], name: str) -> None:
    from tests.theory import ranks

    alone = ranks.numbers(dmft.solve(ranks.problem(), ranks.METHODS[name]))
    for outcome in found:
        _require_equal(outcome["answers"][name]["answer"], alone)
        assert outcome["answers"][name]["processes"] == (1 if name == "no replicas" else 2)


def test_a_linear_chain_has_its_error_bars_too(found: list[dict[str, Any]]) -> None:
    from tests.theory import ranks

    alone = ranks.numbers(dmft.solve(ranks.problem(activation="linear"), ranks.small()))
    for outcome in found:
        _require_equal(outcome["answers"]["linear"]["answer"], alone)


def test_replicas_are_divided(found: list[dict[str, Any]]) -> None:
    """None is trained twice, and of four two by each; another draw is another answer."""
    first, second = (outcome["answers"] for outcome in found)
    for name, counts in {"replicas": (2, 1), "strides": (1, 1), "one replica": (1, 0), "no replicas": (0, 0)}.items():
        trained = first[name]["trained"], second[name]["trained"]
        assert tuple(map(len, trained)) == counts
        assert not set(trained[0]) & set(trained[1])


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("another problem", "InvalidInputError", r"Every process must pose the same problem"),
        ("another seed", "InvalidInputError", r"Every process must pose the same problem"),
        ("steps beyond", "InvalidInputError", r"Steps to record must be integers in 0..4"),
        ("too few neurons", "UnsupportedProblemError", r"`neurons` must be larger"),
        ("a folder that is a file", "NotWrittenError", r"Nothing more could be written"),
    ],
)
def test_what_one_process_refuses_all_refuse(found: list[dict[str, Any]], name: str, kind: str, said: str) -> None:
    for outcome in found:
        assert outcome["refused"][name][0] == kind
        assert said in outcome["refused"][name][1]


def test_a_failure_ends_the_others_at_once(found: list[dict[str, Any]]) -> None:
    """Of 500 000 steps."""
    assert found[1]["refused"]["a bug"] == ("ZeroDivisionError", "step by zero")
    assert found[0]["refused"]["a bug"][0] == "DMFTError"
    assert "Process 1 has failed. Got: ZeroDivisionError: step by zero" in found[0]["refused"]["a bug"][1]


def test_finished_replicas_are_not_computed_again(found: list[dict[str, Any]]) -> None:
    """From folders of single processes, each with its own replicas, and for an answer of more of them."""
    from tests.theory import ranks

    for outcome in found:
        log = outcome["log"]
        _require_equal(log["first"], ranks.numbers(dmft.solve(ranks.problem(), ranks.small(2))))
        _require_equal(log["again"], log["first"])
    assert [len(outcome["log"]["trained"]) for outcome in found] == [1 + 0 + 2, 1 + 0 + 1]
    assert [outcome["log"]["files"] for outcome in found] == [3, 2]
    more = ranks.numbers(dmft.solve(ranks.problem(), ranks.small(5)))
    for outcome in found:
        _require_equal(outcome["log"]["more"], more)


def test_a_killed_process_ends_the_run_and_what_is_finished_is_kept(ended: Path) -> None:
    from tests.theory import ranks

    said = (ended / "killed.txt").read_text()
    assert said.startswith("LostProcessError: Another of the processes that work together has ended.")
    assert "log=" in said
    files = {path.name: path.stat().st_mtime_ns for path in (ended / "killed").iterdir()}
    assert len(files) == 3  # both of the first, one of the second
    answer = dmft.solve(ranks.problem(), ranks.small(4), log=ended / "killed")
    _require_equal(ranks.numbers(answer), ranks.numbers(dmft.solve(ranks.problem(), ranks.small(4))))
    after = {path.name: path.stat().st_mtime_ns for path in (ended / "killed").iterdir()}
    assert len(after) == 4
    assert files.items() <= after.items()


def test_without_processes_it_says_how_to_start_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.theory import ranks

    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidInputError, match=r"no process group.*Remedy: torchrun --nproc-per-node 2"):
        dmft.solve(ranks.problem(), ranks.small(), distributed=True)


def test_a_method_with_a_run_of_its_own_is_not_shared() -> None:
    """A subclass that overrides ``run`` would be passed over, and what it was made from would answer."""

    class Own(InfiniteWidth):
        def run(self, problem: Any, record: Any, *, two_time: bool, progress: bool) -> Any:
            raise NotImplementedError

    assert [shareable(one) for one in (InfiniteWidth(64), GradientIndependence(64), Own(64), StaticNTK())] == [
        True,
        True,
        False,
        False,
    ]


def test_a_method_that_keeps_nothing_says_so(tmp_path: Path) -> None:
    from tests.theory import ranks

    with pytest.warns(UserWarning, match=r"StaticNTK has no replicas to keep in .*starts again"):
        dmft.solve(ranks.problem(), StaticNTK(), log=tmp_path)


def test_the_name_of_a_replica_knows_all_that_decides_it() -> None:
    from tests.theory import ranks

    problems = [
        ranks.problem(),
        ranks.problem(lr=0.2),
        ranks.problem(seed=1),
        ranks.problem(activation="relu"),
        ranks.problem(steps=5),
        ranks.problem().trained(momentum=0.5),
    ]
    names = [fingerprint(problem, facts) for problem in problems for facts in ((), (1,), ("1",), ((1,),), ("1", ""))]
    assert len(set(names)) == len(names)
    assert fingerprint(ranks.problem(), (1,)) == fingerprint(ranks.problem(), (1,))


def test_the_name_of_a_replica_knows_weights_that_start_as_they_are() -> None:
    def posed(seed: int) -> dmft.Problem:
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.ones(2, 3), torch.ones(2, 1)
        model = nn.Sequential(nn.Linear(3, 16, bias=False), nn.Tanh(), nn.Linear(16, 1, bias=False))
        for layer, std in ((model[0], 3**-0.5), (model[2], 1 / 16)):
            nn.init.normal_(layer.weight, std=std, generator=generator)
        plan = dmft.parameterize(model, x, init="keep", generator=generator)
        recorder = dmft.Recorder(plan, dmft.Probe(x, y))
        optimizer = torch.optim.SGD(plan.param_groups(0.1))
        with recorder.attach(optimizer):
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
        return recorder.problem()

    one, same, other = (fingerprint(posed(seed), ()) for seed in (0, 0, 1))
    assert one == same != other


class Repeated(nn.Module):
    """Applies a layer several times, which no parameter tells."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times, self.layers = times, nn.ModuleList([nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(16, 2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, mix, last = self.layers
        h = first(x)
        for _ in range(self.times):
            h = h + torch.tanh(mix(h))
        result: torch.Tensor = last(h)
        return result


def test_finished_replicas_are_those_of_the_same_model_and_f(tmp_path: Path) -> None:
    def posed(column: int, times: int = 1) -> dmft.Problem:
        torch.manual_seed(0)
        inputs, targets = torch.eye(3), torch.ones(3, 1)
        plan = dmft.parameterize(Repeated(times), inputs)

        def f(out: torch.Tensor) -> torch.Tensor:
            return out[:, [column]] - 0.5 * column

        recorder = dmft.Recorder(plan, dmft.Probe(inputs, targets), outputs=f)
        optimizer = torch.optim.SGD(plan.param_groups(0.1))
        with recorder.attach(optimizer):
            nn.functional.mse_loss(f(plan.model(inputs)), targets).backward()
            optimizer.step()
        return recorder.problem()

    solver = dmft.solvers.InfiniteWidth(128, 2)
    for problem in (posed(0), posed(1), posed(0, times=2)):
        kept, alone = (dmft.solve(problem, solver, log=log) for log in (tmp_path, None))
        assert torch.equal(kept.outputs, alone.outputs)
    assert len([*tmp_path.iterdir()]) == 6
    assert fingerprint(posed(0), ()) == fingerprint(posed(0), ())


def test_a_single_process_agrees_with_itself() -> None:
    alone = Ranks()
    assert (alone.agree(lambda: 3), alone.gathered(3), alone.shared(3), alone.size) == (3, [3], 3, 1)
    with pytest.raises(ZeroDivisionError):
        alone.agree(lambda: 1 // 0)


def test_the_command_under_torchrun(tmp_path: Path) -> None:
    """One process prints and writes."""
    from tests.theory import ranks

    output = tmp_path / "theory.npz"
    shown = _torchrun("tests.theory.test_ranks:posed", "-o", str(output), "--every", "2")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("Written: ") == 1
    answer = dmft.Trajectory.load(output)
    assert answer.steps.tolist() == [0, 2, 4]
    assert answer.metadata["processes"] == 2
    alone = dmft.solve(ranks.problem(), ranks.small(), record=[0, 2, 4])
    _require_equal(ranks.numbers(answer), ranks.numbers(alone))
    assert [path.name for path in tmp_path.iterdir()] == ["theory.npz"]


def test_a_mistake_is_told_once_with_status_2_of_all(found: list[dict[str, Any]]) -> None:
    first, second = (outcome["command"] for outcome in found)
    assert first["said"].startswith("torch-dmft: `problem` must return a Problem, or a Problem and a solver. Got: int.")
    assert first["said"].count("\n") == 1
    assert (second["said"], first["printed"], second["printed"]) == ("", "", "")
    assert (first["status"], second["status"]) == (2, 2)


def posed() -> tuple[dmft.Problem, Any]:
    from tests.theory import ranks

    return ranks.problem(), ranks.small()


def wrong() -> int:
    return 3


def _torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(_free_port()),
    ]
    where = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "torch_dmft.cli", "solve", *words],
        cwd=ROOT,
        env=where,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


def _require_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, numbers in one.items():
        torch.testing.assert_close(numbers, other[name], rtol=1e-10, atol=1e-12, msg=name)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])
