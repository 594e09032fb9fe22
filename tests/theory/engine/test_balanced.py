"""Where targets balance, Adam's first step of what moves f alike on balanced rows has no limit, and is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference.ensembles import observables
from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.theory import solvers
from torch_dmft.theory.choose import choose
from torch_dmft.theory.engine.balanced import require_unbalanced
from torch_dmft.theory.solvers import infinite_width

BALANCED, OTHER = [0, 1, 2, 0, 1, 2], [0, 1, 1, 0, 1, 2]
"""Of the second only class 0 is a third of all."""
INPUTS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
SIGNS = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [1.0], [-1.0]])
NUMBERS = torch.tensor([[1.0], [-0.6], [1.3], [-0.9], [0.2], [-0.4]])
TOKENS = torch.tensor([[0, 1], [0, 2], [3, 4], [3, 5], [5, 6], [6, 6]])


def posed(model: nn.Module, inputs: Tensor, targets: Tensor, optimizer: str = "adam", **settings: Any) -> dmft.Problem:
    plan = dmft.parameterize(model, inputs, gamma0=1.5)
    return dmft.Problem.like(
        plan, dmft.Probe(inputs, targets), **{"lr": 0.1, "steps": 5, "optimizer": optimizer, **settings}
    )


def classifier(*, bias: bool, linear: bool = False) -> nn.Module:
    norm = nn.LayerNorm(16) if linear else nn.Sequential(nn.LayerNorm(16), nn.Tanh())
    return nn.Sequential(nn.Linear(6, 16), norm, nn.Linear(16, 3, bias=bias))


class Residual(nn.Module):
    """A stream from which the way to the outputs is linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.hidden = nn.Linear(5, width), nn.Linear(width, width)
        self.readout = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.readout(h + self.hidden(torch.tanh(h)))


class Bag(nn.Module):
    """The mean over tokens, each of which is read alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens, self.readout = nn.Embedding(7, width), nn.Linear(width, 1, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.readout(torch.tanh(self.tokens(ids)).mean(1))


REFUSED = {
    "readout": (classifier(bias=True), torch.eye(6), torch.tensor(BALANCED), "2.bias"),
    "one class": (classifier(bias=True), torch.eye(6), torch.tensor(OTHER), "2.bias"),
    "norm": (classifier(bias=False, linear=True), torch.eye(6), torch.tensor(BALANCED), "1.bias"),
    "stream": (Residual(16), INPUTS, SIGNS, "hidden.bias"),
    "token": (Bag(16), TOKENS, SIGNS, "tokens.weight"),
}
TAKEN = {
    "SGD": (classifier(bias=True, linear=True), torch.eye(6), torch.tensor(BALANCED), "sgd"),
    "activation behind the norm": (classifier(bias=False), torch.eye(6), torch.tensor(BALANCED), "adam"),
    "no balance": (classifier(bias=True, linear=True), torch.eye(6), torch.tensor([0, 1, 1, 1, 1, 2]), "adam"),
    "numbers": (Residual(16), INPUTS, NUMBERS, "adamw"),
    "tokens of other rows": (Bag(16), TOKENS, NUMBERS, "adam"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_a_step_by_chance_is_refused(case: str) -> None:
    model, inputs, targets, name = REFUSED[case]
    problem = posed(model, inputs, targets)
    with pytest.raises(UnsupportedProblemError, match=rf"a first gradient of zero of {name}\. Remedy: solvers.WideEns"):
        dmft.solve(problem, solvers.InfiniteWidth(128, 2))
    solver, why = choose(problem)
    assert isinstance(solver, solvers.WideEnsemble)
    assert "first step of Adam" in why


def test_rounding_of_many_rows_is_no_balance() -> None:
    inputs = torch.randn(600, 6, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(600) % 3
    with pytest.raises(UnsupportedProblemError, match=r"first gradient of zero of 2\.bias"):
        require_unbalanced(posed(classifier(bias=True), inputs, classes))
    classes[:5] = 1  # 198, 203 and 199 rows of each
    require_unbalanced(posed(classifier(bias=True), inputs, classes))


@pytest.mark.parametrize("case", list(TAKEN))
def test_other_steps_are_not(case: str) -> None:
    model, inputs, targets, optimizer = TAKEN[case]
    dmft.solve(posed(model, inputs, targets, optimizer, lr=0.01, steps=1), solvers.InfiniteWidth(128, 2))


def test_the_first_step_is_that_at_a_rate() -> None:
    """A warm-up from a rate of zero moves nothing, and batches that do not balance move all."""
    rows = torch.arange(6)
    batches = [rows[:3], rows, rows]
    problem = posed(Residual(16), INPUTS, SIGNS, steps=3, batches=batches)
    solvers.InfiniteWidth(128, 2).check(problem)
    with pytest.raises(UnsupportedProblemError, match="first gradient of zero"):
        solvers.InfiniteWidth(128, 2).check(
            posed(Residual(16), INPUTS, SIGNS, steps=3, batches=batches, lr=[0.0, 0.1, 0.1])
        )


@pytest.mark.parametrize(("targets", "has_limit"), [(NUMBERS, True), (SIGNS, False)])
def test_without_a_limit_the_engine_is_not_that_of_networks(
    targets: Tensor, has_limit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infinite_width, "require_unbalanced", lambda problem: None)
    problem = posed(Residual(16), INPUTS, targets, lr=0.3)
    networks = dmft.solve(problem, solvers.WideEnsemble((32, 64, 128), pairs=32), record=[5])
    engine = dmft.solve(problem, solvers.InfiniteWidth(1024, 8), record=[5])
    limits = [(observables(run), observables(run.stderr)) for run in (networks, engine)]
    worst = 0.0
    for name in ("outputs", "forward.1", "forward.2"):
        (wide, wide_error), (found, error) = ((values[name], errors[name]) for values, errors in limits)
        worst = max(worst, float(((found - wide) / (wide_error**2 + error**2).sqrt()).abs().max()))
    assert (worst <= 5) is has_limit, worst
