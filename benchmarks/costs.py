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
from benchmarks.markdown import table
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
    two_time: bool | float = False
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


@dataclass(frozen=True)
class Settings:
    """Which of ``CASES`` are measured, each in a process of its own."""

    cases: tuple[str, ...]


_ENGINE = {"neurons": 1024, "replicas": 2}
_NETWORKS = {"widths": (64, 128), "pairs": 4}
_UNSTABLE = {"activation": "relu", "depth": 4, "lr": 0.3}
_LINEAR = {"activation": "linear", "lr": 0.02}
CASES = {
    "tanh": Case("InfiniteWidth", _ENGINE),
    "tanh, small gamma0": Case("InfiniteWidth", _ENGINE, options={"gamma0": 0.03}),
    "tanh, depth 4": Case("InfiniteWidth", _ENGINE, options={"depth": 4}),
    "tanh, 5 outputs": Case("InfiniteWidth", _ENGINE, samples=10, outputs=5),
    "tanh, two-time": Case("InfiniteWidth", _ENGINE, steps=40, two_time=True),
    "tanh, minibatches, momentum": Case("InfiniteWidth", _ENGINE, batch=5, options={"momentum": 0.9, "lr": 0.02}),
    "tanh, 1000 steps, 51 recorded": Case("InfiniteWidth", _ENGINE, steps=1000, every=20),
    "ReLU": Case("InfiniteWidth", _ENGINE, options={"activation": "relu", "lr": 0.02}),
    "ReLU, depth 4, oscillating": Case("InfiniteWidth", _ENGINE, 10, 20, steps=60, options=_UNSTABLE),
    "ReLU, few rows": Case("InfiniteWidth", _ENGINE, samples=8, steps=60, options={"activation": "relu"}),
    "gradient independence": Case("GradientIndependence", _ENGINE),
    "static NTK": Case("StaticNTK", samples=150, inputs=200, options={"lr": 0.005}),
    "static NTK, two-time": Case("StaticNTK", steps=60, two_time=True),
    "ensemble": Case("WideEnsemble", _NETWORKS, samples=40, inputs=60, steps=50, options={"lr": 0.02}),
    "ensemble, two-time": Case("WideEnsemble", _NETWORKS, steps=30, two_time=True),
    "ensemble, 5 outputs": Case("WideEnsemble", _NETWORKS, samples=10, outputs=5, steps=50),
    "networks of a width": Case("FiniteWidth", {"width": 128, "replicas": 16}, steps=50),
    "networks, two-time": Case("FiniteWidth", {"width": 128, "replicas": 8}, steps=30, two_time=True),
    "deep linear": Case("DeepLinear", samples=60, options=_LINEAR),
    "whitened": Case("WhitenedLinear", white=True, options={"activation": "linear"}),
    "perturbation": Case("Perturbation", {"replicas": 2}, samples=10, steps=50, options={"gamma0": 0.1}),
    "alternating Monte Carlo": Case("AlternatingMonteCarlo", {"neurons": 500, "replicas": 2}, samples=4, steps=10),
}
FULL = Settings(tuple(CASES))
QUICK = Settings(("static NTK, two-time",))


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """All cases."""
    found = {}
    for name in settings.cases:
        found[name] = measure(CASES[name])
        say(f"{name}: {found[name]}")
    return found


def report(settings: Settings, result: dict[str, Any]) -> str:
    rows = []
    for name in settings.cases:
        told, found = result[name]["estimate"], result[name]["measured"]
        row = [name, CASES[name].solver]
        for what, unit in (("memory", 2**20), ("seconds", 1), ("rank", 1)):
            if told[what] is None or found[what] is None:
                row += ["", "", ""]
            else:
                digits = 1 if what == "seconds" else 0
                row += [
                    f"{told[what] / unit:.{digits}f}",
                    f"{found[what] / unit:.{digits}f}",
                    f"{told[what] / found[what]:.2f}",
                ]
        rows.append(row)
    head = [
        "problem",
        "solver",
        "MiB told",
        "MiB",
        "ratio",
        "CPU s told",
        "CPU s",
        "ratio",
        "rank told",
        "rank",
        "ratio",
    ]
    return f"""\
What `estimate` tells beside what a process of its own measures: the growth of its peak resident memory and its CPU time from
the posed problem to the answer, with what PyTorch loads on first use. Chains of two hidden layers on Gaussian points with
random signs, 20 of them in 30 dimensions over 100 recorded steps, unless a line says otherwise. Memory
is meant as an upper bound.

{table(head, rows)}"""


if __name__ == "__main__":
    print(json.dumps(solve(Case(**json.loads(sys.argv[1])))))
