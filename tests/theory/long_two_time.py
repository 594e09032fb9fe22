"""Every pair of 5000 steps, in a process of its own: ``python -m tests.theory.long_two_time network`` prints what it took.

At some steps kernels are recorded exactly beside, and all pairs of these are compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn
from torch.optim import SGD

from benchmarks.costs import peak
from tests.measurement.test_two_time import errors, kernels
from torch_dmft import Probe, Problem, Recorder, parameterize, solve, solvers
from torch_dmft.core.trajectory import Trajectory

P, DEPTH, WIDTH, STEPS, TOLERANCE = 10, 3, 512, 5000, 0.01
CHECKED = [0, 1, 3, 10, 30, 100, 250, 500, 1000, 1999, 3000, 4500, 4999, 5000]


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(P, 20, generator=generator), torch.randn(P, 1, generator=generator)
    return inputs, targets, generator


def network() -> tuple[Trajectory, Trajectory]:
    """Minibatches of two rows, which move features in more directions than full batches do."""
    inputs, targets, generator = data()
    sizes = [20, *[WIDTH] * DEPTH, 1]
    linear = [nn.Linear(*pair) for pair in pairwise(sizes)]
    model = nn.Sequential(*(part for layer in linear[:-1] for part in (layer, nn.Tanh())), linear[-1])
    plan = parameterize(model, inputs, gamma0=2.0, generator=generator)
    optimizer, probe = SGD(plan.param_groups(0.05)), Probe(inputs, targets)
    few = Recorder(plan, probe, two_time=TOLERANCE)
    exact = Recorder(plan, probe, two_time=True, schedule=CHECKED)
    with few.attach(optimizer):
        exact.record()
        for step in range(STEPS):
            rows = torch.randperm(P, generator=generator)[:2]
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()
            few.batch(rows)
            optimizer.step()
            exact.step = step + 1
            if exact.schedule(exact.step):
                exact.record()
    return exact.trajectory(), few.trajectory()


def theory() -> tuple[Trajectory, Trajectory]:
    inputs, targets, _ = data()
    problem = Problem.mlp(
        inputs, targets, depth=DEPTH, activation="tanh", gamma0=2.0, loss=nn.MSELoss(), lr=0.05, steps=STEPS
    )
    solver = solvers.InfiniteWidth(neurons=512, replicas=2)
    return solve(problem, solver, record=CHECKED, two_time=True), solve(problem, solver, two_time=TOLERANCE)


RUNS: dict[str, Callable[[], tuple[Trajectory, Trajectory]]] = {"network": network, "theory": theory}


def found(name: str) -> dict[str, float]:
    """The peak memory of the process, the largest error of any pair in units of the tolerance, and how far kernels move."""
    torch.set_num_threads(1)
    exact, few = RUNS[name]()
    assert len(few.steps) == STEPS + 1
    used = peak()
    some = few.at_steps(torch.tensor(CHECKED))
    worst, moved = 0.0, 0.0
    for known, other in zip(kernels(exact), kernels(some), strict=True):
        error, size = errors(known, other.values)
        worst = max(worst, float((error / size).max()) / TOLERANCE)
        moved = max(moved, float((known.equal_time[-1] - known.equal_time[0]).norm() / known.equal_time[0].norm()))
    numbers = max(kernel.array[0].numel() * len(kernel.array) ** 2 * 4 for kernel in kernels(few))
    return {"peak": used, "worst": worst, "moved": moved, "one array of all pairs": numbers}


if __name__ == "__main__":
    print(json.dumps(found(sys.argv[1])))
