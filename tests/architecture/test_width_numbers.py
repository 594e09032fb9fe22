"""Numbers that depend on the width are refused wherever they act, whatever their law; numbers that do not are accepted.

The oracle is the law itself: a model is built at two widths, and it has to be refused if and only if the law gives other
numbers there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_dmft.architecture import Architecture, describe
from torch_dmft.core.errors import UnsupportedModelError

Law = Callable[[int], float]

LAWS: dict[str, Law] = {
    "n^2": lambda n: float(n) ** 2,
    "n^-2": lambda n: float(n) ** -2,
    "n^(1/4)": lambda n: n**0.25,
    "n^(-1/4)": lambda n: n**-0.25,
    "log n": math.log,
    "1 / log n": lambda n: 1 / math.log(n),
    "max(n, 8)": lambda n: float(max(n, 8)),
    "max(n, 8) / 8": lambda n: max(n, 8) / 8,
    "n / 24": lambda n: n / 24,
    "sqrt(2 / n)": lambda n: math.sqrt(2 / n),
}
UNKNOWN_WHEN_STORED = {"n / 24", "max(n, 8) / 8"}
"""Laws with a factor of their own, which no look at the number tells from a plain 3; two widths do."""


class Acting(nn.Module):
    """A chain in which a number acts between the hidden layer and its activation; the number is kept in every form."""

    def __init__(self, act: Callable[[float, Tensor], Tensor], law: Law, width: int, stored: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.act, self.law = act, law
        self.scale = law(width) if stored else None
        self.register_buffer("one", torch.tensor(law(width)))
        self.register_buffer("row", torch.full((width,), law(width)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(torch.tanh(self.first(x)))
        number = self.law(h.shape[-1]) if self.scale is None else self.scale
        return self.last(torch.tanh(self.act(number, h)))


def row(number: float, h: Tensor) -> Tensor:
    return torch.full((h.shape[-1],), number)


def pairs(h: Tensor) -> Tensor:
    """Features at two positions."""
    return h[:, :, None].expand(-1, -1, 2)


FACTORS = {
    "mul": lambda c, h: h * c,
    "div": lambda c, h: h / c,
    "in place": lambda c, h: h.mul_(c),
    "tensor": lambda c, h: h * torch.tensor(c),
    "full": lambda c, h: h * torch.full_like(h, c),
    "row": lambda c, h: h * row(c, h),
    "of another branch": lambda c, h: h - torch.tanh(h) * c,
}
OTHERS = {
    "add": lambda c, h: h + c,
    "add row": lambda c, h: h + row(c, h),
    "alpha": lambda c, h: torch.add(h, h * h, alpha=c),
    "clamp": lambda c, h: h.clamp(-c, c),
    "pow": lambda c, h: (h.abs() + 1) ** c,
    "leaky_relu": lambda c, h: F.leaky_relu(h, c),
    "softplus": lambda c, h: F.softplus(h, beta=c),
    "maximum": lambda c, h: torch.maximum(h, torch.tensor(c)),
    "where": lambda c, h: torch.where(h > 0, h, torch.tensor(c)),
    "comparison": lambda c, h: torch.where(h > c, h, 0.3),
    "mask": lambda c, h: h * (h > c),
    "cat": lambda c, h: torch.cat([h.unsqueeze(1), torch.full_like(h, c).unsqueeze(1)], 1).mean(1),
    "stack": lambda c, h: torch.stack([h, torch.full_like(h, c)], 1).mean(1),
    "einsum": lambda c, h: torch.einsum("bn,n->bn", h, row(c, h)),
    "matmul": lambda c, h: (torch.full((1, 1), c) @ h.unsqueeze(-2)).squeeze(-2),
    "pad": lambda c, h: F.pad(h.unsqueeze(1), (0, 0, 0, 1), value=c).mean(1),
    "norm gain": lambda c, h: F.layer_norm(h, h.shape[-1:], row(c, h)),
    "lp_pool": lambda c, h: F.lp_pool1d(pairs(h).abs() + 0.1, c, 2).flatten(1),
    "norm": lambda c, h: h / (pairs(h) + 3).norm(c, dim=-1),
    "normalize": lambda c, h: F.normalize(pairs(h), p=c, dim=-1).mean(-1),
    "softmax": lambda c, h: (h[:, :, None] * torch.tensor([1.0, c])).softmax(-1)[..., 0],
}
ACTS = FACTORS | OTHERS


def judged(model: nn.Module, like: Architecture | None = None) -> Architecture:
    return describe(model, torch.randn(5, 3), like=like)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("act", ACTS)
def test_numbers_computed_in_forward_from_the_width_are_refused(act: str, law: str) -> None:
    if law == "n^2" and act == "lp_pool":
        pytest.skip("overflows")
    for width in (4, 24):
        with pytest.raises(UnsupportedModelError, match="width"):
            judged(Acting(ACTS[act], LAWS[law], width))


@pytest.mark.parametrize("law", ["n^-2", "n^(1/4)", "log n", "max(n, 8)"])
@pytest.mark.parametrize("act", ACTS)
def test_numbers_that_differ_between_two_models_are_refused(act: str, law: str) -> None:
    """A constant stands in for the law where the first model is described, so that only the comparison can tell."""
    small, large = 12, 48
    first = judged(Acting(ACTS[act], lambda n: LAWS[law](small) * 1.37, small))
    judged(Acting(ACTS[act], lambda n: LAWS[law](small) * 1.37, large), like=first)
    with pytest.raises(UnsupportedModelError, match="width"):
        judged(Acting(ACTS[act], lambda n: LAWS[law](large) * 1.37, large, stored=True), like=first)


@pytest.mark.parametrize("law", sorted(LAWS.keys() - UNKNOWN_WHEN_STORED))
@pytest.mark.parametrize("act", ["mul", "div", "full", "row", "add", "clamp", "cat", "einsum"])
def test_numbers_stored_at_construction_that_look_like_a_law_of_a_width_are_refused(act: str, law: str) -> None:
    with pytest.raises(UnsupportedModelError, match="with the width 24"):
        judged(Acting(ACTS[act], LAWS[law], 24, stored=True))


@pytest.mark.parametrize("law", sorted(LAWS.keys() - UNKNOWN_WHEN_STORED))
@pytest.mark.parametrize(
    "act",
    [
        lambda model, h: h * model.one,
        lambda model, h: h * model.row,
        lambda model, h: h + model.row,
    ],
)
def test_buffers_that_look_like_a_law_of_a_width_are_refused(act: Callable, law: str) -> None:
    class Buffered(Acting):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(act(self, self.second(torch.tanh(self.first(x))))))

    with pytest.raises(UnsupportedModelError, match="with the width 24"):
        judged(Buffered(ACTS["mul"], LAWS[law], 24))


@pytest.mark.parametrize("number", [0.37, 5.0])
@pytest.mark.parametrize("act", ACTS)
def test_numbers_that_are_the_same_at_every_width_are_accepted(act: str, number: float) -> None:
    for width in (4, 24):
        judged(Acting(ACTS[act], lambda n: number, width))


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize(
    "constants",
    [
        lambda h: torch.randn(h.shape[-1]),
        lambda h: torch.randn_like(h),
        lambda h: torch.linspace(-1, 1, h.shape[-1]),
        lambda h: torch.arange(h.shape[-1]) % 2 * 2.0 - 1,
        lambda h: torch.sin(torch.arange(h.shape[-1]) * 0.3),
    ],
)
def test_constants_along_the_width_that_keep_their_size_are_accepted(constants: Callable, width: int) -> None:
    torch.manual_seed(0)
    judged(Acting(lambda _, h: h * constants(h), lambda n: 1.0, width))


@pytest.mark.parametrize("power", [-0.5, -0.25, 0.25, 0.5])
def test_random_constants_that_grow_or_fall_with_the_width_are_refused(power: float) -> None:
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError, match="at another width"):
        judged(Acting(lambda c, h: h * c * torch.randn_like(h), lambda n: n**power, 24))


def test_a_number_that_is_one_at_this_width_only_is_refused() -> None:
    for act in (lambda c, h: h * c, lambda c, h: h + (c - 1)):
        with pytest.raises(UnsupportedModelError, match="width"):
            judged(Acting(act, lambda n: n / 24, 24))


@pytest.mark.parametrize("law", ["n^2", "n^(1/4)", "log n", "sqrt(2 / n)"])
def test_embeddings_are_compared_with_a_copy_too(law: str) -> None:
    class Embeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.hidden, self.last = nn.Embedding(9, 24), nn.Linear(24, 24), nn.Linear(24, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.token(x)
            return self.last(torch.tanh(self.hidden(h * 7 * LAWS[law](h.shape[-1]))).mean(1))

    with pytest.raises(UnsupportedModelError, match="at another width"):
        describe(Embeds(), torch.randint(0, 9, (5, 4)))


class Attention(nn.Module):
    """One layer of attention with two heads, whose scores have a factor that follows a law."""

    def __init__(self, law: Law, head: int, stored: bool) -> None:
        super().__init__()
        width = 2 * head
        self.stem, self.last = nn.Linear(3, width), nn.Linear(width, 1)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.law, self.scale = law, law(head) if stored else None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        q, k, v = (layer(h).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scale = self.law(q.shape[-1]) if self.scale is None else self.scale
        return self.last(F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(-2).mean(1))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("law", ["n^2", "n^-2", "n^(1/4)", "n^(-1/4)", "log n", "1 / log n"])
def test_scores_whose_factor_does_not_fall_like_one_over_the_width_are_refused(law: str, stored: bool) -> None:
    with pytest.raises(UnsupportedModelError, match="over a width"):
        describe(Attention(LAWS[law], 24, stored), torch.randn(4, 5, 3))


@pytest.mark.parametrize("constant", [0.3, 1.0, 2.0])
def test_scores_whose_factor_falls_like_one_over_the_width_are_accepted(constant: float) -> None:
    for stored in (False, True):
        describe(Attention(lambda n: constant / n, 24, stored), torch.randn(4, 5, 3))
    with pytest.raises(UnsupportedModelError, match="over a width"):  # computed, and the same at every width
        describe(Attention(lambda n: max(n, 8) ** -0.5 * constant, 24, False), torch.randn(4, 5, 3))
