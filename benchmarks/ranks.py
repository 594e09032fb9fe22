"""Time of one process over that of several, which share the replicas of a prediction.

The processes stay; each problem is solved by the first one alone while the others wait, then by all of them together, in turns.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

import torch_dmft as dmft
from benchmarks.clock import Say, Spent, timed
from benchmarks.markdown import table
from benchmarks.setting import chain_problem


@dataclass(frozen=True)
class Settings:
    """Depth 3, P samples, T steps, R replicas of S neurons, with and without strides."""

    processes: int = 2
    samples: tuple[int, ...] = (10,)
    steps: int = 60
    neurons: int = 8192
    replicas: int = 4
    rounds: int = 3


FULL = Settings()
QUICK = Settings(samples=(4,), steps=3, neurons=64, replicas=2, rounds=1)


def run(settings: Settings, say: Say) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_work, args=(settings, port, folder), nprocs=settings.processes)
        cases = torch.load(Path(folder) / "cases.pt")
    for name, case in cases.items():
        say(f"{name}: one process {case['one']['cpu']:.2f} s of CPU, {settings.processes} {case['ratio']:.2f} of that")
    return cases


def _work(rank: int, settings: Settings, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(settings.processes)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    cases = {}
    for samples in settings.samples:
        problem = chain_problem(samples=samples, steps=settings.steps)
        for strides in (False, True):
            solver = dmft.solvers.InfiniteWidth(settings.neurons, settings.replicas, strides=strides)
            found = _case(rank, problem, solver, settings.rounds)
            cases[f"P = {samples}{', strides' if strides else ''}"] = found
    if rank == 0:
        torch.save(cases, Path(folder) / "cases.pt")
    distributed.barrier()


def _case(rank: int, problem: dmft.Problem, solver: dmft.solvers.InfiniteWidth, rounds: int) -> dict[str, Any]:
    """Medians over rounds; of processes together the slowest counts."""
    dmft.solve(problem, solver, distributed=True)  # makes the group, and pays for what is loaded at first
    alone: list[Spent] = []
    together: list[Spent] = []
    apart = 0.0
    for _ in range(rounds):
        distributed.barrier()
        if rank == 0:
            one, spent = timed(lambda: dmft.solve(problem, solver))
            alone.append(spent)
        distributed.barrier()
        all_, spent = timed(lambda: dmft.solve(problem, solver, distributed=True))
        every: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(every, (spent.cpu, spent.wall))
        together.append(Spent(*(max(times) for times in zip(*every, strict=True))))
        if rank == 0:
            apart = max(apart, float((one.known_ntk.array - all_.known_ntk.array).abs().max()))
    if rank:
        return {}
    ratios = [t.cpu / a.cpu for t, a in zip(together, alone, strict=True)]
    walls = [t.wall / a.wall for t, a in zip(together, alone, strict=True)]
    return {
        "one": {"cpu": statistics.median(a.cpu for a in alone), "wall": statistics.median(a.wall for a in alone)},
        "several": {
            "cpu": statistics.median(t.cpu for t in together),
            "wall": statistics.median(t.wall for t in together),
        },
        "ratio": statistics.median(ratios),
        "wall_ratio": statistics.median(walls),
        "apart": apart,
    }


def report(settings: Settings, result: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{case['one']['cpu']:.2f} s",
            f"{case['several']['cpu']:.2f} s",
            f"{case['ratio']:.2f}",
            f"{case['wall_ratio']:.2f}",
            f"{case['apart']:.0e}",
        ]
        for name, case in result.items()
    ]
    head = [
        "problem",
        "one process",
        f"slowest of {settings.processes}",
        "ratio",
        "ratio of wall clocks",
        "NTKs differ by",
    ]
    return f"""\
`solve(problem, InfiniteWidth({settings.neurons}, {settings.replicas}), distributed=True)`: tanh, depth 3, T = {settings.steps},
all states recorded, one thread in each process. CPU time of the slowest of {settings.processes} processes beside that of one
which does everything, median of {settings.rounds} rounds in which both take turns. Wall clocks depend on what else the machine
does.

{table(head, rows)}"""
