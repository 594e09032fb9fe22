"""Roles by comparing two widths: what differs is a width, and what the forward pass does with a width has to balance."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft
from tests import transformer
from tests.architecture.models import ResidualMLP
from tests.uses.factories import D, P, body, data, square
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError
from torch_dmft.measurement import empirical_ntk


def roles(plan: dmft.Plan) -> dict[str, str]:
    return {rule.name: str(rule.role) for rule in plan.rules}


def normed(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(D, width), nn.ReLU(), nn.LayerNorm(width), nn.Linear(width, 2))


def images(width: int) -> nn.Module:
    norm = nn.BatchNorm2d(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), norm, nn.GELU(), nn.Conv2d(width, width, 3), nn.Flatten(), nn.Linear(16 * width, 2)
    )


def tokens(width: int) -> nn.Module:
    return transformer.Transformer(width)


SHAPES = {images: (3, 8, 8), tokens: (transformer.TOKENS, transformer.FEATURES)}


@pytest.mark.parametrize("factory", [ResidualMLP, tokens, images, normed])
def test_two_widths_agree_with_one_instance_where_that_is_understood(factory, generator) -> None:
    x = data(generator, *SHAPES.get(factory, (D,)))
    model = factory(16).double()
    alone = dmft.describe(model, x)
    both = dmft.describe(model, x, wider=factory)
    assert both == alone
    plain = dmft.describe(model, x, wider=factory, outputs=lambda out: out)  # by the two widths alone
    assert [layer.role for layer in plain.layers] == [layer.role for layer in alone.layers]
    assert [layer.fan_in for layer in plain.layers] == [layer.fan_in for layer in alone.layers]
    assert {v.name: v.role for v in plain.vectors} == {v.name: v.role for v in alone.vectors}
    for layer, other in zip(plain.layers, alone.layers, strict=True):
        assert (layer.in_axis is None, layer.out_axis is None) == (other.in_axis is None, other.out_axis is None)
        assert layer.activation == other.activation


def linear(into: int | None, out: int | None = None) -> Callable[[int], nn.Module]:
    """A linear layer; None stands for the width."""
    return lambda n: nn.Linear(into or n, out or n)


def parameter(*shape: int | None) -> Callable[[int], nn.Parameter]:
    return lambda n: nn.Parameter(torch.randn([size or n for size in shape]))


def lstm(width: int) -> nn.Module:
    return nn.LSTM(width, width, batch_first=True)


def experts(model: nn.Module, h: Tensor) -> Tensor:
    return torch.einsum("pi,eio->peo", h, model.e).mean(1)


def rms_norm(model: nn.Module, h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6) * model.g


ROLES: dict[str, tuple[Any, dict[str, str]]] = {
    "a rank": (
        body(lambda m, h: m.w(h) + m.b(m.a(h)), w=square, a=linear(None, 3), b=linear(3)),
        {"a.weight": "code", "a.bias": "inner", "b.weight": "input", "b.bias": "vector", "w.weight": "hidden"},
    ),
    "a gate": (
        body(lambda m, h: h * torch.sigmoid(m.g(h)), g=linear(None, 1)),
        {"g.weight": "code", "g.bias": "inner"},
    ),
    "a chain of codes": (
        body(lambda m, h: m.c(m.b(torch.tanh(m.a(h)))), a=linear(None, 4), b=linear(4, 3), c=linear(3)),
        {"a.weight": "code", "b.weight": "inner", "b.bias": "inner", "c.weight": "input"},
    ),
    "slopes and gains": (
        body(lambda m, h: m.p(h) * m.s, p=lambda n: nn.PReLU(), s=parameter(None)),
        {"p.weight": "inner", "s": "vector"},
    ),
    "a recurrent net": (
        body(lambda m, h: m.r(h[:, None].expand(-1, 3, -1))[0][:, -1], r=lstm),
        {"r.weight_ih_l0": "hidden", "r.weight_hh_l0": "hidden", "r.bias_ih_l0": "vector"},
    ),
    "a matrix on the right": (body(lambda m, h: h @ m.w, w=parameter(None, None)), {"w": "hidden"}),
    "GLU": (body(lambda m, h: F.glu(m.w(h)), w=lambda n: nn.Linear(n, 2 * n)), {"w.weight": "hidden"}),
    "an RMS norm by hand": (body(rms_norm, g=parameter(None)), {"g": "vector"}),
    "experts in one tensor": (body(experts, e=parameter(4, None, None)), {"e": "hidden"}),
}


@pytest.mark.parametrize(("factory", "expected"), ROLES.values(), ids=ROLES)
def test_roles_follow_from_what_grows(factory, expected, generator) -> None:
    x = data(generator)
    plan = dmft.parameterize(factory(16).double(), x, wider=factory)
    found = roles(plan)
    assert expected.items() <= found.items(), found
    assert found["first.weight"] == "input"
    assert found["head.weight"] == "readout"
    assert found["head.bias"] == "output bias"


def test_parameters_behind_the_readout(generator) -> None:
    class Model(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.read, self.last = nn.Linear(D, width), nn.Linear(width, 3), nn.Linear(3, 2)
            self.scale = nn.Parameter(torch.full((1,), 0.7))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.last(torch.tanh(self.read(torch.relu(self.first(x)))))

    model = Model(16).double()
    plan = dmft.parameterize(model, data(generator), wider=Model)
    found = roles(plan)
    assert found["read.weight"] == "readout"
    assert found["last.weight"] == found["last.bias"] == found["scale"] == "outer"
    assert float(model.scale) == pytest.approx(0.7)
    assert plan.rule("scale").lr == 1


class Scale(nn.Module):
    """A number that was stored when the model was built."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.register_buffer("number", torch.tensor([number]))

    def __rmul__(self, h: Tensor) -> Tensor:
        return h * self.number


