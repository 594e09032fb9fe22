"""A user's run that is recorded, with places to do something else than the optimizer's steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

import torch_dmft as dmft
from torch_dmft import solvers
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError

SOURCE = torch.Generator().manual_seed(3)
INPUTS = torch.randn(16, 6, generator=SOURCE)
TARGETS = torch.randn(16, 1, generator=SOURCE)


def chain(width: int = 48, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, width, bias), nn.Tanh(), nn.Linear(width, width, bias), nn.Tanh(), nn.Linear(width, 1, bias)
    )


class Run:
    """A user's run of ``chain``, with places to do something else."""

    def __init__(self, *, before_attach: Callable[[dmft.Plan], Any] = lambda _: None, **settings: Any) -> None:
        torch.manual_seed(0)  # biases
        self.model: Any = chain()
        self.plan = dmft.parameterize(self.model, INPUTS, generator=torch.Generator().manual_seed(0))
        before_attach(self.plan)
        self.optimizer: Optimizer = SGD(self.plan.param_groups(0.1), momentum=0.5)
        self.recorder = dmft.Recorder(self.plan, dmft.Probe(INPUTS, TARGETS), every=4, **settings)

    def backward(self, rows: Any = slice(None), factor: float = 1.0) -> None:
        (factor * nn.functional.mse_loss(self.model(INPUTS[rows]), TARGETS[rows])).backward()

    def steps(self, count: int, before: Callable[[int], Any] = lambda _: None) -> None:
        for step in range(count):
            self.optimizer.zero_grad()
            self.backward()
            before(step)
            self.optimizer.step()

    def train(self, count: int = 12, before: Callable[[int], Any] = lambda _: None) -> None:
        with self.recorder.attach(self.optimizer):
            self.steps(count, before)


def refused(run: Run, told: str) -> None:
    """The run is told from its theory, and from networks trained as it is said to be."""
    with pytest.raises((UnsupportedProblemError, InvalidInputError), match=told):
        run.recorder.problem()
    plain = Run()
    plain.train(run.recorder.step)
    theory = dmft.solve(plain.recorder.problem(), solvers.FiniteWidth(16, 4), record=run.recorder.trajectory().steps)
    dmft.compare(plain.recorder.trajectory(), theory)
    with pytest.raises(InvalidInputError, match=told):
        dmft.compare(run.recorder.trajectory(), theory)


@torch.no_grad()
def scale(weight: Tensor, factor: float = 1.01) -> None:
    weight.mul_(factor)


def with_loader(run: Run, dataset: Callable[[], Any], epochs: int = 2) -> None:
    with run.recorder.attach(run.optimizer):
        for _ in range(epochs):
            for x, y in run.recorder.batches(DataLoader(dataset(), batch_size=4, shuffle=True)):
                run.optimizer.zero_grad()
                nn.functional.mse_loss(run.model(x), y).backward()
                run.optimizer.step()
