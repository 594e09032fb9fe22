"""Every pair of 5000 steps, in a process of its own: ``python -m tests.theory.long_two_time network`` prints what it took.

At some steps kernels are recorded exactly beside, and all pairs of these are compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.costs import peak
from tests.measurement.test_two_time import errors, kernels
from torch_dmft import Probe, Problem, Recorder, parameterize, solve, solvers
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement.compression import CompressedMemory
from torch_dmft.measurement.normal_form import Stream

P, DEPTH, WIDTH, STEPS, TOLERANCE = 10, 3, 512, 5000, 0.01
REPLICAS = 2
CHECKED = [0, 1, 3, 10, 30, 100, 250, 500, 1000, 1999, 3000, 4500, 4999, 5000]


def data() -> tuple[Tensor, Tensor, torch.Generator]:
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
    """Of the same twins' vectors, as twins that are recorded at other steps are rounded otherwise."""
    inputs, targets, _ = data()
    problem = Problem.mlp(
        inputs, targets, depth=DEPTH, activation="tanh", gamma0=2.0, loss=nn.MSELoss(), lr=0.05, steps=STEPS
    )
    kept: dict[CompressedMemory, list[tuple[Tensor, Tensor]]] = {}  # of every weight of every replica
    add = CompressedMemory.add

    def keeping(memory: CompressedMemory, stream: Stream) -> None:
        if len(memory._forward._rows) in CHECKED:
            kept.setdefault(memory, []).append(memory._vectors(stream))
        add(memory, stream)

    CompressedMemory.add = keeping  # type: ignore[method-assign]
    few = solve(problem, solvers.InfiniteWidth(neurons=512, replicas=REPLICAS), two_time=TOLERANCE)
    some, layers, memories = few.at_steps(torch.tensor(CHECKED)), [], list(kept.values())
    for at, layer in enumerate(some.layers):
        pairs = []
        for which in (0, 1):
            vectors = [torch.stack([one[which] for one in each]).double() for each in memories[at :: len(some.layers)]]
            flat = torch.cat([x.flatten(0, 1) for x in vectors], 1) / REPLICAS**0.5
            pairs.append(Kernel((flat @ flat.T).reshape(*vectors[0].shape[:2], *vectors[0].shape[:2])))
        layers.append(replace(layer, forward=pairs[0], backward=pairs[1]))
    return replace(some, layers=tuple(layers)), few


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
