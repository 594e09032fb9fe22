"""Random set-ups with hyperparameters of maximal update by hand, and faults that are put into them.

Rates and initial sizes at a width are those of the narrowest times a power of r = N / N_0 that follows from the role of the
parameter alone (Yang et al., arXiv:2203.03466, table 8):

    role                          initial size    Adam    SGD
    input, embedding, bias, gain  1               1       r
    hidden                        r^-1/2          1/r     1
    readout                       r^-1            1/r     1/r
    bias of the readout           1               1       1
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BASE = 32
"""N_0."""
CLASSES, FEATURES, TOKENS, LENGTH = 4, 12, 24, 8


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        kind: "init", "rate", "forgotten readout", "scores", "decay", "eps" or "rates of SGD".
        parameter: of init and rate.
        power: of r that its initial size or rate is multiplied by.
    """

    kind: str
    parameter: str = ""
    power: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """A set-up at every width."""

    family: str
    depth: int
    activation: str
    norm: bool
    heads: str
    optimizer: str
    rate: float
    momentum: float
    decay: float
    squared: bool
    rows: int
    seed: int
    fault: Fault | None = None


def drawn(seed: int, families: tuple[str, ...] = ("mlp", "mlp", "mlp", "cnn", "transformer")) -> Recipe:
    """A right set-up at random."""
    dice = random.Random(seed)
    family = dice.choice(families)
    optimizer = dice.choice(("sgd", "adam", "adamw"))
    # Rates at which the loss falls steadily within the steps, from a run of each family by itself.
    rate = {"sgd": 0.2, "adam": 0.02, "adamw": 0.02}[optimizer] * 2 ** dice.uniform(-1.5, 0.5)
    return Recipe(
        family=family,
        depth=dice.choice((1, 2, 3)) if family == "mlp" else 1,
        activation=dice.choice(("relu", "tanh", "gelu")),
        norm=dice.random() < 0.4,
        heads=dice.choice(("few", "many")),
        optimizer=optimizer,
        rate=rate,
        momentum=dice.choice((0.0, 0.9)) if optimizer == "sgd" else 0.9,
        decay=0.1 if optimizer == "adamw" else 0.0,
        squared=dice.random() < 0.3,
        rows=dice.choice((8, 16, 32)),
        seed=seed,
    )


class _Attention(nn.Module):
    """Causal self-attention whose scores are over d where heads widen, and over sqrt(d) where there are more of them."""

    def __init__(self, width: int, heads: str) -> None:
        super().__init__()
        self.heads = 2 if heads == "few" else width // 16
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        d, base = width // self.heads, (BASE // 2 if heads == "few" else 16)
        self.scale = base**0.5 / d if heads == "few" else d**-0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class _Transformer(nn.Module):
    def __init__(self, width: int, recipe: Recipe) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, width)
        self.positions = nn.Parameter(torch.randn(LENGTH, width))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attention = _Attention(width, recipe.heads)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.act = _activation(recipe)
        self.head = nn.Linear(width, TOKENS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions
        h = h + self.attention(self.norm1(h))
        h = h + self.down(self.act(self.up(self.norm2(h))))
        return self.head(self.norm3(h))


def _activation(recipe: Recipe) -> nn.Module:
    return {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}[recipe.activation]()


def _model(recipe: Recipe, width: int) -> nn.Module:
    if recipe.family == "transformer":
        return _Transformer(width, recipe)
    layers: list[nn.Module] = []
    if recipe.family == "cnn":
        for into in (3, width):
            layers += [nn.Conv2d(into, width, 3, padding=1)]
            layers += [nn.GroupNorm(1, width)] if recipe.norm else []
            layers += [_activation(recipe)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))
    for into in (FEATURES, *[width] * recipe.depth):
        layers += [nn.Linear(into, width)]
        layers += [nn.LayerNorm(width)] if recipe.norm else []
        layers += [_activation(recipe)]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def roles(recipe: Recipe) -> dict[str, str]:
    """The role of every parameter."""
    shapes = [
        {name: tuple(one.shape) for name, one in _model(recipe, width).named_parameters()} for width in (BASE, 64)
    ]
    found = {}
    for name, shape in shapes[0].items():
        grows = [a != b for a, b in zip(shape, shapes[1][name], strict=True)]
        if len(shape) == 1:
            found[name] = "vector" if grows[0] else "output bias"
        elif name.startswith("tokens") or name == "positions":
            found[name] = "embedding"
        else:
            found[name] = "hidden" if all(grows[:2]) else "input" if grows[0] else "readout"
    return found


