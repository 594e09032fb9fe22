"""Residual branches at 1/sqrt(L) and 1/L: the folded plan is the network with multipliers, and L drops out of training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft
from tests.parameterization.streams import ALPHA, SAMPLES, Block, D, N, NormedBlock, Residual, gpt2
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.parameterization import Plan


def unfolded(plan: Plan, depth: str, ends: tuple[str, ...]) -> tuple[nn.Module, dict[str, tuple[float, float, float]]]:
    """The same function with multipliers in the forward pass, and for every parameter its rates and its eps.

    Rates are those of the theory for unit-form parameters: written out here, and not read from the plan.
    """
    model = copy.deepcopy(plan.model)
    count = len(model.blocks)
    multiplier = count ** -ALPHA[depth]
    for block in model.blocks:
        block.multiplier = multiplier
    plain = dmft.parameterize(copy.deepcopy(plan.model), torch.randn(2, D, dtype=torch.float64), gamma0=plan.gamma0)
    settings = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("blocks") and name.rpartition(".")[0].endswith(ends):
                parameter.div_(multiplier)
            rule = plain.rule(name)
            sgd, adam, gradient = rule.lr, rule.adam_lr, rule.gradient
            if name.startswith("blocks"):
                sgd, adam = sgd * count ** (2 * ALPHA[depth] - 1), adam * count ** (ALPHA[depth] - 1)
                gradient *= multiplier
            if name.startswith("posts") and name.split(".")[1] != str(count - 1):
                sgd, adam = sgd / count, adam / count
            settings[name] = sgd, adam, gradient
    return model, settings


@pytest.mark.parametrize("depth", ALPHA)
@pytest.mark.parametrize(
    ("block", "post", "ends"), [(Block, False, ("down",)), (NormedBlock, False, ("norm",)), (Block, True, ("down",))]
)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_folded_plan_trains_like_multipliers_in_the_forward_pass(block, post, ends, depth, optimizer, generator):
    x = torch.randn(SAMPLES, D, generator=generator, dtype=torch.float64)
    y = torch.randn(SAMPLES, 2, generator=generator, dtype=torch.float64)
    eta, decay, eps = 0.02, 0.1, 1e-3
    model = Residual(6, block=block, post=post).double()
    plan = dmft.parameterize(model, x, gamma0=0.7, depth=depth, generator=generator)
    other, settings = unfolded(plan, depth, ends)
    groups = []
    for name, parameter in other.named_parameters():
        sgd, adam, gradient = settings[name]
        lr = eta * (sgd if optimizer == "sgd" else adam)
        groups.append({"params": [parameter], "lr": lr})
        groups[-1]["weight_decay"] = decay / (adam if optimizer == "adamw" else sgd)
        if optimizer != "sgd":
            groups[-1]["eps"] = eps * gradient
    torch.testing.assert_close(other(x), model(x), rtol=1e-12, atol=1e-12)
    classes = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    start = model(x).detach()
    steppers = [
        classes[optimizer](plan.param_groups(eta, optimizer=optimizer, weight_decay=decay, eps=eps)),
        classes[optimizer](groups),
    ]
    for _ in range(6):
        for net, stepper in zip((model, other), steppers, strict=True):
            stepper.zero_grad()
            F.mse_loss(net(x), y).backward()
            stepper.step()
    assert (model(x) - start).abs().max() > 0.01
    torch.testing.assert_close(other(x), model(x), rtol=1e-9, atol=1e-9)


class Explicit(nn.Module):
    """Blocks with multipliers written into the forward pass, which theory knows."""

    def __init__(self, blocks: int, multiplier: float, width: int = N) -> None:
        super().__init__()
        self.multiplier = multiplier
        self.stem, self.head = nn.Linear(D, width), nn.Linear(width, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.ups = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.downs = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            branch = down(torch.tanh(up(norm(h))))
            h = h + (branch if self.multiplier == 1 else self.multiplier * branch)
        return self.head(h)


@pytest.mark.parametrize("depth", ALPHA)
@pytest.mark.parametrize(
    "solver",
    [dmft.solvers.InfiniteWidth(neurons=256, replicas=2), dmft.solvers.FiniteWidth(32, replicas=4, tolerance=0.0)],
    ids=["infinite", "finite"],
)
def test_theory_of_a_folded_plan_is_that_of_multipliers_in_the_forward_pass(solver, depth, generator) -> None:
    x = torch.randn(SAMPLES, D, generator=generator, dtype=torch.float64)
    y = torch.randn(SAMPLES, 2, generator=generator, dtype=torch.float64)
    count = 3
    answers = {}
    for name, model in (("folded", Explicit(count, 1.0)), ("explicit", Explicit(count, count ** -ALPHA[depth]))):
        model = model.double()
        for parameter in model.parameters():
            nn.init.zeros_(parameter) if parameter.ndim == 1 and parameter[0] != 1 else None
        seeded = torch.Generator().manual_seed(1)
        plan = dmft.parameterize(model, x, depth=depth if name == "folded" else None, generator=seeded)
        settings = {"weight_decay": 0.1, "loss": F.mse_loss, "lr": 0.05, "steps": 5}
        problem = dmft.Problem.like(plan, dmft.Probe(x, y), **settings)
        if name == "explicit" and depth == "1/L":
            own = [one for one, _ in model.named_parameters() if one.startswith(("norms", "ups", "downs"))]
            exceptions = {one: {"lr": 0.05 * count, "weight_decay": 0.1 / count} for one in own}
            problem = problem.trained(exceptions=exceptions)
        answers[name] = dmft.solve(problem, solver)
    torch.testing.assert_close(answers["folded"].outputs, answers["explicit"].outputs, rtol=1e-8, atol=1e-8)
    assert (answers["folded"].outputs[-1] - answers["folded"].outputs[0]).abs().max() > 0.05


def vit(width: int) -> nn.Module:
    import torchvision

    return torchvision.models.VisionTransformer(8, 4, 3, width // 8, width, 2 * width, num_classes=3)


def resnet(width: int) -> nn.Module:
    from torchvision.models.resnet import BasicBlock as block  # noqa: N813

    stem = (nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
    blocks = (block(width, width), block(width, width), block(width, width))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


LIBRARIES = {
    "GPT-2": (gpt2, {"input_ids": torch.arange(12, device="cpu").reshape(2, 6)}, 6, ("c_proj",)),
    "ViT": (vit, torch.randn(2, 3, 8, 8, device="cpu"), 6, ("out_proj", "mlp.3")),
    "ResNet": (resnet, torch.randn(2, 3, 8, 8, device="cpu"), 3, ("bn2",)),
}


@pytest.mark.parametrize("depth", ALPHA)
@pytest.mark.parametrize("wider", [True, False], ids=["two widths", "one instance"])
@pytest.mark.parametrize(("factory", "inputs", "branches", "ends"), LIBRARIES.values(), ids=LIBRARIES)
def test_libraries_are_folded_where_branches_end_and_undone(factory, inputs, branches, ends, wider, depth) -> None:
    if not wider and factory is not resnet:
        pytest.skip("one instance does not say what its widths are")

    def biased(width: int) -> nn.Module:
        made = factory(width)
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)
        return made

    torch.manual_seed(0)
    model = biased(32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = copy.deepcopy(model)
    settings = {"wider": biased if wider else None}
    plan = dmft.parameterize(model, inputs, depth=depth, generator=torch.Generator().manual_seed(1), **settings)
    other = dmft.parameterize(plain, inputs, generator=torch.Generator().manual_seed(1), **settings)
    assert [stream.branches for stream in plan.architecture.streams] == [branches]
    multiplier = branches ** -ALPHA[depth]
    for name, parameter in model.named_parameters():
        ended = name.rpartition(".")[0].endswith(ends)
        expected = plain.get_parameter(name) * (multiplier if ended else 1)
        torch.testing.assert_close(parameter, expected, msg=name)
        assert plan.rule(name).std == pytest.approx(other.rule(name).std * (multiplier if ended else 1), abs=1e-12)
    assert any(f"{branches} residual branches are multiplied by {depth}" in note for note in plan.notes)
    plan.undo()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class Shared(nn.Module):
    """Post-norm blocks whose branches share a bias inside."""

    def __init__(self, blocks: int, width: int = 64) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(D, width), nn.Linear(width, 1)
        self.ups, self.downs = (nn.ModuleList(nn.Linear(width, width) for _ in range(blocks)) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.common = nn.Parameter(torch.zeros(width, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for up, down, norm in zip(self.ups, self.downs, self.norms, strict=True):
            h = norm(h + down(torch.tanh(up(h) + self.common)))
        return self.head(h)


def first_steps(plan: Plan, x: Tensor, *, adam: bool) -> dict[str, float]:
    """By how much the first step on f of one sample moves it, by where parameters stand: sum of rate |df/dtheta|^2 or |.|_1."""
    plan.model(x[:1]).sum().backward()
    shared = {name for stream in plan.architecture.streams for name in stream.shared}
    moved: dict[str, float] = {}
    for name, parameter in plan.model.named_parameters():
        rule = plan.rule(name)
        part = "shared" if name in shared else rule.part
        size = parameter.grad.abs().sum() * rule.adam_lr if adam else parameter.grad.square().sum() * rule.lr
        moved[part] = moved.get(part, 0.0) + float(size)
    return moved


@pytest.mark.parametrize("adam", [False, True], ids=["SGD", "Adam"])
@pytest.mark.parametrize("depth", [*ALPHA, None])
def test_every_part_of_a_stream_has_the_same_share_in_a_step_at_every_depth(depth, adam, generator) -> None:
    x = torch.randn(2, D, generator=generator)
    depths, logs = (4, 32), []
    for blocks in depths:
        several = []
        for _ in range(4):
            wider = Shared(blocks, 32)
            plan = dmft.parameterize(Shared(blocks), x, wider=wider, depth=depth, generator=generator)
            several.append(first_steps(plan, x, adam=adam))
        logs.append({part: sum(one[part] for one in several) for part in several[0]})
    ratio = torch.tensor(depths[-1] / depths[0]).log()
    slopes = {part: float((torch.tensor(logs[-1][part] / logs[0][part])).log() / ratio) for part in logs[0]}
    if depth is None:
        assert slopes[""] > 1
        return
    # With random weights behind it, what branches share has a gradient of sqrt(L) L^-alpha, which grows to 1 as these learn.
    at_start = (0.5 - ALPHA[depth]) * (1 if adam else 2)
    expected = {"": 0.0, "in a branch": 0.0, "ends a branch": 0.0, "between branches": 0.0, "shared": at_start}
    assert slopes == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": "sqrt"}, r"""`depth` must be what .* Got: 'sqrt'. Remedy: "1/sqrt\(L\)" or "1/L"."""),
        ({"depth": "1/L", "scheme": "standard"}, r'With scheme="standard", `depth` must be left out'),
        ({"depth": "1/L", "init": "untouched"}, r'With init="untouched", `depth` must be left out'),
    ],
)
def test_what_depth_cannot_be(settings, message, generator) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dmft.parameterize(Residual(3), torch.randn(2, D, generator=generator), **settings)


def test_groups_say_where_parameters_stand_and_a_plan_is_saved_with_its_depth(generator) -> None:
    x = torch.randn(2, D, generator=generator)
    plan = dmft.parameterize(Residual(4), x, depth="1/L", generator=generator)
    names = {group["name"] for group in plan.param_groups(0.1)}
    assert {f"hidden, fan-in {2 * N}, ends a branch", f"hidden, fan-in {N}, in a branch", "readout, fan-in 24"} <= names
    other = dmft.parameterize(Residual(4), x)
    other.load_state_dict(plan.state_dict())
    assert (other.depth, other.rules) == ("1/L", plan.rules)


def test_kept_weights_are_rescaled_with_the_multiplier(generator) -> None:
    model = Residual(4).double()
    before = model.blocks[1].down.weight.detach().clone()
    x = torch.randn(2, D, generator=generator, dtype=torch.float64)
    plan = dmft.parameterize(model, x, depth="1/L", init="keep")
    found = model.blocks[1].down.weight
    torch.testing.assert_close(found, before * found.norm() / before.norm())
    assert float(found.square().mean().sqrt()) == pytest.approx(0.25 / (2 * N) ** 0.5)
    assert plan.rule("blocks.1.down.weight").std == pytest.approx(0.25 / (2 * N) ** 0.5)
