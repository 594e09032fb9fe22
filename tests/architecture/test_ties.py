"""An embedding that is the readout as well is one parameter with two layers; all other shared weights are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft.architecture import Role, describe
from torch_dmft.architecture.widen import materialise, widened
from torch_dmft.core.errors import UnsupportedModelError
from torch_dmft.core.multiplied import multiplied
from torch_dmft.parameterization.effective import effective_scaling

VOCABULARY = 7
TOKENS = torch.tensor([[4, 3, 0], [2, 1, 2], [6, 3, 4], [5, 2, 0]], device="cpu")


class Language(nn.Module):
    """Tokens, a stream of one branch or a layer on its own, and the readout, in the order that is asked for."""

    def __init__(
        self, width: int = 16, *, first: str = "tokens", bias: bool = False, stream: bool = True, head: type = nn.Linear
    ) -> None:
        super().__init__()
        for name in ("tokens", "head") if first == "tokens" else ("head", "tokens"):
            made = nn.Embedding(VOCABULARY, width) if name == "tokens" else head(width, VOCABULARY, bias=bias)
            setattr(self, name, made)
        self.mix, self.stream = nn.Linear(width, width, bias=False), stream
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        h = h + torch.tanh(self.mix(h)) if self.stream else torch.tanh(self.mix(h))
        result: Tensor = self.head(h.mean(1))
        return result


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("first", ["tokens", "head"])
def test_both_layers_have_one_weight_and_one_axis(first: str, *, bias: bool, stream: bool) -> None:
    found = describe(Language(first=first, bias=bias, stream=stream), TOKENS)
    table, mix, head = found.layers
    assert (table.role, mix.role, head.role) == (Role.EMBEDDING, Role.HIDDEN, Role.READOUT)
    assert table.weight == head.weight == f"{first}.weight"
    assert head.bias == ("head.bias" if bias else None)
    assert table.out_axis == head.in_axis == mix.in_axis == mix.out_axis  # one number per neuron, wherever it stands
    assert table.multiplier is None
    assert head.multiplier is not None
    assert (head.multiplier.path, head.multiplier.number) == ("head", 1.0)
    assert not found.is_chain


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("first", ["tokens", "head"])
@pytest.mark.parametrize("gamma0", [0.3, 2.0])
def test_one_instance_is_scaled_as_two_are(gamma0: float, first: str, *, bias: bool) -> None:
    """The rules of the page on wrapping, by the second instance that they were derived with and by hand."""

    def factory(width: int) -> nn.Module:
        torch.manual_seed(0)
        model = Language(width, first=first, bias=bias)
        nn.init.normal_(model.tokens.weight, std=0.4)
        return model

    one, two = factory(32), factory(32)
    alone = dmft.parameterize(one, TOKENS, gamma0=gamma0, generator=torch.Generator().manual_seed(0))
    both = dmft.parameterize(two, TOKENS, gamma0=gamma0, wider=factory, generator=torch.Generator().manual_seed(0))
    assert alone.rules == both.rules
    torch.testing.assert_close(one(TOKENS), two(TOKENS))
    rule, size = alone.rule(f"{first}.weight"), float(one.tokens.weight.detach().square().mean().sqrt())
    assert (rule.role, rule.path) == (Role.EMBEDDING, "tokens")
    assert (rule.std, rule.lr, rule.adam_lr) == pytest.approx((size, size**2 * gamma0**2 * 32, size * gamma0))
    number = 1 / (size * gamma0 * 32)
    assert multiplied(one) == {"head": pytest.approx(number)}
    if bias:
        assert (alone.rule("head.bias").lr, alone.rule("head.bias").adam_lr) == pytest.approx((number**-2, 1 / number))
    assert any("reads out with" in note for note in alone.notes)


def test_undo_and_checkpoints() -> None:
    model = Language(32)
    before, state = model(TOKENS), copy.deepcopy(model.state_dict())
    plan = dmft.parameterize(model, TOKENS, gamma0=0.5)
    other = Language(32)
    again = dmft.parameterize(other, TOKENS, gamma0=0.5)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(plan.state_dict())
    assert torch.equal(other(TOKENS), model(TOKENS))
    assert not torch.allclose(model(TOKENS), before)
    plan.undo()
    assert not multiplied(model)
    assert torch.equal(model(TOKENS), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("first", ["tokens", "head"])
def test_a_wider_copy_is_tied(first: str) -> None:
    model = Language(first=first, bias=True)
    found = describe(model, TOKENS)
    wide = widened(model, found, 40)
    materialise(wide, next(model.parameters()))
    assert wide.head.weight is wide.tokens.weight
    assert wide.tokens.weight.shape == (VOCABULARY, 40)
    assert [*dict(wide.named_parameters())] == [*dict(model.named_parameters())]
    again = describe(wide, TOKENS, like=found)
    assert [asdict(layer) | {"fan_in": 0, "in_features": 0, "out_features": 0} for layer in again.layers] == [
        asdict(layer) | {"fan_in": 0, "in_features": 0, "out_features": 0} for layer in found.layers
    ]
    assert model.head.weight is model.tokens.weight


class Capped(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


class Two(Language):
    """Two readouts of one table."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(16, VOCABULARY, bias=False)
        self.second.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.second(self.tokens(x).mean(1))


class Sliced(Language):
    """Half of the stream, beside half of another."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        return self.head(torch.cat([self.mix(h), torch.tanh(self.mix(h))], -1).mean(1))


class Inside(Language):
    """The table reads out in the middle, where a softmax weights its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        return self.last(torch.softmax(self.head(torch.tanh(self.mix(h))), -1) @ self.tokens.weight).mean(1)


class Autoencoder(nn.Module):
    """The decoder is the transpose of the encoder: two tensors on one memory."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, width, bias=False), nn.Linear(width, 5, bias=False)
        self.decoder.weight = nn.Parameter(self.encoder.weight.detach().T)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.decoder(torch.tanh(self.encoder(x)))
        return result


REFUSED: dict[Callable[[], nn.Module], str] = {
    lambda: Language(head=Capped): r"tokens\.weight, head\.weight: share one tensor .*that reads out",
    Two: r"tokens\.weight, head\.weight, second\.weight: share one tensor",
    Sliced: r"head: reads out, with the weight of tokens, an axis that is put together from others",
    Inside: r"tokens\.weight: is used by .* outside the layer that owns it",
    Autoencoder: r"encoder\.weight, decoder\.weight: share one tensor",
}


@pytest.mark.parametrize("make", REFUSED)
def test_other_ties_are_refused_by_name(make: Callable[[], nn.Module]) -> None:
    example = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) if make is Autoencoder else TOKENS
    with pytest.raises(UnsupportedModelError, match=REFUSED[make]):
        describe(make(), example)


def test_a_role_that_is_given_is_none_for_a_tie() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"head: shares one tensor with tokens and they are hidden and embed"
    ):
        describe(Language(), TOKENS, roles={"head": "hidden"})


def test_it_is_no_mean_field_network_as_it_is() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"head: its weight is tokens\.weight, which makes features as well"
    ):
        effective_scaling(Language(), TOKENS, 0.1)
