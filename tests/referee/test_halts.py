"""What moves at no width, or at some only, and outputs that are not the ones: none of it is called right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft.core.errors import InvalidInputError

WIDTHS = (32, 64, 128)


def right(width: int) -> tuple[nn.Sequential, list[dict[str, Any]]]:
    """A network and rates of SGD that are right."""
    layers = [nn.Linear(6, width, bias=False), nn.Linear(width, width, bias=False), nn.Linear(width, 3, bias=False)]
    sizes, rates = (6**-0.5, width**-0.5, 1 / width), (0.02 * width, 0.1, 0.1 / width)
    for layer, size in zip(layers, sizes, strict=True):
        nn.init.normal_(layer.weight, std=size)
    groups = [{"params": [layer.weight], "lr": rate} for layer, rate in zip(layers, rates, strict=True)]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]), groups


def check(factory: Any, **settings: Any) -> dmft.Verdict:
    return dmft.check(factory, WIDTHS, steps=4, seeds=2, most_seeds=4, **settings)


def halved(width: int) -> Any:
    """The hidden rate is a whole number of widths: 0 from the second on."""
    model, groups = right(width)
    groups[1]["lr"] = 0.1 * (WIDTHS[0] // width)
    return model, torch.optim.SGD(groups)


def frozen(width: int) -> Any:
    model, groups = right(width)
    model[2].weight.requires_grad_(width == WIDTHS[0])
    return model, torch.optim.SGD(groups)


def left_out(width: int) -> Any:
    model, groups = right(width)
    return model, torch.optim.SGD(groups if width == WIDTHS[0] else [groups[0], groups[2]])


@pytest.mark.parametrize("factory", [halved, frozen, left_out])
def test_a_weight_that_moves_at_the_narrowest_width_alone_is_wrong(factory: Any) -> None:
    found = check(factory)
    assert (found.word, found.exit_code) == ("wrong", 1)
    assert found.halted == {"2.weight": WIDTHS[1:]}
    assert "2.weight moves at some widths, and not at N = 64, 128. Its rate is 0.1, 0, 0" in " ".join(found.sentences)


def test_where_nothing_moves_nothing_is_decided() -> None:
    def warmup(width: int) -> Any:
        model, groups = right(width)
        optimizer = torch.optim.SGD(groups)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10))
        return model, optimizer

    found = check(warmup)
    assert (found.word, found.measured.seeds) == ("not decided", 2)  # more seeds would show nothing
    assert "A scheduler is not stepped here" in found.sentences[0]


def test_a_weight_that_is_frozen_everywhere_is_right_and_said() -> None:
    def factory(width: int) -> Any:
        model, groups = right(width)
        model[4].weight.requires_grad_(False)
        return model, torch.optim.SGD(groups)

    found = check(factory)
    assert found.word == "right", found
    assert not found.halted
    assert found.sentences[-1] == "Not judged, as nothing moves it at any width: 4.weight."
    assert len(check(lambda width: (lambda made: (made[0], torch.optim.SGD(made[1])))(right(width))).sentences) == 1


class Experts(nn.Module):
    """Two experts, of which rows are sent to the second at the narrowest width alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.body, self.groups = width, *right(width)
        self.expert = nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y + self.expert(x) if self.width == WIDTHS[0] else y


def test_a_parameter_without_a_gradient_is_no_fault() -> None:
    def factory(width: int) -> Any:
        model = Experts(width)
        return model, torch.optim.SGD([*model.groups, {"params": model.expert.parameters(), "lr": 0.01}])

    assert not check(factory).halted


class Pair(nn.Module):
    """Returns features before outputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.groups = right(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body[:4](x)
        return h, self.body[4](h)


def test_random_targets_of_features_are_refused() -> None:
    def factory(width: int) -> Any:
        model = Pair(width)
        return model, torch.optim.SGD(model.groups)

    with pytest.raises(
        InvalidInputError, match=r"one shape at every width.*classes of 32 at 32; random classes of 64 at 64"
    ):
        check(factory)
    squares = nn.MSELoss()
    with pytest.raises(InvalidInputError, match=r"random numbers of shape \(32,\) for each row"):
        check(lambda width: (*factory(width), squares))
    with pytest.raises(InvalidInputError, match=r"one shape at every width"):
        dmft.transfer(factory, WIDTHS, lrs=(1.0,), steps=2)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0])[1], batch[1])

    rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    batch = (rows, torch.arange(8, device="cpu") % 3)
    assert check(lambda width: (*factory(width), loss), data=[batch]).word == "right"
