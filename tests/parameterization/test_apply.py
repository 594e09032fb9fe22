"""What parameterize does to a model, and what it leaves alone."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from tests.architecture.models import ResidualMLP, Tokens, cnn
from tests.parameterization.unit_form import UnitMLP, mlp, train
from torch_dmft.architecture import Role
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError
from torch_dmft.parameterization import Plan, parameterize
from torch_dmft.parameterization.optimizer import OPTIMIZERS


def jacobian_ntk(plan: Plan, x: torch.Tensor) -> torch.Tensor:
    """Sum over p of multipliers[p] J_p J_p^T by one backward pass for each sample."""
    rows = []
    for f in plan.model(x).squeeze(-1):
        gradients = torch.autograd.grad(f, list(plan.model.parameters()), retain_graph=True)
        scaled = [g * math.sqrt(m) for g, m in zip(gradients, plan.multipliers.values(), strict=True)]
        rows.append(torch.cat([g.flatten() for g in scaled]))
    return torch.stack(rows) @ torch.stack(rows).T


@pytest.mark.parametrize("gamma0", [0.2, 1.0, 3.0])
def test_the_ntk_is_that_of_the_paper(gamma0: float, generator: torch.Generator) -> None:
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    gain, width = 1.3, 12
    plan = parameterize(mlp(width), x, gamma0, gain=gain, generator=generator)
    unit = UnitMLP(plan, gain, gamma0)

    h1 = gain * x @ unit.w0.T / math.sqrt(5) + unit.b1
    h2 = gain * torch.tanh(h1) @ unit.w1.T / math.sqrt(width) + unit.b2
    g2 = (1 - torch.tanh(h2) ** 2) * unit.w2
    g1 = (1 - torch.tanh(h1) ** 2) * (gain * g2 @ unit.w1 / math.sqrt(width))
    phi = [x @ x.T / 5, torch.tanh(h1) @ torch.tanh(h1).T / width, torch.tanh(h2) @ torch.tanh(h2).T / width]
    grad = [g1 @ g1.T / width, g2 @ g2.T / width]
    ntk = gain**2 * (grad[0] * phi[0] + grad[1] * phi[1]) + phi[2] + grad[0] + grad[1]

    assert torch.allclose(jacobian_ntk(plan, x), ntk, rtol=0, atol=1e-10)


def test_a_readout_bias_starts_at_zero_and_adds_one_to_the_ntk(generator: torch.Generator) -> None:
    x = torch.randn(4, 5, generator=generator)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    plan = parameterize(model, x, 0.5, generator=generator)
    assert model[2].bias.item() == 0
    assert plan.rule("2.bias").role is Role.OUTPUT_BIAS
    assert plan.multipliers["2.bias"] == 1
    with_bias = jacobian_ntk(plan, x)
    gradient = torch.autograd.grad(model(x).sum(), model[2].bias)[0]
    assert gradient.item() == 4
    model[2].bias = None
    rest = Plan(model, plan.architecture, tuple(rule for rule in plan.rules if rule.name != "2.bias"))
    assert torch.allclose(with_bias, jacobian_ntk(rest, x) + 1, atol=1e-5)


def test_weights_are_normal_with_the_std_of_their_rule() -> None:
    generator = torch.Generator().manual_seed(1)
    plan = parameterize(cnn(64), torch.randn(2, 3, 8, 8), gamma0=2.0, generator=generator)
    expected = {"0": math.sqrt(2 / 27), "4": math.sqrt(2 / (9 * 32)), "10": 1 / (2.0 * 128)}
    for path, std in expected.items():
        weight = plan.model.get_parameter(f"{path}.weight").detach()
        assert plan.rule(f"{path}.weight").std == pytest.approx(std, rel=1e-12)
        z = (weight.square().mean() / std**2 - 1) / math.sqrt(2 / weight.numel())
        assert abs(z) <= 5


@pytest.mark.parametrize(
    ("activation", "gain"),
    [(nn.ReLU(), math.sqrt(2)), (nn.GELU(), math.sqrt(2)), (nn.SiLU(), math.sqrt(2)), (nn.Tanh(), 1), (nn.ELU(), 1)],
)
def test_the_gain_follows_the_activation(activation: nn.Module, gain: float) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), activation, nn.Linear(4, 1))
    plan = parameterize(model, torch.randn(2, 3))
    assert plan.rule("0.weight").gain == pytest.approx(gain)
    assert plan.rule("3.weight").gain == 1
    assert parameterize(model, torch.randn(2, 3), gain=1.7).rule("0.weight").gain == 1.7


def test_vectors_and_embeddings_keep_their_own_init() -> None:
    model = Tokens()
    own = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    plan = parameterize(model, torch.randint(0, 20, (2, 6)), gamma0=0.5)
    for rule in plan.rules:
        kept = torch.equal(model.get_parameter(rule.name), own[rule.name])
        assert kept is (rule.role in (Role.VECTOR, Role.EMBEDDING)), rule.name
        if kept:
            size = rule.std if rule.role is Role.EMBEDDING else 1.0
            assert rule.lr == pytest.approx(size**2 * 0.5**2 * 12)
            assert rule.adam_lr == pytest.approx(size * 0.5)
            found = own[rule.name].square().mean().sqrt().item()
            found = 1.0 if rule.role is Role.EMBEDDING else found  # what torch draws them with, not what they have
            if rule.name.endswith("bias") and found:  # torch's own: the size is that of what it was drawn from
                found = model.get_submodule(rule.name.removesuffix(".bias")).in_features ** -0.5 / 3**0.5
            assert rule.std == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("inner", [None, 5])
def test_small_embeddings_learn_as_large_ones_where_they_are_normalised(
    inner: int | None, optimizer: str, generator: torch.Generator
) -> None:
    def build(width: int) -> nn.Module:
        size = inner or width
        layers = (
            nn.Embedding(7, size),
            nn.RMSNorm(size, eps=0.0),
            nn.Linear(size, width),
            nn.Tanh(),
            nn.Linear(width, 1),
        )
        return nn.Sequential(*layers).double()

    tokens = torch.randint(0, 7, (5,), generator=generator)
    targets = torch.randn(5, 1, generator=generator, dtype=torch.float64)
    start = torch.randn(7, inner or 16, generator=generator, dtype=torch.float64)
    start /= start.square().mean().sqrt()  # a size near 1 counts as that of torch's own draw
    outputs = []
    for size in (1.0, 0.02):
        model = build(16)
        with torch.no_grad():
            model[0].weight.copy_(size * start)
            model[2].bias.zero_()
        plan = parameterize(model, tokens, wider=build(32), generator=torch.Generator().manual_seed(1))
        groups = plan.param_groups(0.1, optimizer=optimizer, eps=1e-30)
        outputs.append(train(model, OPTIMIZERS[optimizer](groups), tokens, targets, 5))
    assert not torch.allclose(outputs[0][0], outputs[0][-1])
    torch.testing.assert_close(outputs[1], outputs[0])


def test_keep_rescales_the_weights_there_are() -> None:
    model = ResidualMLP()
    nn.init.orthogonal_(model.blocks[0].weight)
    nn.init.zeros_(model.blocks[1].weight)
    own = model.blocks[0].weight.detach().clone()
    plan = parameterize(model, torch.randn(2, 5), init="keep")
    kept = model.blocks[0].weight.detach()
    assert torch.allclose(kept / kept.norm(), own / own.norm(), atol=1e-6)
    assert kept.square().mean().sqrt().item() == pytest.approx(plan.rule("blocks.0.weight").std, rel=1e-5)
    assert not model.blocks[1].weight.any()


def test_one_generator_gives_one_network() -> None:
    x = torch.randn(2, 5, dtype=torch.float64)
    random = torch.get_rng_state()
    draws = [parameterize(mlp(8), x, generator=torch.Generator().manual_seed(3)).model[2].weight for _ in range(2)]
    assert torch.equal(draws[0], draws[1])
    torch.set_rng_state(random)
    mlp(8)
    mlp(8)
    unseeded = torch.get_rng_state()
    torch.set_rng_state(random)
    for _ in range(2):
        parameterize(mlp(8), x, generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), unseeded)


def test_ntk_is_mean_field_at_a_small_gamma0(generator: torch.Generator) -> None:
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    plans = [
        parameterize(mlp(16), x, 0.25, generator=torch.Generator().manual_seed(1)),
        parameterize(mlp(16), x, scheme="ntk", generator=torch.Generator().manual_seed(1)),
    ]
    assert plans[1].gamma0 == 0.25
    assert plans[0].multipliers == plans[1].multipliers
    assert torch.equal(plans[0].model[2].weight, plans[1].model[2].weight)


def test_standard_is_the_identity() -> None:
    model = mlp(16)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = parameterize(model, torch.randn(4, 5, dtype=torch.float64), scheme="standard")
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    assert set(plan.multipliers.values()) == {1.0}
    assert plan.gamma0 == 0.25
    assert plan.rule("2.weight").gain == pytest.approx(1 / math.sqrt(3), abs=0.1)
    (group,) = {(g["lr"], g["weight_decay"]) for g in plan.param_groups(0.1, weight_decay=0.01)}
    assert group == (0.1, 0.01)


def test_modules_and_keys_stay() -> None:
    model = cnn()
    keys, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
    parameters = list(map(id, model.parameters()))
    plan = parameterize(model, torch.randn(2, 3, 8, 8))
    assert plan.model is model
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == kinds
    assert list(map(id, model.parameters())) == parameters
    assert not any(vars(parameter) for parameter in model.parameters())


def test_a_refused_model_is_untouched() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.PReLU(), nn.Linear(8, 1))
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match="PReLU"):
        parameterize(model, torch.randn(2, 5))
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "arguments",
    [
        {"scheme": "mup"},
        {"init": "orthogonal"},
        {"gamma0": 0.0},
        {"gamma0": float("nan")},
        {"gamma0": float("inf")},
        {"gain": -1.0},
        {"scheme": "ntk", "gamma0": 2.0},
        {"scheme": "standard", "gain": 2.0},
        {"scheme": "standard", "init": "keep"},
    ],
)
def test_arguments_without_a_meaning(arguments: dict) -> None:
    with pytest.raises(InvalidInputError):
        parameterize(mlp(8), torch.randn(2, 5, dtype=torch.float64), **arguments)


def test_roles_decide_the_scaling() -> None:
    plan = parameterize(mlp(8), torch.randn(2, 5, dtype=torch.float64), roles={"2": Role.INPUT})
    assert plan.rule("2.weight").role is Role.INPUT


def test_training_moves_the_loss(generator: torch.Generator) -> None:
    x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    y = torch.sin(x[:, :1])
    plan = parameterize(mlp(64), x, generator=generator)
    f = train(plan.model, torch.optim.SGD(plan.param_groups(0.3)), x, y, 100)
    assert (f[-1] - y).square().mean() < 0.1 * (f[0] - y).square().mean()


def test_weights_that_are_no_fresh_draw_are_not_lost_in_silence(generator) -> None:
    x = torch.randn(32, 5, generator=generator)

    def network() -> nn.Sequential:
        return nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    trained = network()
    optimizer = torch.optim.Adam(trained.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        (trained(x) - x[:, :1].sin()).square().mean().backward()
        optimizer.step()
    orthogonal = network()
    nn.init.orthogonal_(orthogonal[2].weight)
    for model, name in ((trained, "2.weight"), (orthogonal, "2.weight")):
        before = model[2].weight.detach().clone()
        with pytest.warns(UserWarning, match=f"drawn anew: .*{name}"):
            plan = parameterize(model, x)
        plan.undo()
        assert torch.equal(model[2].weight, before)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plan = parameterize(model, x, init="keep")
        torch.testing.assert_close(model[2].weight, before * plan.rescaled[name])
        assert f"{max(plan.rescaled.values()):.3g}" in str(plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(20):
            torch.manual_seed(seed)
            parameterize(network(), x)


@pytest.mark.parametrize("init", ["normal", "keep"])
def test_zero_stays_zero_unless_everything_is(init, generator) -> None:
    x = torch.randn(4, 5, generator=generator)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))
    nn.init.zeros_(model[2].weight)
    parameterize(model, x, init=init)
    assert not model[2].weight.any()
    assert model[0].weight.any()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    parameterize(model, x, init=init)
    assert bool(model[2].weight.any()) is (init == "normal")


def test_what_one_instance_assumes_is_said(generator) -> None:
    x = torch.randn(4, 5, generator=generator)
    model = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 64), nn.Linear(64, 1))
    with pytest.warns(UserWarning, match=r"2 \(4\): taken for widths that grow with the others \(64\)"):
        plan = parameterize(model, x)
    assert "taken for widths" in " ".join(str(plan).split())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parameterize(model, x, roles={"2": "hidden"})


def test_untouched_weights_keep_every_number_and_their_sizes_are_gains(generator) -> None:
    x = torch.randn(4, 5, generator=generator)
    model = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    plan = parameterize(model, x, gamma0=0.5, init="untouched")
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))
    for name, width in (("0.weight", 5), ("2.weight", 32)):
        rule, size = plan.rule(name), float(model.get_parameter(name).detach().square().mean().sqrt())
        assert rule.gain == pytest.approx(size * width**0.5)
        assert rule.lr == pytest.approx(size**2 * 0.25 * 32)
    readout = plan.rule("4.weight")
    assert readout.lr == pytest.approx(1 / 32)
    assert readout.std == pytest.approx(float(model[4].weight.square().mean().sqrt()))


def test_a_step_of_untouched_weights_moves_features_with_the_square_of_gamma0(generator) -> None:
    """The readout is what it is, so that gamma0 enters by the rates of the layers before it alone."""
    x = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    y = 0.1 * torch.randn(16, 1, generator=generator, dtype=torch.float64)
    changes = []
    for gamma0 in (0.1, 0.2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1)).double()
        start, features = model(x).detach(), model[:3](x).detach()
        plan = parameterize(model, x, gamma0=gamma0, init="untouched")
        optimizer = torch.optim.SGD(plan.param_groups(1e-3))
        (model(x) - start - y).square().mean().backward()
        optimizer.step()
        changes.append(float((model[:3](x) - features).detach().norm()))
    assert changes[1] / changes[0] == pytest.approx(4.0, rel=1e-2)
