"""A large problem: 100 images, 500 steps, three hidden layers; time, error and peak memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

import torch_dmft as dmft
from benchmarks.clock import Say, timed
from benchmarks.environment import ROOT
from benchmarks.markdown import percent, seconds, table
from benchmarks.setting import half_square, kernels_of, worst
from torch_dmft.data import load


@dataclass(frozen=True)
class Settings:
    """Images of two handwritten digits, full batch."""

    samples: int = 100
    steps: int = 500
    depth: int = 3
    lr: float = 0.01
    neurons: int = 8192
    replicas: int = 6
    every: int = 10
    threads: int = 2


FULL = Settings()
QUICK = Settings(samples=8, steps=4, neurons=256, replicas=2, every=2, threads=1)


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """Solve in a process of its own, whose peak memory is then that of this problem alone."""
    cost = _solver(settings).estimate(_problem(settings), _record(settings))
    say(f"{cost}; {settings.threads} threads")
    command = [sys.executable, "-m", "benchmarks.large", json.dumps(asdict(settings))]
    answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    say(
        f"{result['wall']:.0f} s, {worst(result['stderr']):.2%} in the worst kernel, {result['peak'] / 2**30:.2f} GiB at most"
    )
    return {"estimate": asdict(cost) | {"seconds": cost.seconds}, **result}


def _problem(settings: Settings) -> dmft.Problem:
    images, targets = load("digits", settings.samples, classes=(3, 8))
    return dmft.Problem.mlp(
        images.flatten(1),
        targets,
        depth=settings.depth,
        lr=settings.lr,
        steps=settings.steps,
        loss=half_square,
    )


def _record(settings: Settings) -> range:
    return range(0, settings.steps + 1, settings.every)


def _solver(settings: Settings) -> Any:
    generator = torch.Generator().manual_seed(0)
    return dmft.solvers.InfiniteWidth(settings.neurons, settings.replicas, generator=generator, strides=True)


def _solve(settings: Settings) -> dict[str, Any]:
    torch.set_num_threads(settings.threads)
    problem, record = _problem(settings), _record(settings)
    answer, spent = timed(lambda: dmft.solve(problem, _solver(settings), record=record))
    assert answer.stderr is not None  # there are replicas
    kernels = kernels_of(answer)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return {
        "rank": answer.metadata["rank"],
        "passes": answer.metadata["passes"],
        "losses": [float(answer.losses[0]), float(answer.losses[-1])],
        "stderr": {name: float(k.norm() / kernels[name].norm()) for name, k in kernels_of(answer.stderr).items()},
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        **spent.json(),
    }


def report(settings: Settings, result: dict[str, Any]) -> str:
    start, end = result["losses"]
    estimate = result["estimate"]
    rows = [
        [
            "estimate, at most",
            seconds(estimate["seconds"]),
            "",
            f"{estimate['memory'] / 2**30:.2f} GiB",
            estimate["rank"],
        ],
        [
            "measured",
            seconds(result["cpu"]),
            seconds(result["wall"]),
            f"{result['peak'] / 2**30:.2f} GiB",
            result["rank"],
        ],
    ]
    return f"""\
{settings.samples} images of two digits, tanh, depth {settings.depth}, gamma0 = 1, {settings.steps} full-batch steps at
lr = {settings.lr:g} (half the sum of squares; loss {start:.3g} to {end:.3g}), {settings.replicas} replicas of
{settings.neurons} neurons by strides ({result["passes"]} passes at most), every {settings.every}th state recorded,
{settings.threads} threads. Standard error
{percent(worst(result["stderr"]))} in the worst kernel. The measured memory is the peak of the whole process, PyTorch included.

{table(["", "CPU time", "wall clock", "memory", "rank"], rows)}"""


if __name__ == "__main__":
    print(json.dumps(_solve(Settings(**json.loads(sys.argv[1])))))
