"""What is measured at every place, against the same written out by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_dmft.referee import Setup, set_up
from torch_dmft.referee.look import OUTPUTS, SCORES, differences, look


def rms(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def trained(factory: Any, steps: int = 3, data: Any = None) -> tuple[Setup, nn.Module, Any, dict[Any, Any]]:
    """A set-up after some steps, the model before them, the batch, and what is found."""
    setup = set_up(factory, 8, 0, data)
    batch = next(setup.batches(0))
    before = copy.deepcopy(setup.model)
    first = look(setup, batch)
    for _ in range(steps):
        setup.step(batch)
    return setup, before, batch, differences(first, look(setup, batch))


class Scaled(nn.Module):
    """Numbers behind an embedding, in front of two products, and behind one of these."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(5, width), nn.LayerNorm(width)
        self.one, self.two, self.head = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.norm((self.tokens(tokens) * 8).mean(1)) / 4
        return self.head((self.one(h) * 3 + self.two(h)).relu()[:, None] / 2 / 5)


def test_a_number_belongs_to_the_product_behind_or_before_which_it_stands() -> None:
    setup, before, batch, found = trained(Scaled)
    old: Any = before
    sizes = {place[0]: one for place, one in found.items()}
    scales = {name: one.scale for name, one in sizes.items() if name.endswith("weight")}
    expected = {"tokens.weight": 1.0, "norm.weight": 1.0, "one.weight": 0.25, "two.weight": 0.25, "head.weight": 0.1}
    assert scales == pytest.approx(expected)
    with torch.no_grad():
        normed = old.norm((old.tokens(batch[0]) * 8).mean(1))
        assert sizes["tokens.weight"].start == pytest.approx(8 * rms(old.tokens(batch[0])), rel=1e-4)
        assert sizes["norm.weight"].start == pytest.approx(rms(normed), rel=1e-4)
        assert sizes["one.weight"].start == pytest.approx(3 * rms(normed / 4 @ old.one.weight.T), rel=1e-4)
        hidden = (old.one(normed / 4) * 3 + old.two(normed / 4)).relu()
        assert sizes["head.weight"].start == pytest.approx(rms(hidden / 10 @ old.head.weight.T), rel=1e-4)
        assert sizes["two.weight"].start == pytest.approx(rms(normed / 4 @ old.two.weight.T), rel=1e-4)
        assert sizes["two.weight"].read == pytest.approx(rms(normed / 4), rel=1e-4)
        moved = setup.model.one.weight - old.one.weight  # type: ignore[operator, union-attr]
        expected = 3 * rms(moved) * sizes["one.weight"].taken * 8**0.5
        assert sizes["one.weight"].unrelated == pytest.approx(expected, rel=1e-4)
        assert sizes["norm.weight"].unrelated == 0


def test_terms_of_every_layer_are_those_written_out() -> None:
    def factory(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(2, width, 3), nn.GroupNorm(2, width), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))

    def made(width: int) -> nn.Module:
        model = factory(width)
        model(torch.zeros(1, 2, 8))
        return model

    setup, before, batch, found = trained(made)
    now: Any = setup.model
    old: Any = before
    x = batch[0]
    xs, ys = [x], [x]
    for a, b in zip(old, now, strict=True):
        xs.append(a(xs[-1]))
        ys.append(b(ys[-1]))
    conv, norm, head = (next(s for p, s in found.items() if p[0] == f"{i}.weight") for i in (0, 1, 4))
    with torch.no_grad():
        assert conv.own == pytest.approx(rms(nn.functional.conv1d(x, now[0].weight - old[0].weight)), rel=1e-4)
        assert conv.carried == pytest.approx(0, abs=1e-12)
        assert conv.change == pytest.approx(rms(ys[1] - xs[1]), rel=1e-4)
        assert head.start == pytest.approx(rms(xs[4] @ old[4].weight.T), rel=1e-4)
        assert head.own == pytest.approx(rms(ys[4] @ (now[4].weight - old[4].weight).T), rel=1e-4)
        assert head.carried == pytest.approx(rms((ys[4] - xs[4]) @ old[4].weight.T), rel=1e-4)
        assert head.taken == pytest.approx(rms(ys[4]), rel=1e-4)
        gains = (now[1].weight - old[1].weight)[:, None]
        plain = nn.functional.group_norm(ys[1], 2)
        assert norm.own == pytest.approx(rms(gains * plain), rel=1e-4)
        bias = next(s for p, s in found.items() if p[0] == "4.bias")
        assert bias.own == pytest.approx(rms(now[4].bias - old[4].bias), rel=1e-4)
    assert found["", OUTPUTS, ""].change == pytest.approx(rms(ys[5] - xs[5]), rel=1e-4)


