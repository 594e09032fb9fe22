"""Features whose size goes with the width are refused; those of a steady size are not, however they scatter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.uses.factories import body, data, square
from torch_dmft.core.errors import UnsupportedModelError


def buffer(make: Callable[[int], Tensor]) -> Callable[[int], nn.Module]:
    class Held(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.register_buffer("value", make(width))

    return Held


UNSEEN: dict[str, Any] = {
    "a table of constants": body(lambda m, h: h * m.c.value, c=buffer(lambda n: torch.linspace(1, 2, n) / n**0.5)),
    "a random matrix": body(lambda m, h: h @ m.c.value, c=buffer(lambda n: torch.randn(n, n))),
    "random features": body(lambda m, h: torch.cos(h @ m.c.value), c=buffer(lambda n: torch.randn(n, n))),
    "a sum along neurons": body(lambda m, h: h.cumsum(-1)),
    "a softmax over neurons": body(lambda m, h: h.softmax(-1)),
    "a Fourier transform": body(lambda m, h: torch.fft.rfft(h)[:, : h.shape[-1] // 2].abs().repeat(1, 2)),
    "a mean of blocks": body(lambda m, h: m.w(h).unflatten(-1, (-1, 4)).mean(1).repeat(1, h.shape[-1] // 4), w=square),
    "an initial size": body(lambda m, h: m.w(h) * m.s, w=square, s=lambda n: nn.Parameter(torch.tensor(n**-0.5))),
}


@pytest.mark.parametrize("factory", UNSEEN.values(), ids=UNSEEN)
def test_features_whose_size_goes_with_the_width_are_refused(factory, generator) -> None:
    with pytest.raises(UnsupportedModelError, match="features go with the width to the power"):
        dmft.parameterize(factory(16), data(generator).float(), wider=factory)


STEADY: dict[str, Any] = {
    "a random matrix": body(lambda m, h: h @ m.c.value, c=buffer(lambda n: torch.randn(n, n) / n**0.5)),
    "the largest": body(lambda m, h: h + h.amax(-1, keepdim=True)),
    "every fourth": body(lambda m, h: h * (h >= h.topk(h.shape[-1] // 4, -1).values[:, -1:])),
    "by the standard deviation": body(lambda m, h: (h - h.mean(-1, keepdim=True)) / h.std(-1, keepdim=True)),
    "a convolution along neurons": body(lambda m, h: m.c(h[:, None])[:, 0], c=lambda n: nn.Conv1d(1, 1, 3, padding=1)),
    "a product of two layers": body(lambda m, h: m.a(h) * m.b(h), a=square, b=square),
    "a branch that vanishes": body(
        lambda m, h: h + m.s * m.w(h), w=square, s=lambda n: nn.Parameter(torch.tensor(1 / n))
    ),
}


SCATTERED: dict[str, Any] = {
    "a squeeze": body(
        lambda m, h: m.w(h * torch.sigmoid(m.b(torch.relu(m.a(h))))),
        w=square,
        a=lambda n: nn.Linear(n, n // 8),
        b=lambda n: nn.Linear(n // 8, n),
    ),
    "a product of three": body(lambda m, h: m.a(h) * m.b(h) * m.c(h), a=square, b=square, c=square),
    "a channel by channel": body(
        lambda m, h: m.w(torch.relu(h * m.c.weight.flatten()) ** 3), w=square, c=lambda n: nn.Conv1d(n, n, 1, groups=n)
    ),
}


@pytest.mark.parametrize("factory", SCATTERED.values(), ids=SCATTERED)
def test_features_that_scatter_are_not_refused_by_chance(factory, generator) -> None:
    x = data(generator).float()
    for seed in range(12):
        torch.manual_seed(seed)
        dmft.describe(factory(16), x, wider=factory)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("factory", STEADY.values(), ids=STEADY)
def test_features_of_a_steady_size_are_accepted(factory, seed, generator) -> None:
    torch.manual_seed(seed)
    model, x = factory(16), data(generator).float()
    before = copy.deepcopy(model.state_dict())
    dmft.describe(model, x, wider=factory)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
