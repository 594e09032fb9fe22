"""Random small networks: the recorder is held against brute force at two widths, the engine against plain networks."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft import solvers

FEATURES, STEPS = 6, 3
INPUTS = torch.randn(5, FEATURES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TARGETS = torch.sign(torch.randn(5, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
PIECES = ("layer", "residual", "zero branch", "frozen", "half", "norm", "frozen bias")


class RandomNetwork(nn.Module):
    """An input layer, some pieces drawn by chance, a readout.

    Args:
        seed: decides the pieces, not the weights.
        width: N.
    """

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        chance = random.Random(seed)
        self.pieces = [chance.choice(PIECES) for _ in range(chance.randint(1, 3))]
        self.phi = chance.choice([torch.tanh, torch.erf, nn.functional.silu])
        bias = chance.random() < 0.5
        self.first, self.last = nn.Linear(FEATURES, width, bias), nn.Linear(width, 1, bias)
        self.weights = nn.ModuleList(nn.Linear(width, width, bias or kind == "frozen bias") for kind in self.pieces)
        self.norms = nn.ModuleList(nn.LayerNorm(width) if kind == "norm" else nn.Identity() for kind in self.pieces)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def settle(self) -> None:
        """After the weights were drawn: what is frozen or starts at zero."""
        for kind, weight in zip(self.pieces, self.weights, strict=True):
            if kind == "zero branch":
                nn.init.zeros_(weight.weight)
            weight.weight.requires_grad_(kind != "frozen")
            if kind == "frozen bias":
                weight.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for kind, weight, norm in zip(self.pieces, self.weights, self.norms, strict=True):
            made = weight(self.phi(norm(h)))
            h = 0.5 * made if kind == "half" else h + made if kind in ("residual", "zero branch") else made
        return self.last(self.phi(h))


def wrapped(seed: int, width: int) -> tuple[RandomNetwork, dmft.Plan]:
    model = RandomNetwork(seed, width).double()
    plan = dmft.parameterize(model, INPUTS, generator=torch.Generator().manual_seed(seed))
    model.settle()
    return model, plan


@pytest.mark.parametrize("width", [12, 24])
@pytest.mark.parametrize("seed", range(12))
def test_the_recorder_is_brute_force(seed: int, width: int) -> None:
    model, plan = wrapped(seed, width)
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS), fields=False)
    recorder.record()
    run = recorder.trajectory()
    torch.testing.assert_close(
        run.ntk.array[0], dmft.empirical_ntk(plan, INPUTS, method="jacobian"), rtol=1e-9, atol=1e-12
    )
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        model.get_submodule(layer.path).register_forward_hook(
            lambda module, args, output, path=layer.path: seen.__setitem__(path, (args[0], output))
        )
        for layer in plan.architecture.layers
    ]
    # A frozen weight has gradients behind it all the same.
    f = model(INPUTS.clone().requires_grad_())
    for hook in hooks:
        hook.remove()
    for layer, kernels in zip(plan.architecture.layers, run.layers, strict=True):
        x, h = seen[layer.path]
        torch.testing.assert_close(kernels.forward.array[0], (x @ x.T / x.shape[1]).detach(), rtol=1e-9, atol=1e-12)
        (g,) = torch.autograd.grad(f.sum(), h, retain_graph=True)
        size = 1.0 if layer.path == "last" else plan.gamma0**2 * width
        torch.testing.assert_close(kernels.backward.array[0], size * (g @ g.T), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 3, 4, 5, 7])  # every piece is in one of them
def test_the_engine_is_the_limit_of_plain_networks(seed: int) -> None:
    model, plan = wrapped(seed, 64)
    optimizer = torch.optim.SGD(plan.param_groups(0.1, weight_decay=0.1), momentum=0.5)
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS))
    with recorder.attach(optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
            optimizer.step()
    problem = recorder.problem()
    twin = dmft.solve(problem, solvers.InfiniteWidth(1024, replicas=4))
    networks = dmft.solve(problem, solvers.WideEnsemble((32, 64, 128), pairs=12))
    pairs = [(twin.outputs, networks.outputs, twin.stderr.outputs, networks.stderr.outputs)]
    for index in range(len(twin.layers)):
        for kind in ("forward", "backward"):
            pairs.append(
                tuple(getattr(run.layers[index], kind).array for run in (twin, networks, twin.stderr, networks.stderr))
            )
    for a, b, *errors in pairs:
        noise = torch.stack(errors).square().sum(0).sqrt()
        assert bool(((a - b).abs() <= 6 * noise + 2e-3 * (1 + b.abs())).all())
    if {"frozen", "zero branch"} & set(
        model.pieces
    ):  # of which a theory that trains and draws everything knows nothing
        wrong = dmft.solve(problem.trained(frozen=(), starts={}), solvers.InfiniteWidth(1024, replicas=4))
        assert not torch.allclose(wrong.layers[-1].forward.array, twin.layers[-1].forward.array, rtol=0.02)
