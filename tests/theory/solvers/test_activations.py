"""Activations that other tests do not use: theory at initialisation, the engine and trained networks agree."""

from __future__ import annotations

import pytest
import torch

from tests.reference.ensembles import observables
from torch_dmft.core.activation import ACTIVATIONS
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solve import solve
from torch_dmft.theory.solvers import InfiniteWidth, StaticNTK, WideEnsemble

ELSEWHERE = {"linear", "relu", "tanh", "erf", "gelu"}
DAILY = {"elu", "hardtanh", "sin"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in DAILY else pytest.mark.long) for n in sorted(set(ACTIVATIONS) - ELSEWHERE)],
)
def test_three_ways_agree(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(4, 5, generator=generator)
    targets = torch.tensor([[2.0], [-1.0], [1.0]])
    problem = Problem.mlp(inputs[:3], targets, depth=2, activation=name, lr=0.2, steps=4, test_inputs=inputs[3:])
    engine = solve(problem, InfiniteWidth(neurons=2048, replicas=4))
    networks = solve(problem, WideEnsemble(widths=(64, 128, 256), pairs=16))
    static = observables(solve(problem, StaticNTK()))
    found, error = observables(engine), observables(engine.stderr)
    others, other_error = observables(networks), observables(networks.stderr)
    del found["losses"]
    for key, value in found.items():
        assert float(((value - static[key])[0].abs() / (error[key][0] + 1e-5)).max()) <= 5, key
        joint = (error[key].square() + other_error[key].square()).sqrt() + 1e-5
        assert float(((value - others[key]).abs() / joint).max()) <= 5, key
    moved = (found["ntk"][-1] - found["ntk"][0]).norm()
    assert float(moved / error["ntk"][-1].norm()) > 5, "the comparison has no power"