def cosine(model: nn.Module, h: Tensor) -> Tensor:
    unit = F.normalize(h, dim=-1)
    return h * (unit.unsqueeze(1) @ unit.unsqueeze(2))[:, 0]


FAULTS: dict[str, Any] = {
    "divided by the width": body(lambda m, h: torch.tanh(h / h.shape[-1])),
    "a root, and the same weight without it": body(
        lambda m, h: torch.tanh(m.w(h)) + torch.tanh(m.w(h) * h.shape[-1] ** 0.5), w=square
    ),
    "a fourth root, stored": body(lambda m, h: torch.tanh(h * m.scale), scale=lambda n: Scale(n**-0.25)),
    "a sum over neurons": body(lambda m, h: torch.sigmoid((h * h).sum(-1, keepdim=True)) * h),
    "length one": body(lambda m, h: torch.tanh(F.normalize(m.w(h), dim=-1)), w=square),
    "a factor on the weight": body(lambda m, h: F.linear(h, m.w.weight * h.shape[-1] ** -0.5), w=square),
    "a dot product": body(lambda m, h: h + h * (h.unsqueeze(1) @ h.unsqueeze(2))[:, 0]),
}


@pytest.mark.parametrize("factory", FAULTS.values(), ids=FAULTS)
def test_numbers_that_depend_on_the_width_are_refused(factory, generator) -> None:
    with pytest.raises(UnsupportedModelError, match=r"at the other width|computed from"):
        dmft.parameterize(factory(16).double(), data(generator), wider=lambda: factory(32).double())


BALANCED: dict[str, Any] = {
    "a mean as a sum": body(lambda m, h: h * (h * h).sum(-1, keepdim=True) / h.shape[-1]),
    "length one times the root": body(lambda m, h: F.normalize(m.w(h), dim=-1) * h.shape[-1] ** 0.5, w=square),
    "cosines": body(cosine),
    "a number": body(lambda m, h: 0.3 * m.w(h), w=square),
}


@pytest.mark.parametrize("factory", BALANCED.values(), ids=BALANCED)
def test_numbers_that_balance_are_accepted(factory, generator) -> None:
    plan = dmft.parameterize(factory(16).double(), data(generator), wider=lambda: factory(32).double())
    assert roles(plan)["head.weight"] == "readout"


