"""Residual branches at 1/sqrt(L) and 1/L: the folded plan is the network with multipliers, and L drops out of training."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft
from torch_dmft.parameterization import Plan

D, N, SAMPLES = 5, 24, 7
ALPHA = {"1/sqrt(L)": 0.5, "1/L": 1.0}


class Block(nn.Module):
    """Norm, weight, activation, weight: x -> multiplier b(x)."""

    multiplier = 1.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        return self.multiplier * self.down(torch.tanh(self.up(self.norm(h))))


class NormedBlock(nn.Module):
    """A branch that ends with a norm layer, as those of ResNets do."""

    multiplier = 1.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, h: Tensor) -> Tensor:
        return self.multiplier * self.norm(self.up(torch.tanh(h)))


class Residual(nn.Module):
    """Data, L blocks on a stream, a norm and a readout."""

    def __init__(self, blocks: int, width: int = N, block: type[nn.Module] = Block, *, post: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(D, width), nn.Linear(width, 2)
        self.blocks = nn.ModuleList(block(width) for _ in range(blocks))
        self.posts = nn.ModuleList(nn.LayerNorm(width) if post else nn.Identity() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block, post in zip(self.blocks, self.posts, strict=True):
            h = post(h + block(h))
        return self.head(h)


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
