"""Parameters that a module of one's own adds to features or puts beside them: which axis is the width, and at which width."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft.architecture import Role
from torch_dmft.architecture.widen import materialise, widened
from torch_dmft.core.errors import UnsupportedModelError

TOKENS = torch.arange(12).reshape(4, 3) % 5
Join = Callable[[nn.Parameter, Tensor], Tensor]


class Holds(nn.Module):
    """Tokens, a parameter of some shape that meets them in some way, and a readout of the mean over positions."""

    def __init__(self, shape: tuple[int, ...], join: Join, width: int = 8) -> None:
        super().__init__()
        self.tokens, self.own, self.join = nn.Embedding(5, width), nn.Parameter(torch.randn(shape)), join
        self.mix, self.head = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.join(self.own, self.tokens(ids))
        result: Tensor = self.head(torch.tanh(self.mix(h)).mean(1))
        return result


def before(own: Tensor, h: Tensor) -> Tensor:
    return torch.cat([own.expand(len(h), -1, -1), h], dim=1)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Torch's own initial numbers are the same in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


CASES: dict[str, tuple[tuple[int, ...], Join, int]] = {
    "positions": ((3, 8), lambda own, h: h + own, 1),
    "in front": ((1, 3, 8), lambda own, h: own + h, 2),
    "the first of more": ((6, 8), lambda own, h: h + own[: h.shape[1]], 1),
    "one for all": ((8,), lambda own, h: h - own, 0),
    "features first": ((8, 3), lambda own, h: (h.transpose(1, 2) + own).transpose(1, 2), 0),
    "class token": ((1, 1, 8), before, 2),
    "two registers": ((1, 2, 8), before, 2),
    "repeated": ((1, 1, 8), lambda own, h: torch.cat([h, own.repeat(len(h), 1, 1)], dim=1), 2),
}


@pytest.mark.parametrize("name", CASES)
def test_the_width_is_the_axis_that_meets_neurons(name: str) -> None:
    shape, join, place = CASES[name]
    model = Holds(shape, join)
    found = dmft.describe(model, TOKENS)
    (vector,) = found.vectors
    assert (vector.name, vector.place, vector.size) == ("own", place, model.own.numel())
    assert vector.axis == found.layers[0].out_axis
    assert [layer.role for layer in found.layers] == [Role.EMBEDDING, Role.HIDDEN, Role.READOUT]
    wide = widened(model, found, 24)
    assert wide.own.is_meta
    materialise(wide, model.own, found.bare)
    assert [*wide.own.shape] == [24 if axis == place else size for axis, size in enumerate(shape)]
    assert wide(TOKENS).shape == (4, 2)
    again = dmft.describe(wide, TOKENS, like=found)
    assert again.vectors[0].place == place


@pytest.mark.parametrize("name", CASES)
def test_the_rule_is_that_of_two_widths(name: str) -> None:
    shape, join, place = CASES[name]

    def build(width: int) -> nn.Module:
        return Holds(tuple(width if axis == place else size for axis, size in enumerate(shape)), join, width)

    rules = []
    for settings in ({}, {"wider": build}):
        plan = dmft.parameterize(Holds(shape, join), TOKENS, gamma0=0.5, **settings)
        rule = plan.rule("own")
        rules.append((rule.role, rule.lr, rule.adam_lr))
    assert rules[0] == rules[1] == (Role.VECTOR, 2.0, 0.5)


def test_its_share_of_the_ntk_is_the_jacobians() -> None:
    plan = dmft.parameterize(Holds((1, 2, 8), before).double(), TOKENS)
    layerwise, exact = (dmft.empirical_ntk(plan, TOKENS, method=method) for method in ("layerwise", "jacobian"))
    torch.testing.assert_close(layerwise, exact, rtol=1e-10, atol=1e-10)
    plan.model.own.requires_grad_(False)
    assert not torch.allclose(dmft.empirical_ntk(plan, TOKENS), exact, rtol=1e-3)


@pytest.mark.parametrize(
    ("shape", "join"),
    [
        ((8, 8), lambda own, h: h @ own),
        ((8, 8), lambda own, h: h @ own.unsqueeze(0)),
        ((8,), lambda own, h: h * own + own),
        ((3, 8), lambda own, h: h + own[:, :1]),
    ],
    ids=["matrix", "matrix behind a view", "gain and shift", "no neurons"],
)
def test_other_uses_are_refused(shape: tuple[int, ...], join: Join) -> None:
    with pytest.raises(UnsupportedModelError, match=r"own: is (used by|a parameter outside of layers)"):
        dmft.describe(Holds(shape, join), TOKENS)


def test_a_parameter_added_to_outputs_is_refused() -> None:
    class Shifted(Holds):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) + self.own

    with pytest.raises(UnsupportedModelError, match="own: is a parameter outside of layers and has 0 axes"):
        dmft.describe(Shifted((2,), lambda own, h: h), TOKENS)
