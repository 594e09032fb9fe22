"""A user's run of a chain, with something done otherwise, and how far a prediction may be from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

import torch_dmft as dmft

GENERATOR = torch.Generator().manual_seed(11)
INPUTS = torch.randn(8, 10, generator=GENERATOR)
TARGETS = torch.sign(torch.randn(8, 1, generator=GENERATOR))
STEPS = 20


def chain(width: int = 256, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(10, width, bias), nn.Tanh(), nn.Linear(width, width, bias), nn.Tanh(), nn.Linear(width, 1, bias)
    )


def run(
    model: nn.Module,
    *,
    prepare: Callable[[nn.Module], Any] = lambda _: None,
    before: Callable[[nn.Module], Any] = lambda _: None,
    groups: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda groups: groups,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss,
    recorder_loss: Any = None,
    targets: Tensor = TARGETS,
    init: str = "normal",
    seed: int = 0,
    lr: float = 0.2,
    **numbers: float,
) -> dmft.Recorder:
    """A user's run, with something done before and after the model is wrapped."""
    before(model)
    plan = dmft.parameterize(model, INPUTS, init=init, generator=torch.Generator().manual_seed(seed))
    prepare(model)
    optimizer = SGD(groups(plan.param_groups(lr)), **numbers)
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, targets), every=5, loss=recorder_loss)
    with recorder.attach(optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss(model(INPUTS), targets).backward()
            optimizer.step()
    return recorder


def far(measured: dmft.Trajectory, predicted: dmft.Trajectory, width: int) -> float:
    """The largest relative error of a kernel in units of what one network of this width has at most, 7 / sqrt(N)."""
    worst = max(
        float((a.equal_time - b.equal_time).norm() / b.equal_time.norm())
        for mine, theirs in zip(measured.layers, predicted.layers, strict=True)
        for a, b in ((mine.forward, theirs.forward), (mine.backward, theirs.backward), (mine.ntk, theirs.ntk))
        if float(b.equal_time.norm()) > 1e-6
    )
    return worst * width**0.5 / 7


def steps_taken(
    model: nn.Module, optimizer: torch.optim.Optimizer, count: int, before: Callable[[int], Any] = lambda _: None
) -> None:
    for step in range(count):
        before(step)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
        optimizer.step()
