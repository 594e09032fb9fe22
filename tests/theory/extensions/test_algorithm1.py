"""Algorithm 1, where every extension of the chain is an equation of its own, against networks that know no equations."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.reference.ensembles import Limit, observables, z_scores
from tests.theory.solvers.limit import limit
from torch_dmft import Problem, Trajectory, solve
from torch_dmft.theory.chains import order_parameters
from torch_dmft.theory.solvers import AlternatingMonteCarlo

STEPS = 5
BATCHES = [torch.tensor([t % 2]) for t in range(STEPS)]
THREE = torch.tensor([[2.0, -1.0, 0.5], [-1.0, 1.0, 1.0]], dtype=torch.float64)
VARIANTS: dict[str, dict[str, Any]] = {
    "biases": {"bias_std": 0.7},
    "gain": {"gain": 1.5},
    "three outputs": {"targets": THREE},
    "classes": {"targets": torch.tensor([0, 2]), "loss": nn.CrossEntropyLoss(reduction="sum"), "lr": 0.4},
    "minibatches": {"batches": BATCHES, "lr": 0.3},
    "momentum": {"momentum": 0.7, "lr": 0.1},
    "decay": {"weight_decay": 0.6},
    "momentum and decay": {"momentum": 0.7, "weight_decay": 0.8, "lr": 0.1},
    "decay outside": {"momentum": 0.7, "weight_decay": 0.8, "lr": 0.1, "decoupled": True},
    "Nesterov and a schedule": {"momentum": 0.7, "lr": [0.1, 0.05, 0.1, 0.0, *[0.1] * 20], "nesterov": True},
    "unequal widths": {"width_ratios": [4.0, 1.0]},
}
PLAIN = {"gain", "bias_std", "batches", "momentum", "weight_decay", "width_ratios", "decoupled", "nesterov"}
"""Settings that a plain chain does without."""

SHORT = {"three outputs", "momentum and decay", "unequal widths"}
"""What runs every day."""


def marked(names: Iterable[str]) -> list[object]:
    return [pytest.param(name, marks=() if name in SHORT else pytest.mark.long) for name in names]


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


def pose(**settings: Any) -> Problem:
    """Tanh networks in which features move, on two training rows and a test row."""
    inputs = 1.5 * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    defaults = {"targets": torch.tensor([2.0, -1.0], dtype=torch.float64), "loss": half_square, "lr": 0.2}
    options = defaults | settings
    return Problem.mlp(inputs[:2], options.pop("targets"), depth=2, steps=STEPS, test_inputs=inputs[2:], **options)


@cache
def networks(variant: str) -> Limit:
    return limit(pose(**VARIANTS[variant]), [STEPS], {48: 1000, 96: 1000})


def answer(**settings: Any) -> Trajectory:
    solver = AlternatingMonteCarlo(neurons=500, generator=torch.Generator().manual_seed(1))
    return solve(pose(**settings), solver, record=[STEPS])


def worst(run: Trajectory, variant: str) -> dict[str, float]:
    scores = z_scores(networks(variant), observables(run), observables(run.stderr))
    return {name: float(score.abs().max()) for name, score in scores.items()}


@pytest.mark.parametrize("variant", marked(VARIANTS))
def test_is_the_limit_of_networks(variant: str) -> None:
    scores = worst(answer(**VARIANTS[variant]), variant)
    assert max(scores.values()) <= 5, scores


@pytest.mark.parametrize("variant", marked(name for name in VARIANTS if set(VARIANTS[name]) & PLAIN))
def test_networks_tell_the_extension_from_its_absence(variant: str) -> None:
    without = {name: value for name, value in VARIANTS[variant].items() if name not in PLAIN}
    scores = worst(answer(**without), variant)
    assert max(scores.values()) > 10, scores


def test_momentum_and_decay_are_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """(1 - eta lambda)^(t-1-s) (1 - beta^(t-s)) / (1 - beta) forgets that late parts of an update decay for less long."""

    def product(problem: Problem, times: int) -> Tensor:
        age = torch.arange(times, dtype=torch.float64)
        age = age[:, None] - age
        keep = (1 - problem.lr * problem.weight_decay) ** (age - 1)
        return problem.lr * (keep * (1 - problem.momentum**age) / (1 - problem.momentum)).where(age > 0, 0.0)

    monkeypatch.setattr(order_parameters, "_update_weights", product)
    scores = worst(answer(**VARIANTS["decay outside"]), "decay outside")
    assert scores["outputs"] > 5, scores
