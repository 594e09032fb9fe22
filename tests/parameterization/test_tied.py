"""A weight that makes features and reads out: its readout is multiplied, and both uses hold at one size and one rate."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft
from torch_dmft.core.errors import UnsupportedModelError
from torch_dmft.core.multiplied import multiplied
from torch_dmft.measurement import empirical_ntk
from torch_dmft.parameterization import coordinate_check, rules

TOKENS, FEATURES = 7, 5


class Language(nn.Module):
    """An embedding that reads out as well, with a bias of its own, behind a residual stream."""

    def __init__(self, width: int, size: float = 1.0) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(TOKENS, width), nn.Linear(width, width, bias=False)
        nn.init.normal_(self.embed.weight, std=size)
        self.head = nn.Linear(width, TOKENS)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens).mean(1)
        return self.head(torch.tanh(self.mix(h)))


class Autoencoder(nn.Module):
    """The decoder is the transpose of the encoder, in the model's own forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width, FEATURES)), nn.Parameter(torch.zeros(FEATURES))
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.mix(torch.tanh(F.linear(x, self.weight))))
        return F.linear(h, self.weight.t(), self.bias)[:, :2]


class Unbiased(Language):
    """Without the bias, which has a size of its own."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.head.bias = None


class Divided(Unbiased):
    """What is read out is divided by the root of the width, as T5 does."""

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens).mean(1)
        return self.head(torch.tanh(self.mix(h)) * h.shape[-1] ** -0.5)


class Enlarged(Unbiased):
    """Embeddings are multiplied by the root of the width and what is read out is normalised, as in Gemma."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.norm = nn.RMSNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens).mean(1) * self.mix.in_features**0.5
        return self.head(self.norm(h + torch.tanh(self.mix(h))))


def tokens(generator: torch.Generator) -> Tensor:
    return torch.randint(0, TOKENS, (6, 3), generator=generator)


def inputs(generator: torch.Generator) -> Tensor:
    return torch.randn(6, FEATURES, generator=generator)


CASES: dict[Any, Any] = {Language: tokens, Autoencoder: inputs, Divided: tokens, Enlarged: tokens}


@pytest.mark.parametrize("gamma0", [0.3, 1.0])
@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.05), ("adamw", 0.02)])
@pytest.mark.parametrize("factory", CASES)
def test_features_move_alike_at_every_width(factory, optimizer, lr, gamma0, generator) -> None:
    x = CASES[factory](generator)
    targets = torch.randn(factory(8)(x).shape, generator=generator).sign()
    check = coordinate_check(
        factory, x, targets, widths=(128, 256, 512), lr=lr, gamma0=gamma0, optimizer=optimizer, generator=generator
    )
    assert check.passed, str(check)


@pytest.mark.parametrize("power", [0.5, 2.0])
@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.01), ("adamw", 0.005)])
def test_the_check_sees_another_power_of_the_width(optimizer, lr, power, generator, monkeypatch) -> None:
    def wrong(std: float, *, gamma0: float, width: int) -> float:
        return 1 / (std * gamma0 * width**power)

    monkeypatch.setattr(rules, "tied_multiplier", wrong)
    x = tokens(generator)
    targets = torch.randn(len(x), TOKENS, generator=generator).sign()
    check = coordinate_check(
        Unbiased, x, targets, widths=(64, 128, 256), lr=lr, optimizer=optimizer, generator=generator
    )
    assert abs(check.exponents["head"]) > 0.3, str(check)
    assert not check.passed


def test_features_move_in_proportion_to_gamma0_and_outputs_do_not(generator) -> None:
    x, gammas = tokens(generator), (0.1, 0.2, 0.4)
    targets = torch.randn(len(x), TOKENS, generator=generator).sign()
    checks = [
        coordinate_check(Language, x, targets, widths=(128, 256), lr=0.05, gamma0=one, generator=generator)
        for one in gammas
    ]
    logs = torch.tensor(gammas, dtype=torch.float64).log()
    moved = torch.stack([check.updates[:, 1] for check in checks]).log()
    logs = logs - logs.mean()
    slopes = dict(zip(checks[0].layers, ((logs @ moved) / (logs @ logs)).tolist(), strict=True))
    assert slopes == pytest.approx({"embed": 1.0, "mix": 1.0, "head": 0.0}, abs=0.2)


