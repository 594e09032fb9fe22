"""Models that have no scaling are refused, with every place and a remedy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_dmft.architecture import describe
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError


class Everything(nn.Module):
    """Attention, a raw parameter, an unused layer, a GRU, tied weights, spectral norm and a sum over a width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)
        self.shift = nn.Parameter(torch.ones(8))
        self.unused = nn.Linear(3, 3)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.query.weight
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = (self.query(h) @ self.key(h).mT).softmax(-1) @ h
        h, _ = self.gru(h + self.shift.exp())
        h = self.tied(self.spectral(h))
        return self.head(h / h.sum(-1, keepdim=True)).sum(1)


def test_all_places_are_listed_at_once() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        describe(Everything(), torch.randn(5, 6, 4))
    found = {(place.path, place.reason.split()[0]) for place in caught.value.places}
    assert found == {
        ("gru", "GRU"),
        ("spectral", "its"),
        ("query.weight, tied.weight", "share"),
        ("(model)", "`matmul`"),
        ("shift", "is"),
        ("unused.weight", "is"),
        ("unused.bias", "is"),
        ("(model)", "`sum`"),
    }
    assert all(place.remedy and place.path in str(caught.value) for place in caught.value.places)


class Around(nn.Module):
    """A readable place for odd operations: input layer, ``middle``, readout."""

    def __init__(self, middle, width: int = 8) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self, x, self.stem(x)))


class ScaledLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def chain(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), *middle, nn.Linear(8, 1))


def same_storage() -> nn.Module:
    model = chain(nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].weight = nn.Parameter(model[1].weight.detach().T)
    return model


def compiled_inside() -> nn.Module:
    model = chain(nn.Linear(8, 8))
    model[1].compile(backend="eager")
    return model


def not_a_number() -> nn.Module:
    model = chain()
    nn.init.constant_(model[0].weight, float("nan"))
    return model


@pytest.mark.parametrize(
    ("model", "path", "reason"),
    [
        (nn.Linear(8, 1), "(model)", "input and readout layer in one"),
        (Around(lambda self, x, h: self.inner(h) + x), "inner", "is not a width"),
        (Around(lambda self, x, h: h * self.inner(h)[:, :1]), "inner", "is not a width"),
        (Around(lambda self, x, h: self.inner(h).softmax(-1)), "(model)", "`softmax` over a width"),
        (Around(lambda self, x, h: nn.functional.normalize(self.inner(h))), "(model)", "`normalize` over a width"),
        (Around(lambda self, x, h: torch.einsum("ij,kj,kl->il", h, h, self.inner(h))), "(model)", "`einsum`"),
        (Around(lambda self, x, h: self.inner(h).cumsum(1)), "(model)", "`cumsum`"),
        (Around(lambda self, x, h: self.inner(h).view(-1, 2, 4).transpose(1, 2).reshape(-1, 8)), "(model)", "splits"),
        (
            Around(lambda self, x, h: nn.functional.linear(h, self.inner.weight, self.inner.bias)),
            "inner.weight",
            "`linear`",
        ),
        (Around(lambda self, x, h: self.inner(h) * self.inner.bias), "inner.bias", "`mul`"),
        (chain(ScaledLinear(8, 8)), "1", "does more"),
        (chain(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))), "1", "parametrization"),
        (chain(nn.PReLU()), "1", "PReLU"),
        (chain(nn.Unflatten(1, (8, 1)), nn.ConvTranspose1d(8, 8, 1), nn.Flatten()), "2", "ConvTranspose1d"),
        (
            Around(lambda self, x, h: nn.functional.scaled_dot_product_attention(h, h, self.inner(h))),
            "(model)",
            "cannot be followed",
        ),
        (same_storage(), "1.weight, 2.weight", "share"),
        (not_a_number(), "(output)", "NaN"),
        (nn.Sequential(nn.LayerNorm(8), *chain()), "0", "not on a width"),
        (nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 1)), "0", "not initialised"),
        (lambda: torch.compile(chain(), backend="eager"), "(model)", "compiled"),
        (compiled_inside, "1", "compiled"),
        (nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.AdaptiveAvgPool1d(1)), "2", "over a width"),
    ],
)
def test_a_place(model: nn.Module | Callable[[], nn.Module], path: str, reason: str) -> None:
    model = model if isinstance(model, nn.Module) else model()  # compiling takes time
    with pytest.raises(UnsupportedModelError) as caught:
        describe(model, torch.randn(5, 8))
    assert any(place.path == path and reason in place.reason for place in caught.value.places), str(caught.value)


def test_a_gate_of_one_neuron_is_no_readout() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gate, self.head = nn.Linear(3, 8), nn.Linear(8, 1), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            return self.head(h * torch.sigmoid(self.gate(h)))

    with pytest.raises(UnsupportedModelError, match=r"gate: its output is not a width"):
        describe(Gate(), torch.randn(5, 3))


def test_a_mean_over_a_width_is_no_readout() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x).mean(-1)

    with pytest.raises(UnsupportedModelError, match=r"layers\.2: the output averages over its width"):
        describe(Mean(), torch.randn(5, 3))


def test_a_path_through_numpy_is_cut() -> None:
    class Numpy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.from_numpy(self.stem(x).detach().numpy()))

    with pytest.raises(UnsupportedModelError, match=r"`numpy` takes numbers out of features"):
        describe(Numpy(), torch.randn(5, 3))


def test_a_wrong_example_is_the_caller_s_mistake() -> None:
    with pytest.raises(InvalidInputError, match=r"in '0'.*5x4 and 8x8"):
        describe(chain(), torch.randn(5, 4))


def test_a_tensor_made_out_of_sight_gives_itself_away() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            with torch._C.DisableTorchFunction():  # as in a compiled extension
                h = 2 * h
            return self.head(h)

    with pytest.raises(UnsupportedModelError, match="head: `linear` meets a tensor of unseen origin"):
        describe(Hidden(), torch.randn(5, 3))
