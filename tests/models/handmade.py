"""Models of kinds that no library of classifiers holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.measurement.zoo import ZOO, Entry
from tests.models.entry import Model, images, vectors

D = 12
"""The width at scale one."""


class Nerf(nn.Module):
    """Colours along rays, added up by the transparency in front of them."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first, self.skip, self.density = nn.Linear(12, d), nn.Linear(d + 12, d), nn.Linear(d, 1)
        self.colour = nn.Linear(d, 3)

    def forward(self, points: Tensor) -> Tensor:
        waves = torch.cat([points.sin(), points.cos(), (2 * points).sin(), (2 * points).cos()], -1)
        h = torch.relu(self.skip(torch.cat([torch.relu(self.first(waves)), waves], -1)))
        alpha = 1 - torch.exp(-F.softplus(self.density(h)))
        seen = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1]], 1), 1)
        return (seen * alpha * torch.sigmoid(self.colour(h))).sum(1)[:, :1]


class Messages(nn.Module):
    """Message passing on graphs of one size, with an edge list for each; messages are added up by index."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first, self.message, self.update = nn.Linear(3, d), nn.Linear(2 * d, d), nn.GRUCell(d, d)
        self.head = nn.Linear(d, 1)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        samples, count = nodes.shape[:2]
        offset = count * torch.arange(samples)[:, None, None]
        start, end = (edges + offset).transpose(0, 1).flatten(1)
        h = torch.tanh(self.first(nodes)).flatten(0, 1)
        for _ in range(2):
            sent = torch.relu(self.message(torch.cat([h[start], h[end]], -1)))
            h = self.update(torch.zeros_like(h).index_add(0, end, sent), h)
        return self.head(h.unflatten(0, (samples, count)).mean(1))


class Equilibrium(nn.Module):
    """A fixed point, found without gradients and attached by one Newton-like step (phantom gradients)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.into, self.inner, self.head = nn.Linear(3, d), nn.Linear(d, d), nn.Linear(d, 1)

    def step(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.2 * self.inner(z) + self.into(x))

    def forward(self, x: Tensor) -> Tensor:
        z = x.new_zeros(len(x), self.inner.in_features)
        with torch.no_grad():
            for _ in range(30):
                z = self.step(z, x)
        for _ in range(2):
            z = self.step(z, x)
        return self.head(z)


class Ode(nn.Module):
    """Runge-Kutta steps of one vector field."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.into, self.field, self.head = (
            nn.Linear(3, d),
            nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, d)),
            nn.Linear(d, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        h, dt = self.into(x), 0.25
        for _ in range(3):
            a = self.field(h)
            b = self.field(h + dt / 2 * a)
            h = h + dt * self.field(h + dt / 2 * b)
        return self.head(h)


class UNet(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(1, d, 3, padding=1), nn.Conv2d(d, 2 * d, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(2 * d, d, 2, stride=2), nn.Conv2d(2 * d, 1, 3, padding=1)
        self.norm = nn.InstanceNorm2d(d, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.norm(self.down(x)))
        b = torch.relu(self.deep(F.max_pool2d(a, 2)))
        return self.out(torch.cat([a, self.up(b)], 1))


class Autoencoder(nn.Module):
    """The decoder is the transpose of the encoder."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(d, 5) / 3), nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.linear(x, self.weight)), self.weight.t(), self.bias)[:, :2]


