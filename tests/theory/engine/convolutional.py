"""Ensembles of finite convolutional networks in unit form, slow and obvious: the oracle of the infinite convolution.

    h1 = W0 * x / sqrt(9 C),   h2 = W1 * tanh(h1) / sqrt(9 N),   f = w . <tanh(h2)> / (gamma0 N)

with C = 3 channels of the images, 3 x 3 kernels, padding 1, stride 2 in the second layer, and an average over the remaining
positions (or, ``flat``, one w per position). Independent of the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from tests.reference.ensembles import Limit, fit
from tests.reference.pairs import descend, estimate, gram

CHANNELS = 3


def module(width: int, *, flat: bool = False) -> nn.Module:
    """The same network as an ordinary module for 4 x 4 images."""
    head = [nn.Linear(4 * width, 1, bias=False)]
    if not flat:
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1, bias=False)]
    return nn.Sequential(
        nn.Conv2d(CHANNELS, width, 3, padding=1, bias=False),
        nn.Tanh(),
        nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False),
        nn.Tanh(),
        *(([nn.Flatten()] if flat else []) + head),
    )


def train(
    images: Tensor,
    targets: Tensor,
    width: int,
    networks: int,
    *,
    lr: float,
    steps: int,
    gamma0: float,
    generator: torch.Generator,
    flat: bool = False,
) -> dict[str, Tensor]:
    """Observables of many networks before every step, with a leading network axis; the second half has the readout -w."""
    half, positions = networks // 2, 4 if flat else 1
    fan_in = 9 * CHANNELS
    draw = {"w0": (width, fan_in), "w1": (width, 9 * width), "w": (width, positions)}
    theta = {name: torch.randn(half, *shape, generator=generator, dtype=images.dtype) for name, shape in draw.items()}
    theta = {name: torch.cat([p, -p if name == "w" else p]).requires_grad_() for name, p in theta.items()}
    readout_width = width * positions
    rate = gamma0**2 * readout_width
    patches = unfold(images, 3, padding=1)
    found: dict[str, list[Tensor]] = {}
    for _ in range(steps + 1):
        h1 = torch.einsum("nof,pfl->npol", theta["w0"], patches) / math.sqrt(fan_in)
        x1 = torch.tanh(h1)
        patches1 = unfold(x1.flatten(0, 1).unflatten(-1, (4, 4)), 3, padding=1, stride=2).unflatten(0, x1.shape[:2])
        h2 = torch.einsum("nof,npfl->npol", theta["w1"], patches1) / math.sqrt(9 * width)
        x2 = torch.tanh(h2) if flat else torch.tanh(h2).mean(-1, keepdim=True)
        f = torch.einsum("nol,npol->np", theta["w"], x2) / (gamma0 * readout_width)
        losses = (f - targets).square().mean(1)
        d1, d2 = torch.autograd.grad(f.sum(), [h1, h2], retain_graph=True)
        jacobians = {
            "0": torch.einsum("npol,pfl->npof", d1, patches) / math.sqrt(fan_in),
            "1": torch.einsum("npol,npfl->npof", d2, patches1) / math.sqrt(9 * width),
            "2": x2 / (gamma0 * readout_width),
        }
        g1, g2 = gamma0 * width * 16 * d1, gamma0 * width * 4 * d2
        ones = f.new_ones(networks, len(images), len(images))
        now = {
            "outputs": f.unsqueeze(-1),
            "losses": losses,
            "forward.1": gram(x1) / (16 * width),
            "forward.2": gram(x2) / readout_width,
            "backward.0": gram(g1) / (16 * width),
            "backward.1": gram(g2) / (4 * width),
            "backward.2": ones,
            **{f"ntk.{name}": rate * gram(jacobian) for name, jacobian in jacobians.items()},
        }
        for name, values in now.items():
            found.setdefault(name, []).append(values.detach())
        descend(theta.values(), losses, lr * rate)
    return {name: torch.stack(values, dim=1) for name, values in found.items()}


def limit(images: Tensor, targets: Tensor, networks: Mapping[int, int], *, order: int, **settings: object) -> Limit:
    """Infinite width, from ensembles of several widths."""
    estimates = []
    for width, count in networks.items():
        found = train(images, targets, width, count, **settings)  # type: ignore[arg-type]
        estimates.append(estimate(width, found))
    return fit(estimates, order=order)
