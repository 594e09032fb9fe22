"""What solvers say that they will need, beside what they do need: memory, CPU time, rank."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

import torch_dmft as dmft
from benchmarks.clock import Say, timed
from benchmarks.environment import ROOT
from benchmarks.setting import half_square


@dataclass(frozen=True)
class Case:
    """A chain on random data, and who solves it."""

    solver: str
    settings: dict[str, Any] = field(default_factory=dict)
    samples: int = 20
    inputs: int = 30
    outputs: int = 1
    steps: int = 100
    every: int = 1
    two_time: bool = False
    batch: int | None = None
    white: bool = False
    mean: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def problem(self) -> dmft.Problem:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(self.samples, self.inputs, generator=generator)
        if self.white:
            inputs = self.inputs**0.5 * torch.linalg.qr(inputs.T).Q.T
        targets = torch.sign(torch.randn(self.samples, self.outputs, generator=generator))
        batches = None
        if self.batch:
            batches = [torch.randperm(self.samples, generator=generator)[: self.batch] for _ in range(self.steps)]
        options = {"depth": 2, "activation": "tanh", "lr": 0.05, "steps": self.steps, "batches": batches}
        loss = torch.nn.MSELoss() if self.mean else half_square
        return dmft.Problem.mlp(inputs, targets, **options | {"loss": loss} | self.options)


def peak() -> int:
    """The most bytes that this process has had in memory."""
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def solve(case: Case) -> dict[str, Any]:
    torch.set_num_threads(1)
    problem, solver = case.problem(), getattr(dmft.solvers, case.solver)(**case.settings)
    record = range(0, case.steps + 1, case.every)
    cost = solver.estimate(problem, record, two_time=case.two_time)
    before = peak()
    answer, spent = timed(lambda: dmft.solve(problem, solver, record=record, two_time=case.two_time))
    return {
        "estimate": {"memory": cost.memory, "seconds": cost.seconds, "rank": cost.rank},
        "measured": {"memory": peak() - before, "seconds": spent.cpu, "rank": answer.metadata.get("rank")},
    }


def measure(case: Case) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.costs", json.dumps(asdict(case))]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(solve(Case(**json.loads(sys.argv[1])))))
