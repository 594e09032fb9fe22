"""Numbers that the forward pass lacks are held by parameters: training is that of the model in which they are written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft

P, T, D = 6, 4, 5
HEADS = 2


class Heads(nn.MultiheadAttention):
    """torch's attention, or the same with scores multiplied by ``scale``."""

    def __init__(self, width: int, heads: int, scale: float | None) -> None:
        super().__init__(width, heads, batch_first=True)
        nn.init.normal_(self.in_proj_bias, std=0.3)
        nn.init.normal_(self.out_proj.bias, std=0.3)
        self.factor = scale

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Of x to itself."""
        if self.factor is None:
            return super().forward(x, x, x, need_weights=False)[0]
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        )
        return self.out_proj(((self.factor * q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """A residual stream with attention; scale is a function of the width, or None for torch's own."""

    def __init__(self, width: int, scale: Callable[[int], float] | None, heads: int = HEADS) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(D, width), nn.Linear(width, 2)
        self.attention = Heads(width, heads, None if scale is None else scale(width))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.head(h + self.attention(h)).mean(1)


class Step(nn.Module):
    """A network with something between its layers, with a weight ``w`` and queries ``q`` if that needs them."""

    def __init__(self, width: int, inside: Callable[[Any, Tensor], Tensor], uses: str) -> None:
        super().__init__()
        self.first, self.head, self.inside = nn.Linear(D, width), nn.Linear(width, 2), inside
        if "w" in uses:
            self.w = nn.Linear(width, width)
        if "q" in uses:
            self.q = nn.Parameter(torch.randn(T, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inside(self, torch.tanh(self.first(x)))).mean(1)


class Embedded(nn.Module):
    """Embeddings times the root of the width, as Gemma has them, or as they are."""

    def __init__(self, width: int, power: float) -> None:
        super().__init__()
        self.embed, self.norm, self.w = nn.Embedding(7, width), nn.LayerNorm(width), nn.Linear(width, width)
        self.head, self.power = nn.Linear(width, 2), power

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed((x[..., 0] > 0).long() + 2 * (x[..., 1] > 0).long()) * self.head.in_features**self.power
        return self.head(h + self.w(torch.tanh(self.norm(h)))).mean(1)


def _step(inside: Callable[[Any, Tensor], Tensor], uses: str = "w") -> Callable[[int], nn.Module]:
    return lambda width: Step(width, inside, uses)


def _pooled(root: bool) -> Callable[[Any, Tensor], Tensor]:
    def inside(m: Any, h: Tensor) -> Tensor:
        scores = m.w(h) @ m.q.mT
        return (scores * (h.shape[-1] ** -0.5 if root else 1.0)).softmax(-2).mT @ h

    return inside


CASES: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], nn.Module], set[str]]] = {
    "one weight for queries, keys and values": (
        lambda n: Encoder(n, None),
        lambda n: Encoder(n, lambda n: HEADS / n),
        {"attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight"},
    ),
    "scores divided by the root of all features": (
        lambda n: Encoder(n, lambda n: n**-0.5, n // 4),
        lambda n: Encoder(n, lambda n: 1.0, n // 4),
        {"attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight"},
    ),
    "embeddings times the root of the width": (
        lambda n: Embedded(n, 0.5),
        lambda n: Embedded(n, 0.0),
        {"embed.weight"},
    ),
    "queries that are parameters": (_step(_pooled(True), "wq"), _step(_pooled(False), "wq"), {"q"}),
    "divided by the width": (_step(lambda m, h: m.w(h) / h.shape[-1]), _step(lambda m, h: m.w(h)), {"head.weight"}),
    "a root before an activation": (
        _step(lambda m, h: torch.tanh(m.w(h) * h.shape[-1] ** 0.5)),
        # The bias is multiplied by the root like all of it.
        _step(lambda m, h: torch.tanh(m.w(h))),
        {"w.weight", "w.bias"},
    ),
    "a sum over neurons": (
        _step(lambda m, h: m.w(h) * (h * h).sum(-1, keepdim=True)),
        _step(lambda m, h: m.w(h) * (h * h).mean(-1, keepdim=True)),
        {"head.weight"},
    ),
    "a vector of length one": (
        _step(lambda m, h: F.normalize(h, dim=-1), ""),
        _step(lambda m, h: F.normalize(h, dim=-1) * h.shape[-1] ** 0.5, ""),
        {"head.weight"},
    ),
}


def _trained(
    build: Callable[[int], nn.Module],
    optimizer: str,
    spoiled: str | None = None,
    width: int = 16,
) -> tuple[Tensor, dmft.Plan]:
    """The outputs along a few steps; with one parameter's rate as if it held no number, if it is named."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(P, T, D, generator=generator, dtype=torch.float64)
    y = torch.randn(P, 2, generator=generator, dtype=torch.float64)
    torch.manual_seed(1)
    model = build(width).double()
    seeded = torch.Generator().manual_seed(3)
    plan = dmft.parameterize(model, x, wider=lambda: build(2 * width).double(), generator=seeded)
    if spoiled is not None:
        factor = plan.architecture.factors[spoiled]
        as_if = {rule.name: replace(rule, lr=rule.lr / factor**2, adam_lr=rule.adam_lr / factor) for rule in plan.rules}
        plan.rules = tuple(as_if[spoiled] if rule.name == spoiled else rule for rule in plan.rules)
    groups = plan.param_groups(0.2, optimizer=optimizer, weight_decay=0.1, eps=1e-3)
    opt = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer](groups)
    outputs = []
    for _ in range(5):
        opt.zero_grad()
        f = model(x)
        outputs.append(f.detach())
        F.mse_loss(f, y).backward()
        opt.step()
    return torch.stack(outputs), plan


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("lacking", "balanced", "held"), CASES.values(), ids=CASES)
def test_training_is_that_of_the_model_with_the_number_written_out(lacking, balanced, held, optimizer) -> None:
    f, plan = _trained(lacking, optimizer)
    g, other = _trained(balanced, optimizer)
    assert plan.architecture.factors.keys() == held
    assert not other.architecture.folds
    torch.testing.assert_close(f, g, rtol=1e-9, atol=1e-9)
    assert float((g[-1] - g[0]).abs().max()) > 1e-2
    for name in held:  # each of the rates matters
        spoiled, _ = _trained(lacking, optimizer, spoiled=name)
        assert float((spoiled - g).abs().max()) > 1e-7, name