def test_a_wrong_term_would_be_seen() -> None:
    """W_0 x_t - W_0 x_0 is not (W_t - W_0) x_0: the two differ here by far more than the tolerance above."""
    _, _, _, found = trained(lambda width: nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2)), steps=30)
    one = next(sizes for place, sizes in found.items() if place[0] == "2.weight")
    assert abs(one.own / one.carried - 1) > 0.01


def test_numbers_after_a_product_count() -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.layer, self.factor = nn.Linear(4, 3, bias=False), factor

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.factor / 2

    sizes = []
    for factor in (2.0, 6.0):
        _, _, _, found = trained(lambda width, factor=factor: Scaled(factor))
        sizes.append(next(iter(found.values())).start)
    assert sizes[1] / sizes[0] == pytest.approx(3, rel=1e-4)


@pytest.mark.parametrize("by_hand", [False, True], ids=["sdpa", "softmax"])
def test_scores_are_what_the_softmax_takes(by_hand: bool) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            q, k = self.q(x), self.k(x)
            if by_hand:
                return (q @ k.transpose(-2, -1) / 6**0.5).softmax(-1) @ x
            return nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], x[:, None])[:, 0]

    x, y = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    setup, before, _, found = trained(lambda width: Attention(), data=[(x, y)])
    (scores,) = (sizes for place, sizes in found.items() if place[1] == SCORES)

    def by(model: Any) -> Tensor:
        return model.q(x) @ model.k(x).transpose(-2, -1) / 6**0.5

    assert scores.start == pytest.approx(rms(by(before)), rel=1e-4)
    assert scores.change == pytest.approx(rms(by(setup.model) - by(before)), rel=1e-3)
    assert scores.fan_in == 6


def test_looking_changes_nothing() -> None:
    def factory(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(width, 2)
        )

    def weights(*, looks: bool) -> list[Tensor]:
        setup = set_up(factory, 8, 0)
        batch = next(setup.batches(0))
        with setup.draws():
            for _ in range(4):
                if looks:
                    look(setup, batch)
                    look(setup, batch, trains=False)
                setup.step(batch)
        return [one.clone() for one in setup.model.state_dict().values()]

    assert all(torch.equal(a, b) for a, b in zip(weights(looks=True), weights(looks=False), strict=True))


def test_embeddings_and_ties_have_a_place_for_each_use() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.table(x) @ self.table.weight.T

    _, _, _, found = trained(lambda width: Tied())
    assert [place[1] for place in found if place[0]] == ["embedding", "mm"]
    assert all(math.isfinite(sizes.own) and sizes.own > 0 for place, sizes in found.items() if place[0])


class Sequences(nn.Module):
    """A readout of sequences whose logits are divided by a number, as in Granite of transformers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(5, width), nn.Linear(width, 3, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.tokens(tokens)) / 4


def test_a_number_belongs_to_a_product_of_sequences() -> None:
    """A linear layer of sequences puts out a view of a product."""
    _, before, batch, found = trained(Sequences)
    old: Any = before
    size = next(one for place, one in found.items() if place[0] == "head.weight")
    with torch.no_grad():
        assert size.start == pytest.approx(rms(old(batch[0])), rel=1e-4)
    assert size.scale == 1
