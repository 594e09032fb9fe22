"""Two checkouts side by side: CPU time and errors of the default prediction."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import torch_dmft as dmft
from benchmarks.clock import Say
from benchmarks.environment import ROOT
from benchmarks.markdown import percent, table
from benchmarks.setting import INPUT_DIM, Kernels, chain_problem, engine, kernels_of, root_mean, squared_errors

_CHILD = """
import json, sys, time
import torch
import torch_dmft as dmft
given = json.loads(sys.argv[1])
torch.set_num_threads(1)  # threads that wait for each other take CPU time, too
random = torch.Generator().manual_seed(0)
inputs = torch.randn(given["samples"], given["dim"], generator=random)
targets = torch.sign(torch.randn(given["samples"], 1, generator=random))
half_square = lambda outputs, targets: 0.5 * (outputs - targets).square().sum()
options = {"depth": 3, "activation": "tanh", "loss": half_square, "lr": 0.1, "steps": given["steps"]}
problem = dmft.Problem.mlp(inputs, targets, **options)
for line in sys.stdin:
    seed, path = json.loads(line)
    random = torch.Generator().manual_seed(seed)
    solver = dmft.solvers.InfiniteWidth(given["neurons"], given["replicas"], generator=random, strides=True)
    started = time.process_time()
    answer = dmft.solve(problem, solver)
    spent = time.process_time() - started
    kernels = {f"Phi{l}": layer.forward.equal_time for l, layer in enumerate(answer.layers) if l}
    kernels |= {f"G{l + 1}": layer.backward.equal_time for l, layer in enumerate(answer.layers[:-1])}
    torch.save({"f": answer.outputs, **kernels, "NTK": answer.ntk.equal_time}, path)
    print(json.dumps([spent, time.process_time(), dmft.__file__]), flush=True)
"""
"""Solves for one seed after another. It asks only for what earlier versions have, too."""


@dataclass(frozen=True)
class Settings:
    """The default prediction of ``chain_problem``, by this checkout and by another one in turn, each in a process of its own.

    Attributes:
        other: folder of the other checkout; this one, if it is empty.
    """

    other: str = ""
    samples: int = 10
    steps: int = 60
    neurons: int = 8192
    replicas: int = 4
    seeds: int = 12
    reference_neurons: int = 32768
    reference_replicas: int = 16
    reference_tolerance: float = 1e-3


FULL = Settings()
QUICK = Settings("", 4, 4, 128, 2, 2, 256, 2, 1e-2)


def run(settings: Settings, say: Say) -> dict[str, Any]:
    folders = {"this": ROOT, "other": Path(settings.other or ROOT).resolve()}
    say(f"the reference: {settings.reference_replicas} replicas of {settings.reference_neurons} neurons")
    problem = chain_problem(samples=settings.samples, steps=settings.steps)
    sizes: dict[str, Any] = {"replicas": settings.reference_replicas, "tolerance": settings.reference_tolerance}
    reference = _quantities(engine(problem, settings.reference_neurons, 1_000_000, **sizes))
    spent: dict[str, list[float]] = {name: [] for name in folders}
    squares: dict[str, list[dict[str, float]]] = {name: [] for name in folders}
    first = {}
    with (
        TemporaryDirectory() as temporary,
        _child(folders["this"], settings) as one,
        _child(folders["other"], settings) as two,
    ):
        for seed in range(settings.seeds + 1):
            for name, child in (("this", one), ("other", two)):
                path = Path(temporary) / f"{name}{seed}.pt"
                cpu, total, file = _asked(child, seed, path)
                if not seed:  # pays for imports
                    if not Path(file).is_relative_to(folders[name]):
                        raise SystemExit(f"versions: {folders[name]} holds no torch_dmft; {file} was imported instead.")
                    first[name] = total
                    continue
                spent[name].append(cpu)
                found = {quantity: values.double() for quantity, values in torch.load(path).items()}
                squares[name].append(squared_errors(found, reference))
            if seed:
                say(f"seed {seed}: {spent['this'][-1]:.2f} s of CPU, the other {spent['other'][-1]:.2f} s")
    errors = {name: root_mean(squares[name]) for name in folders}
    return {
        "cpu": {name: statistics.median(spent[name]) for name in folders},
        "first": first,
        "ratio": statistics.median(a / b for a, b in zip(spent["this"], spent["other"], strict=True)),
        "first_ratio": first["this"] / first["other"],
        "errors": errors,
        "error_ratios": {name: error / max(errors["other"][name], 1e-12) for name, error in errors["this"].items()},
    }


@contextmanager
def _child(folder: Path, settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """A process that imports a checkout and solves when asked."""
    given = {name: getattr(settings, name) for name in ("samples", "steps", "neurons", "replicas")} | {"dim": INPUT_DIM}
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{_CHILD}", json.dumps(given)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    try:
        yield child
    finally:
        child.communicate()  # the end of its input ends it


def _asked(child: subprocess.Popen[str], seed: int, path: Path) -> tuple[float, float, str]:
    """CPU time of the answer for a seed, which is left at ``path``, and of the child so far; what it imported."""
    assert child.stdin is not None  # it is a pipe
    assert child.stdout is not None
    print(json.dumps([seed, str(path)]), file=child.stdin, flush=True)
    line = child.stdout.readline()
    if not line:
        raise SystemExit("versions: the checkout could not solve; its error stands above.")
    spent, total, file = json.loads(line)
    return spent, total, file


def _quantities(answer: dmft.Trajectory) -> Kernels:
    return {"f": answer.outputs.double(), **kernels_of(answer), "NTK": answer.known_ntk.equal_time.double()}


def report(settings: Settings, result: dict[str, Any]) -> str:
    rows = [
        [name, percent(error), percent(result["errors"]["other"][name]), f"{result['error_ratios'][name]:.2f}"]
        for name, error in result["errors"]["this"].items()
    ]
    cpu, first = result["cpu"], result["first"]
    times = [
        ["a prediction", f"{cpu['this']:.2f} s", f"{cpu['other']:.2f} s", f"{result['ratio']:.2f}"],
        [
            "a process to its first one",
            f"{first['this']:.2f} s",
            f"{first['other']:.2f} s",
            f"{result['first_ratio']:.2f}",
        ],
    ]
    other = settings.other or "the same checkout"
    return f"""\
`InfiniteWidth({settings.neurons}, {settings.replicas}, strides=True)`, what `solve` takes for tanh, depth 3,
P = {settings.samples}, T = {settings.steps}: this checkout beside another ({other}), in turn, each in a process of its own;
median of {settings.seeds} seeds. Errors are root mean squares over the seeds and all states, against
{settings.reference_replicas} replicas of {settings.reference_neurons} neurons by single steps at a tolerance of
{settings.reference_tolerance:g}.

{table(["CPU time of", "this", "other", "ratio"], times)}

{table(["relative error of", "this", "other", "ratio"], rows)}"""