def test_heads_that_grow_in_number_need_nothing(generator) -> None:
    def build(width: int, heads: int) -> nn.Module:
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)
        return nn.Sequential(nn.Linear(D, width), layer, nn.Flatten(1, 2), nn.Linear(4 * width, 2)).double()

    plan = dmft.parameterize(build(16, 2), data(generator, 4, D), wider=build(32, 4))
    assert roles(plan)["1.self_attn.in_proj_weight"] == "hidden"
    assert not plan.architecture.folds


def test_computed_weights_are_refused_but_measured(generator) -> None:
    def normed(width: int) -> nn.Module:
        mix = nn.utils.parametrizations.weight_norm(nn.Linear(width, width))
        return nn.Sequential(nn.Linear(D, width), nn.Tanh(), mix, nn.Tanh(), nn.Linear(width, 2)).double()

    x = data(generator)
    with pytest.raises(UnsupportedModelError, match=r"computed from several parameters.*remove_parametrizations"):
        dmft.parameterize(normed(16), x, wider=normed)
    assert empirical_ntk(normed(16), x).isfinite().all()


def test_a_code_that_zeros_read_starts_at_random(generator) -> None:
    def lora(zero: bool) -> Any:
        def branch(n: int) -> nn.Module:
            up = nn.Linear(3, n, bias=False)
            return nn.init.zeros_(up.weight) is not None and up if zero else up

        return body(lambda m, h: m.w(h) + m.b(m.a(h)), w=square, a=lambda n: nn.Linear(n, 3, bias=False), b=branch)

    x = data(generator)
    stds = []
    for zero in (True, False):
        model = lora(zero)(64).double()
        model.first.requires_grad_(not zero)
        plan = dmft.parameterize(model, x, wider=lora(zero))
        stds.append(plan.rule("a.weight").std)
        assert bool(plan.notes) is not zero
        assert not zero or not plan.model.b.weight.any()
        assert plan.rule("a.weight").lr == pytest.approx(1 / 64)
    assert stds == [pytest.approx(1 / 8), pytest.approx(1 / 64)]
    plan = dmft.parameterize(lora(True)(64).double(), x, wider=lora(True))
    assert plan.rule("a.weight").std == pytest.approx(1 / 64)  # a random start would shake the layer before it
    assert "neither side has a gradient" in plan.notes[0]


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("seed", range(4))
def test_small_recurrent_nets_are_not_refused_by_chance(cell, seed, generator) -> None:
    class Recurrent(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.cell, self.head = cell(D, width, 2, batch_first=True), nn.Linear(width, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x)[0][:, -1])

    torch.manual_seed(seed)
    dmft.describe(Recurrent(8).double(), data(generator, 3, D)[:3], wider=Recurrent(16).double())


def test_a_share_that_vanishes_is_said(generator) -> None:
    class Nerf(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.mix, self.head = nn.Linear(D, width), nn.Linear(width + D, width), nn.Linear(width, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.mix(torch.cat([torch.relu(self.first(x)), x], -1))))

    plan = dmft.parameterize(Nerf(32).double(), data(generator), wider=Nerf)
    assert any(note.startswith("mix: about 5 of its 37 inputs do not grow") for note in plan.notes)
    assert "do not grow" in " ".join(str(plan).split())


