"""Random small networks against brute force at two widths: what ``describe`` calls a chain is one, forward and backward.

A network is a list of pieces between the data and the output, and any of them may have a flaw. Either ``describe`` refuses
it, or everything it says is true: of a chain, that the output and the gradient of every weight are those of activations and
weights in a row, at the width described and at twice that; of any model, that its trained parameters have gradients, that
no number in it depends on the width, and that train mode is the same wherever it does not say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from torch_dmft.architecture import Architecture, describe
from torch_dmft.core.activation import activation
from torch_dmft.core.errors import UnsupportedModelError

SAMPLES, FEATURES, OUTPUTS, WIDTH = 5, 4, 3, 7

Piece = Callable[["Network", nn.Linear, Tensor], Tensor]


def without_gradients(net: Network, layer: nn.Linear, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


def in_place(net: Network, layer: nn.Linear, x: Tensor) -> Tensor:
    h = layer(x)
    h.view(-1).mul_(1.5)
    return h


def hook(net: Network, layer: nn.Linear, x: Tensor) -> Tensor:
    h = layer(x)
    if h.requires_grad:
        h.register_hook(lambda gradient: 1.5 * gradient)
    return h


PIECES: dict[str, Piece] = {
    "linear": lambda net, layer, x: layer(x),
    "tanh": lambda net, layer, x: torch.tanh(layer(x)),
    "relu": lambda net, layer, x: F.relu(layer(x)),
    "erf": lambda net, layer, x: torch.erf(layer(x)),
    "reshaped": lambda net, layer, x: torch.tanh(layer(x.unsqueeze(1).flatten(1))),
    "residual": lambda net, layer, x: torch.tanh(layer(x)) + (x if layer.in_features == layer.out_features else 0),
    "number": lambda net, layer, x: 0.3 * layer(x),
    "detached": lambda net, layer, x: torch.tanh(layer(x)).detach(),
    "detached branch": lambda net, layer, x: layer(x) + torch.tanh(layer(x).detach()),
    "data": lambda net, layer, x: torch.tanh(layer(x).data),
    "no gradients": without_gradients,
    "straight through": lambda net, layer, x: (h := layer(x)) + (h.sgn() - h).detach(),
    "hook": hook,
    "in place": in_place,
    "over width": lambda net, layer, x: layer(x) / net.width,
    "over root": lambda net, layer, x: layer(x) * (3 / layer.out_features) ** 0.5,
    "times root": lambda net, layer, x: torch.tanh(layer(x) * net.root),
    "shift over width": lambda net, layer, x: torch.tanh(layer(x) + 1 / layer.out_features),
    "half of the input": lambda net, layer, x: layer(torch.cat([x[:, ::2], x[:, ::2]], 1)[:, : x.shape[1]]),
    "zeros": lambda net, layer, x: layer(x) + (x if layer.in_features == layer.out_features else 0),
    "dropout": lambda net, layer, x: F.dropout(torch.tanh(layer(x)), 0.4, training=net.training),
    "noise": lambda net, layer, x: layer(x) + torch.rand(1) if net.training else layer(x),
    "other activation": lambda net, layer, x: torch.relu(layer(x)) if net.training else torch.tanh(layer(x)),
}
BEHIND: dict[str, Callable[[Tensor], Tensor]] = {
    "all": lambda f: f,
    "as rows": lambda f: f[:].unsqueeze(1).flatten(1),
    "some": lambda f: f[:, :2],
    "every other": lambda f: f[:, ::2],
    "flipped": lambda f: f.flip(1),
    "detached twice": lambda f: 2 * f - f.detach(),
    "doubled": lambda f: 2 * f,
}
AHEAD: dict[str, Callable[[Tensor], Tensor]] = {
    "all": lambda x: x,
    "some": lambda x: x[:, :3],
    "every other": lambda x: x[:, ::2],
    "permuted": lambda x: x.view(len(x), 2, 2).mT.flatten(1),
    "masked": lambda x: x * torch.tensor([1.0, 1.0, 0.0, 0.0]),
}


class Network(nn.Module):
    def __init__(self, ahead: str, pieces: Sequence[str], behind: str, width: int) -> None:
        super().__init__()
        self.width, self.root = width, width**0.5
        inputs = AHEAD[ahead](torch.zeros(1, FEATURES)).shape[1]
        sizes = [inputs, *(width for _ in pieces)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.readout = nn.Linear(width, OUTPUTS)
        self.names = ahead, tuple(pieces), behind
        for piece, layer in zip(pieces, self.layers, strict=True):
            for parameter in layer.parameters() if piece == "zeros" else ():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        ahead, pieces, behind = self.names
        x = AHEAD[ahead](x)
        for piece, layer in zip(pieces, self.layers, strict=True):
            x = PIECES[piece](self, layer, x)
        return BEHIND[behind](self.readout(x))


def chain(net: nn.Module, found: Architecture, x: Tensor) -> Tensor:
    """Weights and the activations found, in a row."""
    for layer in found.layers:
        h = F.linear(x, net.get_parameter(layer.weight), net.get_parameter(layer.bias))
        x = h if layer.activation is None else activation(layer.activation).function(h)
    return x


def gradients(net: nn.Module, outputs: Tensor) -> list[Tensor | None]:
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    weights = torch.linspace(1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    return list(torch.autograd.grad((weights * outputs).sum(), trained, allow_unused=True))


def follows_the_limit_of_its_gradients(net: Network, x: Tensor) -> bool:
    """Whether autograd's gradient of the readout's input is that of finite differences: no cut, no hook."""
    parameter = next(one for one in net.parameters() if one.requires_grad)
    direction, step = torch.ones_like(parameter), 1e-6
    (gradient,) = torch.autograd.grad(net(x).square().sum(), [parameter], allow_unused=True)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.add_(sign * step * direction)
        values.append(float(net(x).square().sum()))
        with torch.no_grad():
            parameter.add_(-sign * step * direction)
    slope = (values[0] - values[1]) / (2 * step)
    return gradient is not None and abs(float((gradient * direction).sum()) - slope) < 1e-4 * (1 + abs(slope))


def hold(ahead: str, pieces: Sequence[str], behind: str, frozen: int) -> Architecture | None:
    """Hold what ``describe`` says of a network against the truth; None if it is refused."""
    torch.manual_seed(len(pieces) + 7 * frozen)
    narrow, wide = (Network(ahead, pieces, behind, width).double() for width in (WIDTH, 2 * WIDTH))
    for net in (narrow, wide):
        net.layers[:frozen].requires_grad_(False)
    x = torch.randn(SAMPLES, FEATURES, dtype=torch.double)
    try:
        found = describe(narrow, x)
    except UnsupportedModelError:
        return None
    assert found.outputs == narrow(x).shape[1]
    assert not set(pieces) & {"over width", "over root", "times root", "shift over width"}
    differs = bool(set(pieces) & {"dropout", "noise", "other activation"})
    assert bool(found.train_differs) is differs
    for net in (narrow.eval(), wide.eval()):
        if not set(pieces) & {"relu", "straight through"}:  # whose slopes have jumps
            assert follows_the_limit_of_its_gradients(net, x)
        assert all(gradient is not None for gradient in gradients(net, net(x)))
        if found.is_chain:
            by_hand = chain(net, found, x)
            torch.testing.assert_close(net(x), by_hand)
            torch.testing.assert_close(gradients(net, net(x)), gradients(net, by_hand))
            torch.testing.assert_close(net.train()(x), by_hand)
    return found


@pytest.mark.parametrize("cut", ["data", "detached", "no gradients"])
def test_a_frozen_front_that_is_detached_hides_no_number(cut: str) -> None:
    """The copy at another width is as frozen as the model: if it were not, nothing would be compared."""
    assert hold("all", [cut, "over root"], "all", frozen=1) is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    ahead=st.sampled_from(sorted(AHEAD)) | st.just("all"),
    pieces=st.lists(
        st.sampled_from(["linear", "tanh", "relu", "erf"]) | st.sampled_from(sorted(PIECES)), min_size=1, max_size=4
    ),
    behind=st.just("all") | st.sampled_from(sorted(BEHIND)),
    frozen=st.sampled_from([0, 0, 1]),
)
def test_a_network_is_described_as_it_is_or_refused(ahead: str, pieces: list[str], behind: str, frozen: int) -> None:
    hold(ahead, pieces, behind, min(frozen, len(pieces)))


@pytest.mark.parametrize("piece", sorted(PIECES))
@pytest.mark.parametrize("place", [0, 1])
def test_every_piece_alone(piece: str, place: int) -> None:
    pieces = ["tanh", "relu", "erf"]
    pieces[place] = piece
    found = hold("all", pieces, "all", 0)
    plain = {"linear", "tanh", "relu", "erf"} | ({"reshaped"} if place == 0 else set())
    assert (found is not None and found.is_chain) is (piece in plain)
    if piece in {"residual", "number", "zeros", "dropout", "noise", "other activation", "half of the input"}:
        assert found is not None  # not refused for another reason


@pytest.mark.parametrize("name", sorted(AHEAD))
def test_everything_ahead_alone(name: str) -> None:
    found = hold(name, ["tanh"], "all", 0)
    assert found is not None
    assert found.is_chain is (name == "all")


@pytest.mark.parametrize("name", sorted(BEHIND))
def test_everything_behind_alone(name: str) -> None:
    found = hold("all", ["tanh"], name, 0)
    assert (found is None) is (name == "detached twice")
    assert found is None or found.is_chain is (name in {"all", "as rows"})