class Unit(nn.Module):
    """``Language`` in unit form: numbers of size one, multipliers in the forward pass."""

    def __init__(self, model: Language, gamma0: float, size: float) -> None:
        super().__init__()
        width = model.mix.in_features
        self.gain = size
        self.gamma0, self.width = gamma0, width
        self.omega = nn.Parameter(model.embed.weight.detach() / self.gain)
        self.w = nn.Parameter(model.mix.weight.detach() * math.sqrt(width))
        self.b = nn.Parameter(torch.zeros_like(model.head.bias))

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.gain * self.omega[tokens].mean(1) @ self.w.T / math.sqrt(self.width))
        return h @ self.omega.T / (self.gamma0 * self.width) + self.b


@pytest.mark.parametrize("gamma0", [0.4, 2.0])
@pytest.mark.parametrize("size", [1.0, 0.02])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_it_is_the_unit_form_with_one_rate(optimizer, size, gamma0, generator) -> None:
    x, lr, width = tokens(generator), 0.05, 32
    targets = torch.randn(len(x), TOKENS, generator=generator, dtype=torch.float64)
    model = Language(width, size).double()
    plan = dmft.parameterize(model, x, gamma0=gamma0, wider=lambda n: Language(n, size), generator=generator)
    unit = Unit(model, gamma0, plan.rule("embed.weight").std).double()
    one = lr * gamma0**2 * width
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    rates = {"sgd": (one, one, lr), "adam": (lr * gamma0, lr * gamma0 / math.sqrt(width), lr)}[optimizer]
    groups = [
        {"params": [parameter], "lr": rate} for parameter, rate in zip((unit.omega, unit.w, unit.b), rates, strict=True)
    ]
    settings = {} if optimizer == "sgd" else {"eps": 0.0}
    pairs = [
        (model, kinds[optimizer](plan.param_groups(lr, optimizer=optimizer, **settings), **settings)),
        (unit, kinds[optimizer](groups, **settings)),
    ]
    for _ in range(4):
        assert torch.allclose(model(x), unit(x), rtol=1e-10, atol=1e-10)
        for network, stepper in pairs:
            stepper.zero_grad()
            F.mse_loss(network(x), targets).backward()
            stepper.step()


