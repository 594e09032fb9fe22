"""Muon has hidden matrices alone, and its steps mean the same at every width, with either scale of torch.optim.Muon."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests import transformer
from tests.architecture.models import cnn
from torch_dmft.architecture import Role
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.parameterization import MuonGroups, Plan, coordinate_check, muon, parameterize

SCALES = ("original", "match_rms_adamw")


def square(width: int) -> nn.Module:
    layers = (nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    return nn.Sequential(*layers)


def alone(width: int) -> nn.Module:
    """Its hidden matrix is all that is trained, so that nothing else moves its output."""
    model = square(width).requires_grad_(False)
    model[2].weight.requires_grad_(True)
    return model


def rectangular(width: int) -> nn.Module:
    """Up by 4 and down by 4, as the MLPs of transformers."""
    up, down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), up, nn.Tanh(), down, nn.Tanh(), nn.Linear(width, 1))


class Language(nn.Module):
    """An embedding, a hidden matrix and a norm, and a readout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(11, width), nn.Linear(width, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 11)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.norm(self.mix(self.embed(tokens)))).mean(1))


@pytest.fixture
def regression(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(16, 5, generator=generator)
    return x, torch.sin(x[:, :1])


@pytest.mark.parametrize("scale", SCALES)
def test_a_step_is_eta_gamma0_sqrt_of_out_over_in_in_spectral_norm(scale: str, generator: torch.Generator) -> None:
    for width, gamma0 in ((16, 0.5), (64, 2.0)):
        model = rectangular(width)
        x = torch.randn(3, 5, generator=generator)
        plan = parameterize(model, x, gamma0, generator=generator)
        groups, _ = plan.param_groups(0.1, optimizer="muon", adjust_lr_fn=scale)
        optimizer = torch.optim.Muon(groups, momentum=0.0)
        hidden = [model[2].weight, model[4].weight]
        before = [weight.detach().clone() for weight in hidden]
        for weight in hidden:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
        for weight, old in zip(hidden, before, strict=True):
            rows, columns = weight.shape
            unit = (weight - old).detach() / (0.1 * gamma0 * math.sqrt(rows / columns))
            values = torch.linalg.svdvals(unit)
            # Newton-Schulz leaves singular values between 0.68 and 1.13, in bfloat16 a few percent more.
            assert values.min() > 0.6
            assert values.max() < 1.25


@pytest.mark.parametrize(("factory", "gamma0"), [(square, 0.3), (rectangular, 2.0)])
def test_features_move_alike_at_every_width(factory, gamma0, regression, generator) -> None:
    check = coordinate_check(
        factory, *regression, lr=0.03, gamma0=gamma0, optimizer="muon", seeds=3, steps=3, generator=generator
    )
    assert check.passed, str(check)
    for layer, exponent in check.exponents.items():
        assert abs(exponent) <= max(0.05, 4 * check.exponent_errors[layer]), str(check)


def test_features_of_a_transformer_move_alike(generator: torch.Generator) -> None:
    inputs, targets = transformer.data(6, generator)
    check = coordinate_check(
        transformer.Transformer,
        inputs,
        targets,
        widths=(64, 128, 256),
        lr=0.01,
        optimizer="muon",
        seeds=3,
        steps=2,
        wider=False,
        generator=generator,
    )
    assert check.passed, str(check)


@pytest.mark.parametrize(
    ("wrong", "exponent"),
    [
        pytest.param(lambda rule, shape, *rest: rule.adam_lr * max(shape), -0.0, id="right, of square ones"),
        pytest.param(lambda rule, shape, *rest: rule.adam_lr, -1.0, id="Adam's rate"),
        pytest.param(lambda rule, shape, *rest: rule.adam_lr * max(shape) ** 1.5, 0.5, id="match_rms_adamw as it is"),
    ],
)
def test_a_wrong_rule_fails_in_the_hidden_matrix(wrong, exponent, regression, generator, monkeypatch) -> None:
    monkeypatch.setattr(muon, "muon_rate", wrong)
    check = coordinate_check(
        alone, *regression, widths=(64, 256), lr=0.003, optimizer="muon", seeds=2, steps=1, generator=generator
    )
    assert check.exponents == {"2": pytest.approx(exponent, abs=0.1)}, str(check)
    assert check.passed is (exponent == 0), str(check)


def test_roles_decide_and_every_parameter_is_in_one_group() -> None:
    tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0))
    plan = parameterize(Language(32), tokens)
    groups = plan.param_groups(0.02, optimizer="muon", adamw_lr=0.1, weight_decay=0.3, eps=1e-6)
    assert isinstance(groups, MuonGroups)
    names = {id(parameter): name for name, parameter in plan.model.named_parameters()}
    held = [[names[id(p)] for group in part for p in group["params"]] for part in groups]
    assert held[0] == ["mix.weight"]
    assert sorted(held[0] + held[1]) == sorted(names.values())
    assert [group["name"] for group in groups.muon] == ["hidden, fan-in 32"]
    alone = {group["name"]: group for group in plan.param_groups(0.1, optimizer="adamw", weight_decay=0.3, eps=1e-6)}
    for group in groups.adamw:
        assert {**group, "params": 0} == {**alone[group["name"]], "params": 0}
    optimizers = torch.optim.Muon(groups.muon), torch.optim.AdamW(groups.adamw)
    plan.check_optimizers(*optimizers)
    # A step without a gradient decays every parameter by 1 - eta lambda of its own base rate.
    before = {name: parameter.detach().clone() for name, parameter in plan.model.named_parameters()}
    for parameter in plan.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    for name, parameter in plan.model.named_parameters():
        factor = 1 - (0.02 if name == "mix.weight" else 0.1) * 0.3
        assert torch.allclose(parameter, factor * before[name], rtol=1e-6, atol=0), name