class Hyper(nn.Module):
    """A network makes the weights of another, for each sample its own."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.maker, self.head = nn.Linear(3, 3 * d), nn.Linear(d, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = self.maker(x).unflatten(1, (3, -1))
        return self.head(torch.tanh(torch.einsum("si,sio->so", x, made)))


class StateSpace(nn.Module):
    """A diagonal linear recurrence, scanned."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(2, d), nn.Linear(d, 1)
        self.rate, self.b, self.c = (nn.Parameter(torch.randn(d)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        u, state, out = self.into(x), 0.0, []
        decay = torch.exp(-F.softplus(self.rate))
        for t in range(u.shape[1]):
            state = decay * state + self.b * u[:, t]
            out.append(self.c * state)
        return self.head(torch.stack(out, 1).tanh().mean(1))


class Splines(nn.Module):
    """Kolmogorov-Arnold: learned functions on the edges, in a basis of bumps."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(3, d, 5) / 3), nn.Parameter(torch.randn(d, 1, 5) / 3)
        self.register_buffer("grid", torch.linspace(-2, 2, 5))

    def forward(self, x: Tensor) -> Tensor:
        for weight in (self.first, self.second):
            x = torch.einsum("sib,iob->so", torch.exp(-((x[..., None] - self.grid) ** 2)), weight)
        return x


class Siren(nn.Module):
    """A field and its derivative: a physics-informed residual is the output."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, d), nn.Linear(d, d), nn.Linear(d, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        u = self.c(torch.sin(self.b(torch.sin(3 * self.a(x)))))
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (ddu,) = torch.autograd.grad(du[:, 0].sum(), x, create_graph=True)
        return du[:, 1:] - 0.1 * ddu[:, :1] + u


class Causal(nn.Module):
    """Dilated causal convolutions with gates."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, d, 1)
        self.gated = nn.ModuleList(nn.Conv1d(d, 2 * d, 2, dilation=2**i) for i in range(3))
        self.head = nn.Linear(d, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for i, conv in enumerate(self.gated):
            h = h + F.glu(conv(F.pad(h, (2**i, 0))), 1)
        return self.head(h[..., -1])


class LinearAttention(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(3, 3 * d, bias=False), nn.Linear(d, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        state = torch.einsum("sti,sto->stio", F.elu(k) + 1, v).cumsum(1)
        return self.head(torch.einsum("sti,stio->sto", F.elu(q) + 1, state).mean(1))


class Batched(nn.Module):
    """Soft experts, all at once by a batched product."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.route = nn.Linear(3, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 3, d) / 2), nn.Parameter(torch.randn(4, d, 1) / 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.bmm(torch.relu(torch.bmm(x.expand(4, -1, -1), self.up)), self.down)
        return (h * self.route(x).softmax(-1).T[..., None]).sum(0)


class Cells(nn.Module):
    """Recurrent cells, stepped by hand."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.cell, self.other, self.head = nn.LSTMCell(3, d), nn.RNNCell(d, d), nn.Linear(d, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = c = s = x.new_zeros(len(x), self.other.hidden_size)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            s = self.other(h, s)
        return self.head(s)


class Checkpointed(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.first, self.body, self.head = nn.Linear(3, d), nn.Sequential(nn.Linear(d, d), nn.Tanh()), nn.Linear(d, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, torch.tanh(self.first(x)), use_reentrant=False))


class Volume(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv3d(1, d, 3, stride=2, groups=1), nn.BatchNorm3d(d)
        self.head = nn.Linear(d, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.norm(self.conv(x))).mean((2, 3, 4)))


class Shuffled(nn.Module):
    """Squeeze and excitation, weight standardisation, pixel shuffle."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(1, 2 * d, 3), nn.Linear(2 * d, d), nn.Linear(d, 2 * d)
        self.out = nn.Conv2d(2 * d, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 1e-3)
        h = F.conv2d(x, weight, self.conv.bias)
        h = h * torch.sigmoid(self.excite(torch.relu(self.squeeze(h.mean((2, 3))))))[..., None, None]
        return F.pixel_shuffle(self.out(h), 2).square().mean((2, 3))


class Mixture(nn.Module):
    """A density: log-likelihood of a flow of affine couplings."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(2, d), nn.Tanh(), nn.Linear(d, 4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        volume = x.new_zeros(len(x))
        for net in self.nets:
            scale, shift = net(a).chunk(2, 1)
            a, b = b * torch.tanh(scale).exp() + shift, a
            volume = volume + torch.tanh(scale).sum(1)
        return volume - 0.5 * (a.square() + b.square()).sum(1)


def _spectral(d: int) -> nn.Module:
    make = torch.nn.utils.parametrizations.spectral_norm
    return nn.Sequential(make(nn.Linear(3, d)), nn.ReLU(), make(nn.Linear(d, d)), nn.ReLU(), nn.Linear(d, 1))


def _orthogonal(d: int) -> nn.Module:
    make = torch.nn.utils.parametrizations.orthogonal
    return nn.Sequential(nn.Linear(3, d), nn.Tanh(), make(nn.Linear(d, d)), nn.Tanh(), nn.Linear(d, 1))


def _graph(samples: int) -> dict[str, Tensor]:
    return {
        "nodes": torch.randn(samples, 5, 3, dtype=torch.float64),
        "edges": torch.randint(0, 5, (samples, 2, 7)),
    }


class Translator(nn.Module):
    """``nn.Transformer``, with a number of heads or a size of heads that grows."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.source, self.target = nn.Linear(3, d), nn.Linear(3, d)
        self.body = nn.Transformer(d, heads, 1, 1, 2 * d, dropout=0.1, batch_first=True)
        self.head = nn.Linear(d, 1)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.body(self.source(source), self.target(target))[:, -1])


def _two(samples: int) -> tuple[Tensor, Tensor]:
    return vectors(4, 3)(samples), vectors(3, 3)(samples)


_KINDS: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], Any], Any]] = {
    "NeRF": (Nerf, vectors(6, 3), None),
    "message passing": (Messages, _graph, None),
    "deep equilibrium": (Equilibrium, vectors(3), None),
    "neural ODE": (Ode, vectors(3), None),
    "U-Net": (UNet, images(8, 1), lambda out: out.mean((2, 3))),
    "tied autoencoder": (Autoencoder, vectors(5), None),
    "hypernetwork": (Hyper, vectors(3), None),
    "diagonal state space": (StateSpace, vectors(6, 2), None),
    "Kolmogorov-Arnold": (Splines, vectors(3), None),
    "PINN of a SIREN": (Siren, vectors(2), None),
    "dilated causal convolutions": (Causal, vectors(2, 9), None),
    "linear attention": (LinearAttention, vectors(5, 3), None),
    "soft experts": (Batched, vectors(3), None),
    "recurrent cells": (Cells, vectors(5, 3), None),
    "activation checkpointing": (Checkpointed, vectors(3), None),
    "3d convolution": (Volume, vectors(1, 5, 5, 5), None),
    "weight standardisation": (Shuffled, images(6, 1), None),
    "normalising flow": (Mixture, vectors(4), None),
    "spectral norm": (_spectral, vectors(3), None),
    "orthogonal parametrization": (_orthogonal, vectors(3), None),
    "nn.Transformer": (lambda d: Translator(d, d // 4), _two, None),
    "nn.Transformer, heads that grow": (lambda d: Translator(d, 3), _two, None),
}


_BASES = {"U-Net": 6, "3d convolution": 6, "weight standardisation": 4}
"""Widths at scale one that are not D."""


def _of_zoo(entry: Entry) -> Model:
    def draw(samples: int) -> Any:
        return entry.inputs(torch.Generator().manual_seed(0), samples)

    def build(scale: int) -> nn.Module:
        model = entry.build(8 * scale)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not parameter.any() and (entry.name, name) != ("lora", "up"):
                nn.init.normal_(parameter)
        return model

    return Model("by hand", f"{entry.name} (zoo)", build, draw, entry.outputs, scales=(8, 16, 32))


def _of_kind(name: str) -> Model:
    build, inputs, outputs = _KINDS[name]
    base = _BASES.get(name, D)
    return Model("by hand", name, lambda scale: build(base * scale), inputs, outputs, scales=(4, 8, 16))


MODELS = [*map(_of_zoo, ZOO), *map(_of_kind, _KINDS)]
