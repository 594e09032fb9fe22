"""What one record costs, relative to one pass forward and backward over the probe, and beside other ways to its kernels."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import torch_dmft as dmft
from benchmarks.clock import Say, timed
from benchmarks.markdown import table
from benchmarks.memory import peak_bytes
from benchmarks.peers import ntk_by_peers


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
        answer[name] = found = _measure(settings, _MODELS[name](settings))
        passes = {way: f"{seconds / found['cpu']['pass']:.2f}" for way, seconds in found["cpu"].items()}
        memory = {way: f"{peak / found['peak']['pass']:.2f}" for way, peak in found["peak"].items()}
        say(f"{name}: in passes, CPU time {passes}, peak memory {memory}")
    return answer


def _measure(settings: Settings, model: nn.Module) -> dict[str, dict[str, float]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(settings.samples, 3, settings.pixels, settings.pixels, generator=generator)
    probe = dmft.Probe(inputs, torch.zeros(settings.samples, 1))
    recorder = dmft.Recorder(model.eval(), probe, fields=False)

    def one_pass() -> None:
        model(inputs).sum().backward()
        model.zero_grad()

    first = peak_bytes(recorder.record)  # finds out where samples are, and checks itself
    one_pass()
    ways: dict[str, Callable[[], Any]] = {"pass": one_pass, "record": recorder.look}
    peak = {"first record": first, **{way: peak_bytes(call) for way, call in ways.items()}}
    ntk = dmft.empirical_ntk(model, inputs, batch_norm="run")
    for way, call in ntk_by_peers(model, inputs).items():
        try:
            found = call()
        except Exception as error:  # nngeometry knows some kinds of layers
            if way == "jacrev":
                raise
            del error
            continue
        torch.testing.assert_close(found, ntk, rtol=1e-3, atol=1e-4 * float(ntk.abs().max()))
        ways[way] = call
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(settings.rounds):
        for way, call in ways.items():
            spent[way].append(timed(call)[1].cpu)
    return {"cpu": {way: statistics.median(times) for way, times in spent.items()}, "peak": peak}


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
    from tests.vision import make_importable

    make_importable()
    import torchvision

    return torchvision.models.resnet18(num_classes=1)


_MODELS: dict[str, Callable[[Settings], nn.Module]] = {"mlp": _mlp, "cnn": _cnn, "vit": _ViT, "resnet18": _resnet}


def report(settings: Settings, result: dict[str, Any]) -> str:
    names = {
        "mlp": f"MLP, 3 x {settings.width}",
        "cnn": f"CNN, 3 x {settings.channels} channels",
        "vit": f"ViT, 4 blocks of {settings.features}",
        "resnet18": "resnet18",
    }

    def multiple(found: dict[str, Any], way: str) -> str:
        return f"{found['cpu'][way] / found['cpu']['record']:.1f}" if way in found["cpu"] else "refused"

    rows = [
        [
            names[name],
            f"{1e3 * found['cpu']['pass']:.0f} ms",
            f"{1e3 * found['cpu']['record']:.0f} ms",
            f"{found['cpu']['record'] / found['cpu']['pass']:.2f}",
            *(multiple(found, way) for way in ("nngeometry jacobian", "nngeometry gram", "jacrev")),
        ]
        for name, found in result.items()
    ]
    memory = [
        [
            names[name],
            f"{found['peak']['pass'] / 2**20:.0f} MiB",
            f"{found['peak']['record'] / 2**20:.0f} MiB",
            f"{found['peak']['record'] / found['peak']['pass']:.2f}",
            f"{found['peak']['first record'] / found['peak']['pass']:.2f}",
        ]
        for name, found in result.items()
    ]
    head = ["model", "pass", "record", "passes per record"]
    return f"""\
CPU time of one record (outputs, all forward and backward kernels, NTK by layer; no fields) beside one pass forward and backward
over the probe: {settings.samples} images of {settings.pixels} x {settings.pixels}, one output, evaluation mode, one thread,
median of {settings.rounds} rounds in which all take turns.

{table(head, [row[:4] for row in rows])}

The NTK alone by other means takes these multiples of the whole record: the Jacobian by nngeometry, layer by layer, and one
product; nngeometry's NTK without a Jacobian; and `vmap` of `torch.func.jacrev` with one product for every parameter. All give
the matrix that `empirical_ntk` does, with the running averages of BatchNorm. Where a pass is dear for the number of parameters,
as with convolutions over many pixels and with attention, the gradients of every sample by one output cost little more than a
pass, and there is nothing to be saved by avoiding them.

{table(["model", "Jacobian, nngeometry", "NTK, nngeometry", "NTK, jacrev"], [[row[0], *row[4:]] for row in rows])}

Peak memory of all that PyTorch allocates (by its profiler), beyond what there was before. Gradients of the parameters are among
what a pass needs. The first record finds out where the samples are and checks itself.

{table(["model", "pass", "record", "passes per record", "passes of the first record"], memory)}"""
