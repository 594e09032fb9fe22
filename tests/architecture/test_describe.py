"""Roles, fan-ins, width axes and activations, for every structure of model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.architecture.models import Gated, ResidualMLP, Tokens, cnn, resnet
from torch_dmft.architecture import Architecture, Layer, Role, describe
from torch_dmft.core.activation import ACTIVATIONS
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.parameterization import centered


def roles(architecture: Architecture) -> dict[str, str]:
    return {layer.path: layer.role.value for layer in architecture.layers}


def layer(architecture: Architecture, path: str) -> Layer:
    return next(layer for layer in architecture.layers if layer.path == path)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=3, max_size=6),
    names=st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=5, max_size=5),
    bias=st.booleans(),
    flatten=st.booleans(),
)
def test_every_chain_is_read_off_exactly(sizes: list[int], names: list[str], bias: bool, flatten: bool) -> None:
    modules: list[nn.Module] = [nn.Flatten(), nn.Dropout(0.0)] if flatten else []
    paths = []
    for fan_in, fan_out, name in zip(sizes, sizes[1:], names, strict=False):
        paths.append(str(len(modules)))
        modules += [nn.Linear(fan_in, fan_out, bias=bias), ACTIVATIONS[name].module()]
    shape = (3, sizes[0], 1) if flatten else (3, sizes[0])

    architecture = describe(nn.Sequential(*modules[:-1]), torch.ones(shape))

    hidden = len(paths) - 2
    assert [layer.path for layer in architecture.layers] == paths
    assert [layer.role for layer in architecture.layers] == [Role.INPUT, *[Role.HIDDEN] * hidden, Role.READOUT]
    assert [layer.fan_in for layer in architecture.layers] == sizes[:-1]
    assert [layer.out_features for layer in architecture.layers] == sizes[1:]
    assert [layer.bias is not None for layer in architecture.layers] == [bias] * len(paths)
    seen = [None if name == "linear" else name for name in names[: hidden + 1]]
    assert [layer.activation for layer in architecture.layers] == [*seen, None]
    assert [layer.out_axis for layer in architecture.layers[:-1]] == [
        layer.in_axis for layer in architecture.layers[1:]
    ]
    assert architecture.layers[0].in_axis is None
    assert architecture.layers[-1].out_axis is None
    assert architecture.is_chain
    assert architecture.row_independent
    assert architecture.width == sizes[-2]


def test_a_convolutional_network() -> None:
    architecture = describe(cnn(), torch.randn(2, 3, 8, 8))
    first, second, last = architecture.layers
    assert roles(architecture) == {"0": "input", "4": "hidden", "10": "readout"}
    assert (first.fan_in, second.fan_in, last.fan_in) == (27, 9 * 8 // 2, 16)
    assert (second.taps, second.in_features, second.out_features, second.kind) == (9, 8, 16, "conv")
    assert (first.activation, second.activation) == ("relu", "gelu")
    assert [(vector.name, vector.axis) for vector in architecture.vectors] == [
        ("1.weight", first.out_axis),
        ("1.bias", first.out_axis),
        ("5.weight", second.out_axis),
        ("5.bias", second.out_axis),
    ]
    assert not architecture.is_chain


def test_a_flattened_convolution_reads_every_position() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 6, 1))
    architecture = describe(model, torch.randn(3, 2, 8))
    assert roles(architecture) == {"0": "input", "3": "readout"}
    assert architecture.width == 24


def test_a_residual_stream_is_one_axis() -> None:
    architecture = describe(ResidualMLP(), torch.randn(3, 5))
    stream = layer(architecture, "stem").out_axis
    assert roles(architecture) == {"stem": "input", "blocks.0": "hidden", "blocks.1": "hidden", "head": "readout"}
    for block in architecture.layers[1:3]:
        assert (block.in_axis, block.out_axis, block.activation) == (stream, stream, None)
    assert {vector.axis for vector in architecture.vectors} == {stream}
    assert layer(architecture, "head").in_axis == stream
    assert not architecture.is_chain


def test_a_resnet_with_projected_skips() -> None:
    architecture = describe(resnet(), torch.randn(2, 3, 9, 9))
    found = roles(architecture)
    assert found.pop("0") == "input"
    assert found.pop("6") == "readout"
    assert set(found.values()) == {"hidden"}
    assert layer(architecture, "2.skip").out_axis == layer(architecture, "2.conv2").out_axis
    assert layer(architecture, "2.conv1").activation == "relu"
    assert layer(architecture, "2.conv1").out_axis != layer(architecture, "2.conv2").out_axis


def test_embeddings_and_a_module_used_twice() -> None:
    architecture = describe(Tokens(), torch.randint(0, 20, (3, 6)))
    found = {"token": "embedding", "position": "embedding", "up": "hidden", "down": "hidden", "head": "readout"}
    assert roles(architecture) == found
    assert layer(architecture, "up").activation == "tanh"
    assert layer(architecture, "token").out_axis == layer(architecture, "down").out_axis
    assert architecture.width == 12


def test_chunks_products_concatenation_and_several_outputs() -> None:
    architecture = describe(Gated(), (torch.randn(5, 4), torch.randn(5, 3)))
    assert roles(architecture) == {"stem": "input", "both": "hidden", "classes": "readout", "value": "readout"}
    assert layer(architecture, "stem").activation == "relu"
    assert layer(architecture, "both").activation is None
    by_name = describe(Gated(), {"context": torch.randn(5, 3), "x": torch.randn(5, 4)})
    assert by_name == architecture


@pytest.mark.parametrize(
    "head",
    [
        lambda f: f.squeeze(-1),
        lambda f: f[:, 0],
        lambda f: f.view(-1),
        lambda f: f.flatten(),
        lambda f: f.sum(1),
        lambda f: f.T,
        lambda f: f.unsqueeze(1).transpose(1, 2),
        lambda f: f.reshape(-1, 1, 1),
        lambda f: torch.stack([f, f], 1),
    ],
)
def test_a_readout_is_found_behind_any_reshape(head) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

        def forward(self, x: Tensor) -> Tensor:
            return head(self.layers(x))

    assert roles(describe(Model(), torch.randn(5, 3))) == {"layers.0": "input", "layers.2": "readout"}


@pytest.mark.parametrize(
    "join", [lambda a, b: torch.cat([a, b], 1), lambda a, b: torch.cat([a, b], 1).chunk(2, 1), lambda a, b: a + b]
)
def test_every_head_of_a_joined_output_is_a_readout(join) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.stem(x))
            return join(self.a(h), self.b(h))

    assert roles(describe(Heads(), torch.randn(5, 3))) == {"stem": "input", "a": "readout", "b": "readout"}


def test_a_convolution_can_be_the_readout() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3), nn.Flatten())
    assert roles(describe(model, torch.randn(2, 3, 8, 8))) == {"0": "input", "2": "readout"}


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)), "norm"),
        (nn.Sequential(nn.Linear(3, 4), nn.CELU(), nn.Linear(4, 1)), "unknown activation"),
        (nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.2), nn.Linear(4, 1)), "another slope"),
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 1)), "dropout"),
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.ReLU(), nn.Linear(4, 1)), "two activations"),
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Sigmoid()), "activation of the output"),
        (nn.Sequential(nn.Tanh(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), "activation of the data"),
    ],
)
def test_what_is_not_quite_a_chain(model: nn.Module, why: str) -> None:
    assert not describe(model, torch.randn(5, 3)).is_chain, why


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (F.leaky_relu, "leaky_relu"),
        (lambda x: F.leaky_relu(x, 0.2), None),
        (F.elu, "elu"),
        (lambda x: F.elu(x, alpha=0.5), None),
        (nn.SELU(inplace=True), "selu"),
        (torch.sin, "sin"),
        (F.softsign, "softsign"),
        (F.mish, "mish"),
        (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh"),
        (F.hardtanh, "hardtanh"),
        (lambda x: F.hardtanh(x, min_val=0.0), None),
        (lambda x: F.hardtanh(x, 0.0, 6.0), "relu6"),
        (F.relu6, "relu6"),
    ],
)
def test_activations_are_known_in_their_usual_form(activation: Callable, name: str | None) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(activation(self.a(x)))

    architecture = describe(Model(), torch.randn(5, 3))
    assert layer(architecture, "a").activation == name
    assert architecture.is_chain == (name is not None)


def test_a_layer_used_twice_is_no_chain() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, 1))
    architecture = describe(model, torch.randn(5, 3))
    assert [layer.path for layer in architecture.layers] == ["0", "2", "6"]
    assert not architecture.is_chain


def test_functional_activations_met_first() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.b(torch.relu_(self.a(x)))
            return self.c(h * torch.sigmoid(h))  # silu by hand is not the sigmoid it meets

    architecture = describe(Model(), torch.randn(5, 3))
    assert [layer.activation for layer in architecture.layers] == ["relu", None, None]


@pytest.mark.parametrize(("train", "independent"), [(True, False), (False, True)])
def test_batch_norm_couples_rows_in_train_mode_only(train: bool, independent: bool) -> None:
    assert describe(cnn().train(train), torch.randn(2, 3, 8, 8)).row_independent is independent


def test_a_mean_over_the_batch_couples_rows() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h - h.mean(0))

    assert not describe(Model(), torch.randn(5, 3)).row_independent


def test_roles_can_be_overruled() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    architecture = describe(model, torch.randn(5, 3), roles={"2": "input"})
    assert architecture.layers[1].role is Role.INPUT
    assert describe(model, torch.randn(5, 3), roles={"2.weight": Role.INPUT}) == architecture
    with pytest.raises(InvalidInputError, match="must name layers"):
        describe(model, torch.randn(5, 3), roles={"1": "input"})
    with pytest.raises(InvalidInputError, match="must be one of four"):
        describe(model, torch.randn(5, 3), roles={"2": "vector"})


def test_a_centered_model_is_described_as_the_model_inside() -> None:
    model = ResidualMLP()
    assert describe(centered(model), torch.randn(3, 5)) == describe(model, torch.randn(3, 5))


def test_nothing_is_disturbed() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("last", torch.zeros(()))
            self.first = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            self.last = self.last + 1  # a new tensor in place of the buffer
            return self.first(x) + 0 * torch.randn_like(x)

    model = nn.Sequential(Noisy(), *cnn()).train()
    model[5].eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    buffers = [id(buffer) for buffer in model.buffers()]
    example = torch.randn(2, 3, 8, 8)
    before, random = example.clone(), torch.get_rng_state()

    describe(model, example)

    assert torch.equal(example, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == flags
    assert [id(buffer) for buffer in model.buffers()] == buffers
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
