"""What two processes do that solve problems together; ``test_ranks`` starts them."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import torch_dmft as dmft
from torch_dmft import cli
from torch_dmft.core.errors import DMFTError
from torch_dmft.theory import sharing as sharing_module
from torch_dmft.theory.solvers import GradientIndependence, InfiniteWidth, StaticNTK

PROCESSES = 2
Outcome = dict[str, Any]


def problem(*, lr: float = 0.1, seed: int = 0, activation: str = "tanh", steps: int = 4) -> dmft.Problem:
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = (torch.randn(4, size, generator=generator, dtype=torch.float64) for size in (3, 1))
    return dmft.Problem.mlp(inputs, targets, depth=2, activation=activation, lr=lr, steps=steps)


def small(replicas: int = 3, seed: int = 7) -> InfiniteWidth:
    return InfiniteWidth(64, replicas, generator=torch.Generator().manual_seed(seed))


METHODS = {
    "replicas": small(),
    "strides": InfiniteWidth(64, 2, strides=True),
    "gradient independence": GradientIndependence(64, 2),
    "one replica": InfiniteWidth(64, 1),
    "no replicas": StaticNTK(),
    "chosen": None,
}


def work(rank: int, folder: str) -> None:
    """All that is tried, in every process; what it found is saved."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": (Path(folder) / "port").read_text(),
    }
    found: dict[str, Outcome] = {"answers": _answers(rank), "refused": _refused(rank), "log": _log(rank, Path(folder))}
    found["command"] = _command(Path(folder))
    torch.save(found, Path(folder) / f"{rank}.pt")
    _killed(rank, Path(folder))


def _answers(rank: int) -> Outcome:
    """The first call makes the group; which processes trained what is told by their peers' absence in ``trained``."""
    found = {}
    for name, method in METHODS.items():
        trained = _followed()
        answer = dmft.solve(problem(), method, distributed=True)
        found[name] = {"answer": _numbers(answer), "trained": list(trained), "processes": answer.metadata["processes"]}
    assert distributed.is_initialized()
    linear = problem(activation="linear")
    found["linear"] = {"answer": _numbers(dmft.solve(linear, small(), distributed=True)), "trained": [], "processes": 2}
    return found


def _refused(rank: int) -> Outcome:
    """Errors of one process."""

    def on_the_second(wrong: Any, right: Any) -> Any:
        return wrong if rank == 1 else right

    calls = {
        "another problem": lambda: dmft.solve(problem(seed=rank), small(), distributed=True),
        "another seed": lambda: dmft.solve(problem(), small(seed=rank), distributed=True),
        "steps beyond": lambda: dmft.solve(problem(), small(), record=on_the_second([9], [1]), distributed=True),
        "too few neurons": lambda: dmft.solve(problem(), on_the_second(InfiniteWidth(16), small()), distributed=True),
        "a folder that is a file": lambda: dmft.solve(
            problem(), small(2), distributed=True, log=on_the_second(Path(__file__), None)
        ),
        "a bug": lambda: _with_a_bug(rank),
    }
    found: Outcome = {}
    for name, call in calls.items():
        try:
            call()
        except (DMFTError, ZeroDivisionError) as error:
            found[name] = type(error).__name__, str(error)
    return found


def _with_a_bug(rank: int) -> None:
    """One process fails in its first step, the other one would go on for hours."""
    before = sharing_module.Sharing.steps

    def steps(self: Any, steps: Any) -> Any:
        for step in before(self, steps):
            if rank == 1:
                raise ZeroDivisionError("step by zero")
            yield step

    sharing_module.Sharing.steps = steps  # type: ignore[method-assign]
    try:
        dmft.solve(problem(steps=500_000, lr=1e-4), small(2), record=[0], distributed=True)
    finally:
        sharing_module.Sharing.steps = before  # type: ignore[method-assign]


def _log(rank: int, folder: Path) -> Outcome:
    """A folder of each process alone, as on machines without a common disk, and then more replicas."""
    log, trained = folder / f"log {rank}", _followed()
    first = dmft.solve(problem(), small(2), distributed=True, log=log)
    again = dmft.solve(problem(), small(2), distributed=True, log=log)
    more = dmft.solve(problem(), small(5), distributed=True, log=log)
    return {
        "first": _numbers(first),
        "again": _numbers(again),
        "more": _numbers(more),
        "trained": list(trained),
        "files": len(list(log.iterdir())),
    }


def _killed(rank: int, folder: Path) -> None:
    """The second process is killed in its second replica of two; the first one ends with an error, and both have kept one."""
    before, started = sharing_module.Sharing.steps, []

    def steps(self: Any, steps: Any) -> Any:
        started.append(1)
        if rank == 1 and len(started) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(self, steps)

    sharing_module.Sharing.steps = steps  # type: ignore[method-assign]
    try:
        dmft.solve(problem(), small(4), distributed=True, log=folder / "killed")
    except DMFTError as error:
        (folder / "killed.txt").write_text(f"{type(error).__name__}: {error}")


def _command(folder: Path) -> Outcome:
    """The command with a mistake: its status and what it says."""
    said, printed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        status = cli.main(["solve", "tests.theory.test_ranks:wrong", "-o", str(folder / "theory.npz")])
    return {"status": status, "said": said.getvalue(), "printed": printed.getvalue()}


def _followed() -> list[int]:
    """The numbers of the replicas that are trained in this process from now on."""
    from torch_dmft.theory.solvers import infinite_width

    trained: list[int] = []
    original = getattr(infinite_width.twin_of, "original", infinite_width.twin_of)

    def twin_of(*args: Any, generator: torch.Generator, **settings: Any) -> Any:
        trained.append(generator.initial_seed())
        return original(*args, generator=generator, **settings)

    twin_of.original = original  # type: ignore[attr-defined]
    infinite_width.twin_of = twin_of
    return trained


def _numbers(answer: dmft.Trajectory) -> dict[str, torch.Tensor]:
    found = {"outputs": answer.outputs, "losses": answer.losses, "ntk": answer.known_ntk.array}
    found |= {f"Phi of {layer.name}": layer.forward.array for layer in answer.layers}
    if answer.stderr is not None:
        found |= {"outputs' error": answer.stderr.outputs, "losses' error": answer.stderr.losses}
    return found


numbers = _numbers
