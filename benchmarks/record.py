"""What one record costs, relative to one pass forward and backward over the probe, and beside other ways to its kernels."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import torch_dmft as dmft
from benchmarks.clock import Say, timed
from benchmarks.markdown import table


@dataclass(frozen=True)
class Settings:
    """Passes, records and other ways take turns, so that all see the same machine."""

    width: int = 1024
    channels: int = 64
    features: int = 256
    pixels: int = 32
    samples: int = 32
    rounds: int = 7
    models: tuple[str, ...] = ("mlp", "cnn", "vit", "resnet18")


FULL = Settings()
QUICK = Settings(8, 4, 8, 8, 4, 2, ("mlp", "cnn", "vit"))


def run(settings: Settings, say: Say) -> dict[str, Any]:
    answer = {}
    for name in settings.models:
        answer[name] = found = _measure(settings, _MODELS[name](settings), name)
        passes = {way: f"{seconds / found['pass']:.2f}" for way, seconds in found.items()}
        say(f"{name}: a record costs {passes['record']} passes, jacrev {passes['jacrev']}")
    return answer


def _measure(settings: Settings, model: nn.Module, name: str) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(settings.samples, 3, settings.pixels, settings.pixels, generator=generator)
    recorder = dmft.Recorder(model.eval(), dmft.Probe(inputs, torch.zeros(settings.samples, 1)), fields=False)
    recorder.record()  # the first one finds out where samples are, and checks itself

    def one_pass() -> None:
        model(inputs).sum().backward()
        model.zero_grad()

    jacrev_ = partial(_jacrev, model, inputs)
    ways: dict[str, Callable[[], object]] = {"pass": one_pass, "record": recorder.look, "jacrev": jacrev_}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(settings.rounds):
        for way, call in ways.items():
            spent[way].append(timed(call)[1].cpu)
    return {way: statistics.median(times) for way, times in spent.items()}


def _jacrev(model: nn.Module, inputs: Tensor) -> Tensor:
    """The NTK by the Jacobian of every sample, as ``torch.func`` has it."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def alone(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, values, (x[None],))[0]

    rows = vmap(jacrev(alone), (None, 0))(parameters, inputs)
    return torch.stack([row.flatten(1) @ row.flatten(1).T for row in rows.values()]).sum(0)


def _mlp(settings: Settings) -> nn.Module:
    width = settings.width
    hidden = [module for _ in range(2) for module in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * settings.pixels**2, width), nn.Tanh(), *hidden, nn.Linear(width, 1)
    )


def _cnn(settings: Settings) -> nn.Module:
    sizes = (3, *3 * (settings.channels,))
    convs = [module for i, o in pairwise(sizes) for module in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(settings.channels, 1))


class _ViT(nn.Module):
    """Patches of 4 x 4 pixels, four blocks, a mean over tokens."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        size = settings.features
        self.patches = nn.Conv2d(3, size, 4, 4)
        self.places = nn.Parameter(torch.randn((settings.pixels // 4) ** 2, size) / size**0.5)
        block = nn.TransformerEncoderLayer(size, 4, 4 * size, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
        self.head = nn.Linear(size, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(images).flatten(2).mT + self.places).mean(1))


def _resnet(settings: Settings) -> nn.Module:
    from tests.vision import torchvision

    return torchvision.models.resnet18(num_classes=1)


_MODELS: dict[str, Callable[[Settings], nn.Module]] = {"mlp": _mlp, "cnn": _cnn, "vit": _ViT, "resnet18": _resnet}


def report(settings: Settings, result: dict[str, Any]) -> str:
    names = {
        "mlp": f"MLP, 3 x {settings.width}",
        "cnn": f"CNN, 3 x {settings.channels} channels",
        "vit": f"ViT, 4 blocks of {settings.features}",
        "resnet18": "resnet18",
    }
    rows = [
        [
            names[name],
            f"{1e3 * found['pass']:.0f} ms",
            f"{1e3 * found['record']:.0f} ms",
            f"{found['record'] / found['pass']:.2f}",
            f"{found['jacrev'] / found['record']:.1f}",
        ]
        for name, found in result.items()
    ]
    return f"""\
CPU time of one record (outputs, all forward and backward kernels, NTK by layer; no fields) beside one pass forward and backward
over the probe: {settings.samples} images of {settings.pixels} x {settings.pixels}, one output, evaluation mode, one thread,
median of {settings.rounds} rounds in which all take turns. The NTK alone by `torch.func`, `vmap` of `jacrev` and one product
for every parameter, takes the last column's multiple of the whole record.

{table(["model", "pass", "record", "passes per record", "NTK by jacrev / record"], rows)}"""
