"""Cross entropy over ten classes, of which gradients need the full block of every pair of outputs."""

from __future__ import annotations

import torch

from tests.reference.ensembles import observables, z_scores
from tests.theory.solvers.limit import limit
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solve import solve
from torch_dmft.theory.solvers import InfiniteWidth

STEPS = 6


def test_ten_classes_against_networks() -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(4, 6, generator=generator)
    problem = Problem.mlp(inputs, torch.tensor([0, 3, 7, 9]), depth=2, gamma0=1.0, lr=1.0, steps=STEPS)
    assert problem.outputs == 10
    networks = limit(problem, [STEPS], {48: 600, 96: 400, 192: 200})
    run = solve(problem, InfiniteWidth(neurons=2048, replicas=4), record=[0, STEPS])
    assert float(run.losses[1] / run.losses[0]) < 0.8
    # Between different outputs too: training couples them, and the theory knows.
    first, last = (run.layers[1].backward.array[time][0, 0, 0, 3] for time in (0, 1))
    assert abs(float(last - first)) > 0.01
    end = run.at_steps(torch.tensor([STEPS]))
    for name, scores in z_scores(networks, observables(end), observables(end.stderr)).items():
        assert float(scores.abs().max()) <= 5, name
