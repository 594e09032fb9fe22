"""Numbers in the forward pass that depend on width are found, and those that do not are accepted."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.transformer import FEATURES, TOKENS, Transformer
from torch_dmft.architecture import Constant, describe
from torch_dmft.core.errors import UnsupportedModelError

WIDTH = 6


class Numbers(nn.Module):
    """Input layer, hidden layer, readout, and any numbers between them; ``scale`` and ``buffer`` are made when it is built."""

    def __init__(self, forward: Callable[[Numbers, Tensor], Tensor], width: int = WIDTH, scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.scale = scale
        self.register_buffer("buffer", torch.tensor(scale))
        self.own_forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.own_forward(self, x)


def readout_over(divisor: Callable[[Tensor], float]) -> Callable[[Numbers, Tensor], Tensor]:
    def forward(model: Numbers, x: Tensor) -> Tensor:
        h = torch.tanh(model.second(torch.tanh(model.first(x))))
        return model.last(h) / divisor(h)

    return forward


def between(act: Callable[[Numbers, Tensor], Tensor]) -> Callable[[Numbers, Tensor], Tensor]:
    def forward(model: Numbers, x: Tensor) -> Tensor:
        return model.last(torch.tanh(act(model, model.second(torch.tanh(model.first(x))))))

    return forward


def first_scaled(model: Numbers, x: Tensor) -> Tensor:
    return model.last(torch.tanh(model.second(torch.tanh(model.first(x) * model.first.out_features**-0.5))))


def data_scaled(model: Numbers, x: Tensor) -> Tensor:
    return model.last(torch.tanh(model.second(torch.tanh(model.first(x * 3 / model.first.out_features**0.5)))))


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (readout_over(lambda h: h.shape[-1]), r"\(model\): features are multiplied by 0\.16.*another width 0\.016"),
        (readout_over(lambda h: h.size(1) ** 0.5), r"multiplied by 0\.408"),
        (readout_over(lambda h: math.sqrt(3 * h.shape[-1])), r"multiplied by 0\.235702"),
        (readout_over(lambda h: torch.tensor(float(h.shape[-1])).sqrt()), r"multiplied by 0\.408"),
        (readout_over(lambda h: 2 * h.shape[-1]), r"multiplied by 0\.0833"),
        (first_scaled, r"multiplied by 0\.408"),
        (data_scaled, r"the data are multiplied by 1\.22"),
        (between(lambda model, h: h * h.shape[-1] ** 0.25), r"multiplied by 1\.56"),
        (between(lambda model, h: h * 7 / model.second.in_features), r"multiplied by 1\.1666"),
        (between(lambda model, h: h + 1 / h.shape[-1]), r"`add` acts on features with 0\.16"),
        (between(lambda model, h: torch.add(h, h, alpha=h.shape[-1])), r"`add` acts on features with 6"),
        (between(lambda model, h: h * torch.full_like(h, 1 / h.shape[-1])), r"`mul` acts on features with 0\.16"),
        (between(lambda model, h: h.clamp(max=h.shape[-1])), r"`clamp` acts on features with 6"),
        (between(lambda model, h: torch.lerp(h, torch.zeros_like(h), 1 / h.shape[-1])), r"`lerp` acts on features"),
        (between(lambda model, h: h * 2 if h.shape[-1] > 6 else h * 2 + h), "steps differ at another width"),
        (between(lambda model, h: h * 2 if h.shape[-1] > 6 else h * 2 + 3), "numbers act on features"),
        (between(lambda model, h: F.layer_norm(h / h.shape[-1], h.shape[-1:])), r"multiplied by 0\.16"),
    ],
)
def test_numbers_that_change_with_the_width_are_refused(forward: Callable, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        describe(Numbers(forward), torch.randn(5, 3))


@pytest.mark.parametrize("power", [-1.0, -0.5, 0.5, 1.0])
@pytest.mark.parametrize(
    "act",
    [
        lambda model, h: model.scale * h,
        lambda model, h: h * model.buffer,
        lambda model, h: -h * (-model.scale),
        lambda model, h: h.div(1 / model.scale),
    ],
)
def test_numbers_stored_at_construction_that_are_powers_of_a_width_are_refused(act: Callable, power: float) -> None:
    model = Numbers(between(act), scale=WIDTH**power)
    with pytest.raises(UnsupportedModelError, match=r"with the width 6. Remedy: drop it"):
        describe(model, torch.randn(5, 3))


def test_fan_ins_are_widths_too() -> None:
    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv1d(2, 5, 3), nn.Conv1d(5, 5, 3)
            self.last = nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.second(torch.tanh(self.first(x))) / math.sqrt(15)).mean(-1))

    with pytest.raises(UnsupportedModelError, match=r"1 / sqrt\(15\) with the width 15"):
        describe(Conv(), torch.randn(4, 2, 9))


@pytest.mark.parametrize("number", [0.5, 2.0, 3.0, 0.1, 1 / 3, 1 / math.sqrt(5), -1.0])
def test_numbers_of_their_own_are_accepted(number: float) -> None:
    found = describe(Numbers(between(lambda model, h: number * h)), torch.randn(5, 2)[:, [0, 1, 1]])
    assert found.constants == (Constant("", "mul", number, "factor", on_data=False),)
    assert not found.is_chain


@pytest.mark.parametrize("width", [4, 16, 64])
@pytest.mark.parametrize("number", [0.5, 2.0])
def test_a_half_and_two_are_no_powers_of_a_width(number: float, width: int) -> None:
    describe(Numbers(between(lambda model, h: number * h), width), torch.randn(5, 3))


def test_factors_that_cancel_are_one() -> None:
    found = describe(Numbers(between(lambda model, h: (h * h.shape[-1]).flatten(1) / h.shape[-1])), torch.randn(5, 3))
    assert not found.constants


def test_numbers_of_the_data_are_no_widths() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x / x.shape[-1] ** 0.5))
            return self.last(h.sum(1) / x.shape[1])

    found = describe(Tokens(), torch.randn(5, 4, 3))  # 1/4 is 1/sqrt(16) as well
    assert [constant.number for constant in found.constants] == [pytest.approx(3**-0.5), 0.25]
    assert [constant.on_data for constant in found.constants] == [True, False]


def test_a_factor_for_the_data_may_be_their_size_at_any_width() -> None:
    forward = between(lambda model, h: h)
    model = nn.Sequential(nn.Identity(), Numbers(lambda model, x: forward(model, x / x.shape[-1] ** 0.5), width=3))
    describe(model, torch.randn(5, 3))


@pytest.mark.parametrize("blocks", [2, 3, 5, 8, 16])  # 1/sqrt(16) is 1/sqrt(width) too, and 1/sqrt(8) that of a head
def test_residual_branches_may_have_a_factor_of_the_depth(blocks: int) -> None:
    found = describe(Transformer(16, blocks=blocks), torch.randn(3, TOKENS, FEATURES))
    assert len(found.constants) == 2 * blocks
    assert {constant.path for constant in found.constants} == {f"blocks.{block}" for block in range(blocks)}


@pytest.mark.parametrize("count", [1, 4])
def test_a_factor_of_residual_branches_that_is_not_of_the_depth_is_judged_as_any_other(count: int) -> None:
    def branches(model: Numbers, x: Tensor) -> Tensor:
        h = model.first(x)
        for _ in range(count):
            h = h + model.scale * torch.tanh(model.second(h))
        return model.last(h)

    with pytest.raises(UnsupportedModelError, match=r"1 / sqrt\(6\) with the width 6"):
        describe(Numbers(branches, scale=6**-0.5), torch.randn(5, 3))
    describe(Numbers(branches, scale=0.3), torch.randn(5, 3))


@pytest.mark.parametrize("scale", [2.0, 0.3])
def test_factors_of_scores_belong_to_their_dot_product(scale: float) -> None:
    for by_hand in (False, True):
        found = describe(Transformer(16, scale=scale, by_hand=by_hand), torch.randn(3, TOKENS, FEATURES))
        assert not found.constants
        assert found.dot_products[0].scale == pytest.approx(scale)


def test_a_model_that_cannot_be_copied_at_another_width_is_judged_by_the_look_of_its_numbers() -> None:
    class Embeds(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.token, self.hidden, self.last = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 1)
            self.scale = scale

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.hidden(self.token(x) * self.scale)).mean(1))

    tokens = torch.randint(0, 9, (5, 4))
    with pytest.raises(UnsupportedModelError, match=r"sqrt\(6\) with the width 6"):
        describe(Embeds(math.sqrt(6)), tokens)
    assert describe(Embeds(3.0), tokens).constants[0].number == 3.0


def test_two_models_of_a_factory_are_compared_with_each_other() -> None:
    def factory(width: int) -> nn.Module:
        return Numbers(between(lambda model, h: model.scale * h), width, scale=math.sqrt(2 / width))

    def plain(width: int) -> nn.Module:
        return Numbers(between(lambda model, h: 0.3 * h), width)

    example = torch.randn(5, 3)
    describe(plain(12), example, like=describe(plain(6), example))
    with pytest.raises(UnsupportedModelError, match=r"multiplied by 0\.408248, but at another width 0\.57735"):
        describe(factory(12), example, like=describe(factory(6), example))
