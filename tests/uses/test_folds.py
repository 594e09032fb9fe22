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
from torch_dmft.architecture import Architecture
from torch_dmft.core.errors import UnsupportedModelError
from torch_dmft.parameterization import coordinate_check

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
    "behind a cache that starts empty": (
        _step(lambda m, h: torch.tanh(torch.cat([h.new_zeros(P, 0, h.shape[-1]), m.w(h)], 1) * h.shape[-1] ** 0.5)),
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


@pytest.mark.parametrize(
    "inside",
    [
        lambda m, h: torch.tanh(m.w(h)) + torch.tanh(m.w(h) * h.shape[-1] ** 0.5),
        lambda m, h: m.w(h / h.shape[-1] + torch.tanh(h)),
        lambda m, h: torch.tanh(m.w(h) + 1 / 3 + h * h.shape[-1] ** 0.5),
        lambda m, h: torch.tanh((1 + m.w(h)) * h.shape[-1] ** 0.5),
        lambda m, h: torch.tanh(torch.special.entr(m.w(h).abs()) * h.shape[-1] ** 0.5),
    ],
    ids=["used elsewhere", "a part of a sum", "no weight", "a number beside it", "not known to be homogeneous"],
)
def test_what_no_parameter_can_hold_is_refused(inside, generator) -> None:
    x = torch.randn(P, T, D, generator=generator, dtype=torch.float64)
    with pytest.raises(UnsupportedModelError, match="times as large at the other width"):
        dmft.parameterize(_step(inside)(16).double(), x, wider=lambda: _step(inside)(32).double())


def test_values_that_pass_an_activation_leave_a_packed_weight_no_factor(generator) -> None:
    class Bent(nn.Module):
        """Attention whose values pass an activation, which is not homogeneous."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.qkv, self.head = nn.Linear(D, width), nn.Linear(width, 3 * width), nn.Linear(width, 2)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(torch.tanh(self.first(x))).chunk(3, -1)
            return self.head(F.scaled_dot_product_attention(q, k, torch.tanh(v))).mean(1)

    x = torch.randn(P, T, D, generator=generator, dtype=torch.float64)
    with pytest.raises(UnsupportedModelError, match="let the number of heads grow"):
        dmft.parameterize(Bent(16).double(), x, wider=Bent)


def test_starts_mean_what_they_mean_and_undo_brings_them_back(generator) -> None:
    x = torch.randn(P, T, D, generator=generator)
    for init in ("normal", "keep", "untouched"):
        model = Encoder(16, None)
        nn.init.zeros_(model.attention.out_proj.weight)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        plan = dmft.parameterize(model, x, init=init, wider=lambda n: Encoder(n, None))
        held = {name: 1.0 if init == "untouched" else factor for name, factor in plan.architecture.factors.items()}
        assert not model.attention.out_proj.weight.any()
        torch.testing.assert_close(
            model.attention.in_proj_bias, before["attention.in_proj_bias"] * held["attention.in_proj_bias"]
        )
        rule = plan.rule("attention.in_proj_weight")
        assert rule.lr == pytest.approx(rule.std**2 * 16)
        if init != "untouched":
            assert rule.std == pytest.approx(8**-0.25 / 4)
            assert float(model.attention.in_proj_weight.square().mean().sqrt()) == pytest.approx(rule.std, rel=0.1)
            assert "so that they are q.k/d" in " ".join(plan.notes)
        else:
            assert "scores stay q.k/sqrt(d)" in " ".join(plan.notes)
            assert torch.equal(model.attention.in_proj_weight, before["attention.in_proj_weight"])
        plan.undo()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), pytest.param("adam", 0.03, marks=pytest.mark.long)])
def test_features_of_packed_attention_move_alike_only_with_what_is_held(optimizer, lr, generator, monkeypatch) -> None:
    x, y = torch.randn(P, T, D, generator=generator), torch.randn(P, 2, generator=generator)

    def checked() -> dict[str, float]:
        check = coordinate_check(
            lambda n: Encoder(n, None), x, y, widths=(32, 128), seeds=6, lr=lr, optimizer=optimizer, generator=generator
        )
        return check.exponents

    assert max(map(abs, checked().values())) <= 0.1
    monkeypatch.setattr(Architecture, "factors", {})
    assert max(map(abs, checked().values())) > 0.2


class Pooled(nn.Module):
    """Attention of a latent, a parameter that a weight makes queries of, to features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(D, width), nn.Linear(width, 2)
        self.latent = nn.Parameter(torch.randn(1, width))
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        q, k = (part.unflatten(-1, (-1, 8)).transpose(-2, -3) for part in (self.q(self.latent), self.k(h)))
        return self.head(
            ((q @ k.mT / 8).softmax(-1) @ h.unflatten(-1, (-1, 8)).transpose(1, 2)).transpose(1, 2).flatten(1)
        )


def test_a_weight_that_multiplies_a_parameter_has_the_role_that_its_sum_says(generator) -> None:
    x = torch.randn(P, T, D, generator=generator)
    model = Pooled(32)
    plan = dmft.parameterize(model, x, wider=Pooled)
    rule = plan.rule("q.weight")
    assert (str(rule.role), rule.fan_in) == ("hidden", 32)
    assert rule.std == pytest.approx(32**-0.5)
    assert float(model.q.weight.std()) == pytest.approx(32**-0.5, rel=0.1)
    assert str(plan.rule("latent").role) == "vector"
