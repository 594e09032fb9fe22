"""The logs of one real, tiny training beside its predictions, for every test of the tab."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torch_dmft as dmft
from torch_dmft.comparison import Comparison
from torch_dmft.report import LiveComparison
from torch_dmft.tab.about import About
from torch_dmft.tab.log import RecordLog

STEPS = 6


@dataclass(frozen=True)
class Trained:
    """A comparison of a real network, and a folder with its logs."""

    comparison: Comparison
    logdir: Path
    live: Path
    network: str


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    inputs = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 1])
    probe = dmft.Probe(inputs, targets, train=torch.arange(7) < 6)
    model = nn.Sequential(nn.Linear(4, 16, bias=False), nn.Tanh(), nn.Linear(16, 16, bias=False), nn.Tanh())
    model.append(nn.Linear(16, 3, bias=False))
    plan = dmft.parameterize(model, inputs, generator=torch.Generator().manual_seed(1))
    problem = dmft.Problem.like(plan, probe, lr=0.1, steps=STEPS)
    theory = dmft.solve(problem, dmft.solvers.InfiniteWidth(128, 2, generator=torch.Generator().manual_seed(2)))
    static = dmft.solve(problem, dmft.solvers.StaticNTK())
    recorder = dmft.Recorder(plan, probe, two_time=True)
    optimizer = torch.optim.SGD(plan.param_groups(lr=0.1))
    folder = tmp_path_factory.mktemp("tab")
    with LiveComparison(folder / "live", recorder, theory), recorder.attach(optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[:6]), targets[:6]).backward()
            optimizer.step()
    comparison = dmft.compare(recorder.trajectory(), theory, static)
    comparison.write_tensorboard(folder / "runs" / "a", plan=plan, hparams={"seed": 1})
    return Trained(comparison, folder / "runs", folder / "live", f"a/{comparison.measured.origin}")


@pytest.fixture
def make_log() -> Callable[..., About]:
    """Write a log of a few samples with numbers that are easy to tell: ``make_log(folder, steps=..., start=...)``."""

    def make(folder: Path, *, steps=range(4), start: int | None = None, samples: int = 3, **options) -> About:
        about = About("network (N=8)", "network", ("0", "2"), tuple(range(samples)), (0.0,) * samples, samples=samples)
        with RecordLog(folder, about, start=start, **options) as log:
            for step in steps:
                kernels = {name: np.full((samples, samples), step + at) for at, name in enumerate(about.kernels)}
                log.record(step, 0.1 * step, {"loss": 1.0 / (1 + step)}, kernels)
        return about

    return make
