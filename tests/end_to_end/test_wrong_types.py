"""Things of a wrong type are refused with a remedy too; in a process of their own, where annotations are not checked."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import torch
from torch import nn

import torch_dmft as dmft

inputs, targets = torch.randn(4, 3), torch.randn(4, 1)
model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
plan, probe = dmft.parameterize(model, inputs), dmft.Probe(inputs, targets)
problem = dmft.Problem.mlp(inputs, targets, steps=1)
static = dmft.solve(problem, dmft.solvers.StaticNTK())
mistakes = {
    "no example input": lambda: dmft.parameterize(model, None),
    "an array as the example input": lambda: dmft.describe(model, inputs.numpy()),
    "arrays as a probe": lambda: dmft.Probe(inputs.numpy(), targets.numpy()),
    "a list as the mask": lambda: dmft.Probe(inputs, targets, train=[True] * 4),
    "data instead of a probe": lambda: dmft.Recorder(plan, inputs),
    "a model instead of its plan": lambda: dmft.Problem.like(model, probe, lr=0.1, steps=1),
    "a solver's class": lambda: dmft.solve(problem, dmft.solvers.StaticNTK),
    "a solver's name": lambda: dmft.solve(problem, "StaticNTK"),
    "predictions in a list": lambda: dmft.compare(static, [static]),
    "a recorder instead of its trajectory": lambda: dmft.compare(dmft.Recorder(plan, probe), static),
}
for name, mistake in mistakes.items():
    try:
        mistake()
    except ValueError as error:
        print(f"{name}: {type(error).__name__}: {error}")
"""

REMEDIES = {
    "no example input": "a tensor with samples on its first axis",
    "an array as the example input": "a tensor with samples on its first axis",
    "arrays as a probe": "torch.as_tensor",
    "a list as the mask": "torch.as_tensor",
    "data instead of a probe": "Probe(inputs, targets)",
    "a model instead of its plan": "plan = parameterize(model, example_input)",
    "a solver's class": "solvers.StaticNTK()",
    "a solver's name": "solvers.StaticNTK()",
    "predictions in a list": "each an argument by itself",
    "a recorder instead of its trajectory": "recorder.trajectory()",
}


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    """What each mistake is told."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120)
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("mistake", REMEDIES)
def test_wrong_types_are_refused_with_a_remedy(told: dict[str, str], mistake: str) -> None:
    assert told[mistake].startswith("InvalidInputError")
    assert REMEDIES[mistake] in told[mistake]