@pytest.mark.parametrize("factory", CASES)
def test_undo_copies_pickles_and_checkpoints(factory, generator, tmp_path: Path) -> None:
    x = CASES[factory](generator)
    model = factory(32)
    before, state = model(x), copy.deepcopy(model.state_dict())
    plan = dmft.parameterize(model, x, gamma0=0.5, wider=factory, generator=generator)
    assert len(multiplied(model)) == 1
    assert any("is multiplied by" in note for note in plan.notes)
    torch.save(model, tmp_path / "model.pt")
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False)(x), model(x))
    other = factory(32)
    again = dmft.parameterize(other, x, gamma0=0.5, wider=factory)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(plan.state_dict())
    assert torch.equal(other(x), model(x))
    if factory is Enlarged:  # its embeddings hold the factor already, so that sizes differ from those of a fresh one
        with pytest.raises(UnsupportedModelError, match=r"features go with the width"):
            dmft.parameterize(model, x, gamma0=2.0, wider=factory, init="keep")
    else:
        second = dmft.parameterize(model, x, gamma0=2.0, wider=factory, init="keep")
        first = multiplied(copy.deepcopy(other))
        assert next(iter(multiplied(model).values())) < next(iter(first.values()))
        second.undo()
        assert multiplied(model) == first
    plan.undo()
    assert not multiplied(model)
    assert torch.equal(model(x), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("how", [{"init": "untouched"}, {"scheme": "standard"}])
def test_a_pretrained_function_stays_what_it_is(how, generator) -> None:
    x, width = tokens(generator), 32
    model = Language(width, 0.3)
    before = model(x)
    own = float(model.embed.weight.detach().square().mean().sqrt())
    plan = dmft.parameterize(model, x, wider=lambda n: Language(n, 0.3), **how)
    assert torch.equal(model(x), before)
    if "init" in how:  # both uses allow less than 1/N, and g^2 gamma0^2 N
        assert plan.rule("embed.weight").lr == pytest.approx(min(1 / width, own**2 * width))
        narrow = dmft.parameterize(model, x, 1e-3, wider=lambda n: Language(n, 0.3), **how)
        assert narrow.rule("embed.weight").lr == pytest.approx(own**2 * 1e-6 * width)
        assert narrow.rule("embed.weight").adam_lr == pytest.approx(own * 1e-3)


@pytest.mark.parametrize("factory", CASES)
def test_it_is_measured_as_it_is(factory, generator) -> None:
    x = CASES[factory](generator)
    x = x.double() if x.is_floating_point() else x
    model = factory(32).double()
    plan = dmft.parameterize(model, x, gamma0=0.5, wider=factory, generator=generator)
    exact = empirical_ntk(plan, x, method="jacobian")
    assert torch.allclose(empirical_ntk(plan, x), exact, rtol=1e-9, atol=1e-9)
    f = model(x).detach()
    recorder = dmft.Recorder(plan, dmft.Probe(x, torch.zeros_like(f)))
    optimizer = torch.optim.SGD(plan.param_groups(0.1))
    with recorder.attach(optimizer):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    readout = recorder.trajectory().layers[-1].backward.equal_time[0]
    ones = torch.eye(f.shape[1], dtype=torch.float64)[None, :, None, :]
    assert torch.allclose(readout.double(), ones.expand_as(readout), rtol=1e-6)


class Capped(Language):
    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.mix(self.embed(tokens).mean(1)))
        return torch.tanh(F.linear(h, self.embed.weight))


class Twice(Language):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.second = nn.Linear(width, TOKENS, bias=False)
        self.second.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.mix(self.embed(tokens).mean(1)))
        return self.head(h) + self.second(h * h)


class Shifted(Language):
    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.mix(self.embed(tokens).mean(1))), self.embed.weight) + 1


class Several(Language):
    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.mix(self.embed(tokens).mean(1)))
        return {"logits": F.linear(h, self.embed.weight), "features": h}


class Shared(Language):
    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.mix(self.embed(tokens).mean(1) + self.head.bias.mean()))
        return self.head(h)


REFUSED = {
    Capped: r"in the model itself, which does more .*Tanh",
    Twice: r"in several modules \(head, second\)",
    Shifted: r"a constant is added",
    Several: r"something else than one tensor.*untie them",
    Shared: r"reads out in head with head.bias, used elsewhere",
}


@pytest.mark.parametrize("factory", REFUSED)
def test_it_is_refused_where_no_factor_can_stand(factory, generator) -> None:
    x, model = tokens(generator), factory(16)
    with pytest.raises(UnsupportedModelError, match=REFUSED[factory]):
        dmft.parameterize(model, x, wider=factory)
    assert empirical_ntk(model.double(), x).isfinite().all()


@pytest.mark.filterwarnings("ignore:.*global hooks")
def test_what_was_compiled_before_is_multiplied_too(generator) -> None:
    x, model = tokens(generator), Language(16)
    compiled = torch.compile(model, backend="eager")
    before = compiled(x)
    plan = dmft.parameterize(compiled, x, wider=lambda n: torch.compile(Language(n), backend="eager"))
    assert torch.allclose(compiled(x), model(x))
    assert float(compiled(x).norm()) < float(before.norm()) / 2
    plan.undo()
    assert torch.allclose(compiled(x), before)
