"""Small synthetic trajectories for the tests of comparison and report."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from torch_dmft.core.kernel import Kernel
from torch_dmft.core.training import Training
from torch_dmft.core.trajectory import Fields, LayerKernels, Trajectory


def two_layers(
    *,
    samples: int = 6,
    steps: tuple[int, ...] = tuple(range(0, 50, 5)),
    width: int = 256,
    richness: float = 1.0,
    noise: float = 0.0,
    origin: str = "network (N=256)",
    outputs: int = 1,
    test: int = 0,
    seed: int = 0,
    stderr: float | None = None,
) -> Trajectory:
    """Three weights whose kernels grow a rank-one part along the targets, as feature learning does.

    Args:
        samples: P.
        steps: recorded steps.
        width: of the readout's inputs, and of the fields.
        richness: how far the kernels move; 0 is the lazy limit.
        noise: standard deviation of what is added to every kernel entry, relative to 1.
        origin: of the trajectory.
        outputs: C.
        test: how many of the samples are test rows.
        seed: of the noise.
        stderr: standard error of every number, if given.
    """
    fixed, generator = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 10, generator=fixed, dtype=torch.float64)
    y = torch.sign(torch.randn(samples, outputs, generator=fixed, dtype=torch.float64))
    gram, task = x @ x.T / 10, y @ y.T / outputs
    grown = 1 - torch.exp(-torch.tensor(steps, dtype=torch.float64) / 15)

    def noisy(values: Tensor) -> Tensor:
        draw = noise * torch.randn(values.shape, generator=generator, dtype=torch.float64)
        return values + (draw + draw.mT) / 2

    def forward(level: int) -> Tensor:
        base = gram if level == 0 else torch.tanh(gram) * 0.6 + 0.1 * torch.eye(samples, dtype=torch.float64)
        moved = base.expand(len(steps), -1, -1) + (level > 0) * richness * 0.4 * level * grown[:, None, None] * task
        return noisy(moved) if level else moved

    def backward(level: int) -> Tensor:
        if level == 2:
            return torch.ones(len(steps), samples, samples, dtype=torch.float64)
        return noisy(0.5 + 0.3 * gram + richness * 0.5 * grown[:, None, None] * task)

    def over_outputs(values: Tensor) -> Tensor:
        return (
            values if outputs == 1 else torch.einsum("tab,cd->tacbd", values, torch.eye(outputs, dtype=torch.float64))
        )

    ends = torch.tensor([steps[0], steps[-1]])
    layers = []
    for level, name in enumerate(("0", "2", "4")):
        phi, g = forward(level), backward(level)
        kernels = Kernel(phi), Kernel(over_outputs(g)), Kernel(over_outputs(g * phi))
        fields = _fields(ends, (samples, outputs, outputs if level == 2 else width), richness, generator)
        layers.append(LayerKernels(name, *kernels, fields=fields))
    f = grown[:, None, None] * y * (1 + noise)
    train = torch.arange(samples) < samples - test
    run = Trajectory(
        steps=torch.tensor(steps),
        outputs=f,
        losses=(f - y)[:, train].square().mean((1, 2)),
        layers=tuple(layers),
        ntk=Kernel(sum(layer.ntk.array for layer in layers)),
        origin=origin,
        training=Training.sgd(0.1, max(steps)),
        train=train,
        targets=y,
        width=width,
    )
    return run if stderr is None else replace(run, stderr=filled(run, stderr))


def filled(run: Trajectory, value: float) -> Trajectory:
    """The same layout with one number everywhere, such as a standard error."""

    def fill(kernel: Kernel) -> Kernel:
        return Kernel(torch.full_like(kernel.array, value))

    return replace(
        run,
        outputs=torch.full_like(run.outputs, value),
        losses=torch.full_like(run.losses, value),
        ntk=fill(run.ntk),
        layers=tuple(
            replace(layer, forward=fill(layer.forward), backward=fill(layer.backward), ntk=fill(layer.ntk), fields=None)
            for layer in run.layers
        ),
    )


def _fields(steps: Tensor, shape: tuple[int, int, int], richness: float, generator: torch.Generator) -> Fields:
    samples, outputs, neurons = shape
    h = torch.randn(2, samples, neurons, generator=generator, dtype=torch.float64)
    h[1] = h[1] * (1 + 0.3 * richness) + richness * torch.sign(h[1])
    g = torch.randn(2, samples, outputs, neurons, generator=generator, dtype=torch.float64)
    return Fields(steps, h, g, "tanh")
