"""What recording costs, relative to a training step."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import torch_dmft as dmft
from benchmarks.clock import Say, timed
from benchmarks.markdown import table


@dataclass(frozen=True)
class Settings:
    """Training with and without a recorder takes turns, so that both see the same machine."""

    width: int = 512
    channels: int = 32
    batch: int = 128
    probes: tuple[int, ...] = (16, 64)
    steps: int = 100
    rounds: int = 3


FULL = Settings()
QUICK = Settings(16, 4, 8, (4,), 2, 3)


def run(settings: Settings, say: Say) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for name, build in (("mlp", _mlp), ("cnn", _cnn)):
        answer[name] = []
        for samples in settings.probes:
            point = _measure(settings, build, samples)
            answer[name].append(point)
            say(f"{name}, {samples} rows in the probe: a record costs {point['overhead']:.2f} training steps")
    return answer


def _measure(settings: Settings, build: Callable[[Settings], nn.Module], samples: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(settings.batch, 1, 16, 16, generator=generator)
    targets = torch.sign(torch.randn(settings.batch, 1, generator=generator))
    plan = dmft.parameterize(build(settings), inputs, generator=generator)
    optimizer = torch.optim.SGD(plan.param_groups(1e-3))

    def train() -> None:
        for _ in range(settings.steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(plan.model(inputs), targets).backward()
            optimizer.step()

    def train_recorded() -> None:
        recorder = dmft.Recorder(plan, _probe(inputs, targets, samples))
        with recorder.attach(optimizer):
            train()

    train_recorded()  # the first call pays for imports
    plain, recorded = [], []
    for _ in range(settings.rounds):
        plain.append(timed(train)[1].cpu / settings.steps)
        recorded.append(timed(train_recorded)[1].cpu)
    step = statistics.median(plain)
    # Attached for n steps, a recorder keeps n + 1 records.
    record = statistics.median(
        (with_records - settings.steps * without) / (settings.steps + 1)
        for with_records, without in zip(recorded, plain, strict=True)
    )
    return {"probe": samples, "step": step, "record": record, "overhead": record / step}


def _probe(inputs: Tensor, targets: Tensor, samples: int) -> dmft.Probe:
    return dmft.Probe(inputs[:samples], targets[:samples])


def _mlp(settings: Settings) -> nn.Module:
    width = settings.width
    hidden = [module for _ in range(2) for module in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(nn.Flatten(), nn.Linear(256, width), nn.Tanh(), *hidden, nn.Linear(width, 1))


def _cnn(settings: Settings) -> nn.Module:
    channels = settings.channels
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 1),
    )


def report(settings: Settings, result: dict[str, Any]) -> str:
    rows = [
        [
            {"mlp": f"MLP, 3 x {settings.width}", "cnn": f"CNN, 3 x {settings.channels} channels, 16 x 16"}[name],
            point["probe"],
            f"{1e3 * point['step']:.1f} ms",
            f"{1e3 * point['record']:.1f} ms",
            f"{point['overhead']:.2f}",
            f"{10 * point['overhead']:.0f}%",
        ]
        for name, points in result.items()
        for point in points
    ]
    return f"""\
CPU time of one record (outputs, loss, all forward and backward kernels, NTK by layer) beside one SGD step on a batch of
{settings.batch}, one thread, median of {settings.rounds} rounds in which training with and without a recorder take turns, in
runs of {settings.steps} steps. What a run costs once is in it: the first record's checks of itself, and some fifteen checks of
the training, each a pass over the batch.

{table(["model", "rows in the probe", "step", "record", "steps per record", "overhead, every 10th step"], rows)}"""