def test_the_second_width_in_every_form_leaves_everything_as_it_was(generator) -> None:
    factory = ROLES["a rank"][0]
    x = data(generator)
    model, other = factory(16).double(), factory(24).double()
    before = [copy.deepcopy(one.state_dict()) for one in (model, other)]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = [dmft.describe(model, x, wider=wider) for wider in (other, lambda: factory(8).double(), factory)]
    assert torch.equal(torch.rand(3), expected)
    assert found[0] == found[1] == found[2]
    for one, state in zip((model, other), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
        assert one.training
        assert all(parameter.grad is None for parameter in one.parameters())


@pytest.mark.parametrize(
    ("wider", "said"),
    [
        (lambda: ROLES["a rank"][0](16), "parameters of the same shapes"),
        (lambda: ROLES["a gate"][0](32), "other parameters"),
        (lambda: 3, "a function that builds one"),
        (lambda width: ROLES["a rank"][0](16), "the same shapes at the widths"),
    ],
)
def test_what_is_no_second_width(wider, said, generator) -> None:
    with pytest.raises(InvalidInputError, match=said):
        dmft.parameterize(ROLES["a rank"][0](16).double(), data(generator), wider=wider)


def test_names_in_roles_and_outputs_without_a_second_width(generator) -> None:
    factory, x = ROLES["a rank"][0], data(generator)
    model = factory(16).double()
    found = dmft.describe(model, x, wider=factory, roles={"a.weight": "hidden"})
    assert {layer.path: str(layer.role) for layer in found.layers}["a"] == "hidden"
    with pytest.raises(InvalidInputError, match="must name layers"):
        dmft.describe(model, x, wider=factory, roles={"nothing": "hidden"})
    with pytest.raises(InvalidInputError, match="needs a second instance"):
        dmft.describe(model, x, outputs=0)


def test_a_wrapped_model_of_any_kind_is_recorded_with_its_rates(generator) -> None:
    class Dictionary(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.cell, self.head = nn.Embedding(7, width), nn.GRU(width, width), nn.Linear(width, 2)

        def forward(self, tokens: Tensor) -> dict[str, Tensor]:
            return {"logits": self.head(self.cell(self.embed(tokens).transpose(0, 1))[0][-1])}

    inputs = {"tokens": torch.randint(0, 7, (P, 3), generator=generator)}
    targets = torch.randn(P, 2, generator=generator, dtype=torch.float64)
    weights = []
    for records in (True, False):
        torch.manual_seed(2)  # embeddings keep the numbers that they were built with
        model = Dictionary(16).double()
        plan = dmft.parameterize(
            model, inputs, gamma0=0.7, wider=Dictionary, generator=torch.Generator().manual_seed(1)
        )
        optimizer = torch.optim.SGD(plan.param_groups(0.2))
        recorder = dmft.Recorder(plan, dmft.Probe(inputs, targets))
        with recorder.attach(optimizer) if records else torch.enable_grad():
            for _ in range(3):
                optimizer.zero_grad()
                F.mse_loss(model(**inputs)["logits"], targets).backward()
                optimizer.step()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        if records:
            jacobians = _ntk(plan, inputs)
            measured = recorder.look().ntk
            torch.testing.assert_close(measured.reshape(jacobians.shape), jacobians, rtol=1e-9, atol=1e-9)
            assert recorder.trajectory().width == 16
    assert torch.equal(*weights)


def _ntk(plan: dmft.Plan, inputs: dict[str, Tensor]) -> Tensor:
    """The NTK by one backward pass for every output, with the plan's rates."""
    f = plan.model(**inputs)["logits"].flatten()
    names, parameters = zip(*plan.model.named_parameters(), strict=True)
    rows = [torch.autograd.grad(number, parameters, retain_graph=True) for number in f]
    scaled = [
        torch.cat([math.sqrt(plan.rule(n).lr) * g.flatten() for n, g in zip(names, row, strict=True)]) for row in rows
    ]
    jacobian = torch.stack(scaled)
    return jacobian @ jacobian.T


class AfterFeatures(nn.Module):
    """A constant that is made where features of another scale stood a moment ago."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.readout = nn.Linear(5, width), nn.Linear(width + 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        (h * h.shape[-1]).sum()  # leads nowhere, and leaves its place in memory free
        return self.readout(torch.cat([h, torch.ones(len(x), 1)], 1))


def test_a_constant_has_no_scale_of_what_stood_in_its_place() -> None:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    for _ in range(5):  # whether memory is used again is chance
        assert dmft.describe(AfterFeatures(64), x, wider=AfterFeatures(128)).width == 65


@pytest.mark.parametrize("seed", range(3))
def test_close_widths_settle_roles_and_say_what_they_cannot_tell(seed, generator) -> None:
    torch.manual_seed(seed)
    factory = ROLES["a rank"][0]
    found = dmft.describe(factory(32).double(), data(generator), wider=factory(33).double())
    assert {layer.path: str(layer.role) for layer in found.layers}["a"] == "code"
    assert any("differ by a factor of 1.03 only" in note for note in found.notes)
