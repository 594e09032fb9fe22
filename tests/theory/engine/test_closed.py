"""Rows that a trained twin has not met: what the theory says of them as further samples, whoever asks with them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft.core.errors import UnsupportedModelError
from torch_dmft.theory.engine.closed import closed
from torch_dmft.theory.engine.fitted import Fitted, fit_twins, outputs_of
from torch_dmft.theory.engine.matrix import GaussianMatrix
from torch_dmft.theory.engine.twin import infinite_width

ROWS, STEPS = 4, 30
CASES = [("tanh", 2, 1.0, 0), ("tanh", 2, 2.0, 1), ("relu", 2, 0.3, 2)]


def problem(activation: str, depth: int, gamma0: float, seed: int, *, test: bool) -> tuple[dmft.Problem, Tensor]:
    random = torch.Generator().manual_seed(seed)
    inputs, further = torch.randn(ROWS, 12, generator=random), torch.randn(8, 12, generator=random)
    return (
        dmft.Problem.mlp(
            inputs,
            torch.sign(inputs[:, :1]),
            depth=depth,
            activation=activation,
            gamma0=gamma0,
            gain=math.sqrt(2) if activation == "relu" else 1.0,
            lr=0.2,
            steps=STEPS,
            test_inputs=further if test else None,
        ),
        further,
    )


def fitted(activation: str, depth: int, gamma0: float, seed: int) -> tuple[Fitted, Tensor]:
    posed, further = problem(activation, depth, gamma0, seed, test=False)
    return fit_twins(posed, 2048, 4, 5e-3 * min(1.0, gamma0), torch.Generator().manual_seed(seed)), further


def off(found: Tensor, reference: dmft.Trajectory) -> float:
    """Root mean square deviation of further rows from those of the theory, in standard errors of both."""
    assert reference.stderr is not None
    error = (found.var(0) / len(found) + reference.stderr.outputs[-1, ROWS:].square()).sqrt()
    return float(((found.mean(0) - reference.outputs[-1, ROWS:]) / error).square().mean().sqrt())


@pytest.mark.parametrize(("activation", "depth", "gamma0", "seed"), CASES)
def test_they_are_what_they_are_as_further_samples(activation: str, depth: int, gamma0: float, seed: int) -> None:
    twins, further = fitted(activation, depth, gamma0, seed)
    posed, _ = problem(activation, depth, gamma0, seed, test=True)
    reference = dmft.solve(posed, dmft.solvers.InfiniteWidth(2048, 4), record=[STEPS])
    assert off(twins.outputs(further), reference) < (2 if activation == "tanh" else 1.3)
    for model in twins.models:
        for module in model.modules():
            if isinstance(module, GaussianMatrix):
                module._spare = torch.zeros(1, 2048)  # as if nothing were outside of what it has met
    assert off(twins.outputs(further), reference) > (5 if activation == "tanh" else 1.5)


def test_nobody_else_changes_a_row_and_nothing_is_kept() -> None:
    twins, further = fitted("tanh", 3, 1.0, 0)
    model = twins.models[0]
    known = [layer.rank for layer in model.modules() if hasattr(layer, "rank")]
    together, again = outputs_of(model, further), outputs_of(model, further.flip(0)).flip(0)
    alone = torch.cat([outputs_of(model, row[None]) for row in further])
    torch.testing.assert_close(together, again, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert known == [layer.rank for layer in model.modules() if hasattr(layer, "rank")]
    inputs = problem("tanh", 3, 1.0, 0, test=False)[0].tensor
    with torch.no_grad():
        torch.testing.assert_close(outputs_of(model, inputs), model(inputs), rtol=0.0, atol=1e-2)
        model(further)  # which meets them
    assert known != [layer.rank for layer in model.modules() if hasattr(layer, "rank")]


def test_convolutions_are_refused() -> None:
    layers = nn.Sequential(
        nn.Conv1d(1, 4, 3),
        nn.Tanh(),
        nn.Conv1d(4, 4, 3),
        nn.Tanh(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(4, 1),
    )
    twin = infinite_width(layers, torch.randn(2, 1, 8), neurons=64)
    with pytest.raises(UnsupportedModelError, match=r"row by row"), closed(twin.model):
        pass