def test_convolutions_and_frozen_matrices_are_left_out() -> None:
    plan = parameterize(cnn(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert Role.HIDDEN in {rule.role for rule in plan.rules}
    with pytest.raises(InvalidInputError, match=r"at least one hidden matrix.*0\.weight \(input\)"):
        plan.param_groups(0.1, optimizer="muon")
    model = rectangular(16)
    model[2].requires_grad_(False)
    plan = parameterize(model, torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    (group,), _ = plan.param_groups(0.1, optimizer="muon")
    assert [id(p) for p in group["params"]] == [id(model[4].weight)]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["embed.weight"], r"embed\.weight \(embedding\)"),
        (["mix.weight", "head.weight", "norm.bias"], r"head\.weight \(readout\).*norm\.bias \(vector\)"),
        (["mixed.weight"], "no parameter of the model"),
    ],
)
def test_what_is_no_hidden_matrix_is_refused(names, said) -> None:
    plan = parameterize(Language(32), torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0)))
    with pytest.raises(InvalidInputError, match=rf"hidden matrices only.*{said}.*Muon's are mix\.weight"):
        plan.param_groups(0.1, optimizer="muon", matrices=names)


def test_settings_of_muon_with_another_optimizer_are_refused(regression) -> None:
    plan = parameterize(square(16), regression[0])
    with pytest.raises(InvalidInputError, match="`adjust_lr_fn` is a setting of Muon"):
        plan.param_groups(0.1, optimizer="sgd", adjust_lr_fn="original")
    with pytest.raises(InvalidInputError, match="adjust_lr_fn"):
        plan.param_groups(0.1, optimizer="muon", adjust_lr_fn="spectral")


class TestOptimizersThatWereBuilt:
    """What a plan says of them."""

    @pytest.fixture
    def plan(self) -> Plan:
        return parameterize(Language(32), torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0)))

    @pytest.mark.parametrize("scale", SCALES)
    def test_right_ones_also_after_a_schedule(self, plan: Plan, scale: str) -> None:
        muon, adamw = plan.param_groups(0.02, optimizer="muon", adamw_lr=0.1, adjust_lr_fn=scale)
        optimizers = torch.optim.Muon(muon), torch.optim.AdamW(adamw)
        plan.check_optimizers(*optimizers)
        for optimizer in optimizers:
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.3)
            optimizer.step()
            scheduler.step()
        plan.check_optimizers(*optimizers)
        plan.check_optimizers(torch.optim.SGD(plan.param_groups(0.1)))

    def test_an_embedding_in_muon(self, plan: Plan) -> None:
        matrices = [parameter for parameter in plan.model.parameters() if parameter.ndim == 2]
        others = [parameter for parameter in plan.model.parameters() if parameter.ndim != 2]
        with pytest.raises(InvalidInputError) as refusal:
            plan.check_optimizers(torch.optim.Muon(matrices), torch.optim.AdamW(others))
        said = str(refusal.value)
        assert "embed.weight is Muon's, but its role is embedding" in said
        assert "head.weight is Muon's, but its role is readout" in said
        assert "mix.weight is Muon's" not in said

    def test_another_muon(self, plan: Plan) -> None:
        class FusedMuon(torch.optim.SGD):
            pass

        with pytest.raises(InvalidInputError, match=r"embed\.weight is Muon's"):
            plan.check_optimizers(FusedMuon(plan.param_groups(0.1)))

    def test_groups_that_were_lost(self, plan: Plan) -> None:
        muon, adamw = plan.param_groups(0.02, optimizer="muon")
        flat = [parameter for group in adamw for parameter in group["params"]]
        with pytest.raises(InvalidInputError, match=r"the rate of .* times the plan's"):
            plan.check_optimizers(torch.optim.Muon(muon), torch.optim.AdamW(flat, lr=0.02))
        with pytest.raises(InvalidInputError, match=r"no optimizer has embed\.weight"):
            plan.check_optimizers(torch.optim.Muon(muon))
        with pytest.raises(InvalidInputError, match=r"mix\.weight is stepped 2 times"):
            plan.check_optimizers(torch.optim.Muon(muon), torch.optim.AdamW(plan.param_groups(0.02, optimizer="adamw")))
