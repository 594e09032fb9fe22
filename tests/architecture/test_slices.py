"""A chain reads every entry of the data and returns every output, once and in order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_dmft.architecture import describe

SAMPLES = 5


class Around(nn.Module):
    """A chain, with anything ahead of it, in it and behind it."""

    def __init__(self, inputs: int, outputs: int, ahead: Callable, inside: Callable, behind: Callable) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(inputs, 6), nn.Linear(6, 6), nn.Linear(6, outputs)
        self.ahead, self.inside, self.behind = ahead, inside, behind

    def forward(self, x: Tensor) -> Tensor:
        h = self.inside(torch.tanh(self.first(self.ahead(x))))
        return self.behind(self.last(torch.tanh(self.second(h))))


def same(x: Tensor) -> Tensor:
    return x


def of_data(ahead: Callable, *shape: int) -> Around:
    example = torch.randn(SAMPLES, *shape)
    return describe(Around(ahead(example).shape[-1], 2, ahead, same, same), example)


def of_features(inside: Callable) -> Around:
    return describe(Around(4, 2, same, inside, same), torch.randn(SAMPLES, 4))


def of_outputs(behind: Callable) -> Around:
    return describe(Around(4, 6, same, same, behind), torch.randn(SAMPLES, 4))


def zeroed(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 2:] = 0
    return x


def zeroed_through_a_view(x: Tensor) -> Tensor:
    x[:, 2:].zero_()
    return x


def copied(x: Tensor) -> Tensor:
    result = torch.zeros(len(x), 4)
    result[:, :2] = x[:, :2]
    return result


REORDERED = [
    lambda x: x[:, :3],
    lambda x: x[:, 1:],
    lambda x: x[:, ::2],
    lambda x: x[..., -2:],
    lambda x: x.narrow(1, 0, 3),
    lambda x: x.split(3, 1)[0],
    lambda x: x.chunk(2, 1)[1],
    lambda x: x.unfold(1, 2, 2)[:, 0],
    lambda x: x[:, [0, 2]],
    lambda x: x[:, torch.tensor([1, 0])],
    lambda x: x.index_select(1, torch.tensor([1, 0])),
    lambda x: torch.gather(x, 1, torch.zeros(len(x), 2, dtype=torch.long)),
    lambda x: torch.take_along_dim(x, torch.zeros(len(x), 2, dtype=torch.long), 1),
    lambda x: x.flip(1),
    lambda x: x.roll(1, 1),
    lambda x: x.sort(1).values,
    lambda x: x.repeat(1, 2),
    lambda x: torch.cat([x, x], 1),
    lambda x: x.view(len(x), 2, -1).transpose(1, 2).reshape(len(x), -1),
    lambda x: x.unsqueeze(1).expand(-1, 3, -1).flatten(1),
    lambda x: x[:, :1].expand(-1, 3),
    lambda x: x[:, :, None].expand(-1, -1, 2).flatten(1),
    lambda x: torch.as_strided(x, (len(x), 2), (4, 1)),
    lambda x: x.triu(),
    lambda x: x.cumsum(1),
    lambda x: x.reshape(-1, 2)[:SAMPLES],
    lambda x: x.mT.reshape(len(x), -1),
]


@pytest.mark.parametrize("take", [*REORDERED, zeroed, zeroed_through_a_view, copied])
def test_data_that_are_not_all_read_in_order_make_no_chain(take: Callable) -> None:
    assert not of_data(take, 4).is_chain


@pytest.mark.parametrize(
    "take", [lambda x: x[:, :1].flatten(1), lambda x: x.transpose(1, 2).flatten(1), lambda x: x[:, 0]]
)
def test_data_of_more_axes(take: Callable) -> None:
    assert not of_data(take, 2, 3).is_chain


def test_a_class_token_makes_no_chain() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("token", torch.ones(1, 2))
            self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(torch.cat([self.token.expand(len(x), -1), x], 1))))

    assert not describe(Token(), torch.randn(SAMPLES, 4)).is_chain


def test_tokens_as_samples_make_no_chain() -> None:
    found = of_data(lambda x: x.reshape(-1, 2), 4)
    assert not found.is_chain
    assert found.outputs == 4  # two for each half of a row


@pytest.mark.parametrize(
    "inside",
    [
        lambda h: h.unflatten(1, (2, -1)).transpose(1, 2).reshape(len(h), -1),
        lambda h: torch.cat([h[:, 3:], h[:, :3]], 1),
        lambda h: h.flip(1),
    ],
)
def test_neurons_in_another_order_make_no_chain(inside: Callable) -> None:
    assert not of_features(inside).is_chain


@pytest.mark.parametrize(
    ("behind", "outputs"),
    [
        (lambda f: f[:, :2], 2),
        (lambda f: f[:, ::2], 3),
        (lambda f: f[..., 0], 1),
        (lambda f: f.chunk(2, 1)[0], 3),
        (lambda f: f[:, [0, 1]], 2),
        (lambda f: f[:, :1].expand(-1, 6), 6),
        (lambda f: f.flip(1), 6),
        (lambda f: f.view(len(f), 2, 3).transpose(1, 2).flatten(1), 6),
        (lambda f: f.T, 6),
        (lambda f: f[1:], 4),
        (lambda f: (f[:, :2], f[:, 2:]), 6),
        (lambda f: f.relu(), 6),
    ],
)
def test_outputs_that_are_not_all_returned_in_order_make_no_chain(behind: Callable, outputs: int) -> None:
    found = of_outputs(behind)
    assert not found.is_chain
    assert found.outputs == outputs
    assert found.readout.out_features == 6


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 2, 2)])
@pytest.mark.parametrize(
    "behind", [same, lambda f: f.view(len(f), 2, 3), lambda f: f.unsqueeze(1), lambda f: f[:, :], lambda f: f[:]]
)
def test_reshapes_that_keep_all_in_order_are_part_of_a_chain(shape: tuple[int, ...], behind: Callable) -> None:
    example = torch.randn(SAMPLES, *shape)
    found = describe(Around(example[0].numel(), 6, lambda x: x[:].flatten(1), same, behind), example)
    assert found.is_chain
    assert found.outputs == 6


def test_one_sample_is_enough_for_a_chain() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0))
    for samples in (1, 2):
        found = describe(model, torch.randn(samples, 2, 3))
        assert found.is_chain
        assert found.outputs == 1