_INITIAL = {"hidden": 0.0, "readout": -0.5}
"""Beside torch's own initial sizes, which fall like 1/sqrt(fan-in)."""
_ADAM = {"hidden": -1.0, "readout": -1.0}
_SGD = {"hidden": 0.0, "readout": -1.0, "output bias": 0.0}


def made(recipe: Recipe, width: int) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """The set-up of a width."""
    model, r, fault = _model(recipe, width), width / BASE, recipe.fault or Fault("none")
    found = roles(recipe)
    groups = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            role = found[name]
            is_forgotten = fault.kind == "forgotten readout" and role == "readout"
            power = 0.0 if is_forgotten else _INITIAL.get(role, 0.0)
            by_sgd = _SGD.get(role, 1.0)
            rate = by_sgd if recipe.optimizer == "sgd" or fault.kind == "rates of SGD" else _ADAM.get(role, 0.0)
            rate = 0.0 if is_forgotten and recipe.optimizer == "sgd" else rate
            if fault.parameter == name:
                power += fault.power if fault.kind == "init" else 0.0
                rate += fault.power if fault.kind == "rate" else 0.0
            parameter *= r**power
            lr = recipe.rate * r**rate
            decay = recipe.decay / (1.0 if fault.kind == "decay" else r**rate)
            groups.append({"params": [parameter], "lr": lr, "weight_decay": decay})
    if fault.kind == "scores":
        model.attention.scale *= r**0.5  # type: ignore[union-attr, operator]
    eps = 0.03 if fault.kind == "eps" else 1e-14
    if recipe.optimizer == "sgd":
        return model, torch.optim.SGD(groups, momentum=recipe.momentum), _loss(recipe)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return model, kind(groups, eps=eps), _loss(recipe)


def _loss(recipe: Recipe) -> nn.Module:
    return nn.MSELoss() if recipe.squared and recipe.family != "transformer" else nn.CrossEntropyLoss()


def data(recipe: Recipe, seed: int) -> list[tuple[Tensor, Tensor]]:
    """One batch of random rows, the same at every step."""
    generator = torch.Generator().manual_seed(1000 * recipe.seed + seed)
    rows = recipe.rows if recipe.family == "mlp" else max(2, recipe.rows // 4)
    if recipe.family == "transformer":
        return [tuple(torch.randint(TOKENS, (2, rows, LENGTH), generator=generator))]  # type: ignore[list-item]
    shape = (rows, 3, 5, 5) if recipe.family == "cnn" else (rows, FEATURES)
    inputs = torch.randn(shape, generator=generator)
    if recipe.squared:
        return [(inputs, torch.randn(rows, CLASSES, generator=generator))]
    return [(inputs, torch.randint(CLASSES, (rows,), generator=generator))]


def faulty(recipe: Recipe) -> tuple[Recipe, set[str]]:
    """The set-up with a fault at random, and the parameters of which any may be named: those that the fault changes."""
    dice = random.Random(recipe.seed + 10**6)
    found = roles(recipe)
    kind = dice.choice(("init", "rate", "rate", "other"))
    if kind == "other":
        others = ["forgotten readout"]
        others += ["decay"] if recipe.optimizer == "adamw" else []
        others += ["eps", "rates of SGD"] if recipe.optimizer != "sgd" else []
        others += ["scores"] if recipe.family == "transformer" and recipe.heads == "few" else []
        kind = dice.choice(others)
        matrices = {name for name, role in found.items() if role in ("hidden", "readout")}
        named = {
            "forgotten readout": {name for name, role in found.items() if role == "readout"},
            "decay": matrices,
            "eps": set(found),
            "rates of SGD": {name for name, role in found.items() if _SGD.get(role, 1.0) != _ADAM.get(role, 0.0)},
            "scores": {"attention"},
        }[kind]
        return replace(recipe, fault=Fault(kind)), named
    parameters = list(found)
    if kind == "init":  # what is added or averages over neurons may start small: it may start at zero
        parameters = [name for name in parameters if not name.endswith("bias")]
    name = dice.choice(parameters)
    power = dice.choice((-0.5, 0.5))
    if kind == "init" and (found[name] == "readout" or name == "positions"):
        power = 0.5
    return replace(recipe, fault=Fault(kind, name, power)), {name}
