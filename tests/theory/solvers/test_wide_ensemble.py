"""The limit read off wide networks: against the theory, for networks without one, and with an honest fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.training import Training
from torch_dmft.core.trajectory import LayerKernels, Trajectory
from torch_dmft.theory.solvers import DeepLinear, InfiniteWidth, WideEnsemble
from torch_dmft.theory.solvers.wide_ensemble import extrapolate

P, RECORD = 4, (0, 3, 6)


@pytest.fixture
def data(generator):
    return torch.randn(P, 5, generator=generator), torch.sign(torch.randn(P, 1, generator=generator))


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


def z_scores(found: Trajectory, expected: Trajectory) -> Tensor:
    """Of all outputs and kernels that vary."""
    scores = []
    pairs = [(run.outputs, run.stderr.outputs if run.stderr else torch.zeros(())) for run in (found, expected)]
    parts = [pairs]
    for index in range(len(found.layers)):
        for kind in ("forward", "backward"):
            parts.append(
                [
                    (
                        getattr(run.layers[index], kind).array,
                        getattr(run.stderr.layers[index], kind).array if run.stderr else torch.zeros(()),
                    )
                    for run in (found, expected)
                ]
            )
    for (x, x_error), (y, y_error) in parts:
        error = (x_error.double() ** 2 + y_error.double() ** 2).sqrt().expand_as(x)
        varies = error > 1e-5 * y.square().mean().sqrt()
        scores.append(((x.double() - y)[varies] / error[varies]).flatten())
    return torch.cat(scores)


@pytest.mark.parametrize("activation", ["linear", "tanh"])
def test_chains_meet_the_theory(data, activation):
    problem = dmft.Problem.mlp(*data, depth=2, activation=activation, loss=half_square, lr=0.08, steps=6, bias_std=None)
    found = dmft.solve(problem, WideEnsemble((32, 64, 128), pairs=20), record=RECORD)
    solver = DeepLinear() if activation == "linear" else InfiniteWidth(2048)
    expected = dmft.solve(problem, solver, record=RECORD)
    scores = z_scores(found, expected)
    assert scores.abs().max() < 5
    assert 0.2 < scores.square().mean() < 3  # the errors are neither too small nor too large
    assert 0.2 < found.metadata["chi_squared"] < 3
    assert found.origin == "wide-network reference (N to inf)"
    assert found.metadata["widths"] == "32, 64, 128"


def test_an_antithetic_pair_has_no_output_at_the_start(data):
    problem = dmft.Problem.mlp(*data, depth=2, gamma0=0.1, loss=half_square, lr=0.05, steps=2)
    found = dmft.solve(problem, WideEnsemble((16, 32), pairs=4))
    assert found.outputs[0].abs().max() < 1e-4 * found.outputs[2].abs().max()
    assert torch.tensor(found.metadata["chi_squared"]).isnan()


class Network(nn.Module):
    """A small CNN of any width, with BatchNorm and a flattened or averaged feature map."""

    def __init__(self, channels: int, *, norm: bool, flat: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.second = nn.Conv2d(channels, 2 * channels, 3, stride=2)
        self.flat = flat
        self.readout = nn.Linear(2 * channels * (4 if flat else 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.second(torch.tanh(self.norm(self.first(x)))))
        return self.readout(x.flatten(1) if self.flat else x.mean((2, 3)))


@pytest.mark.parametrize(("norm", "flat"), [(False, False), (True, True)], ids=["pooled", "BatchNorm, flattened"])
def test_convolutional_networks_of_any_kind(generator, norm, flat):
    x = torch.randn(P + 1, 1, 6, 6, generator=generator)
    model = Network(4, norm=norm, flat=flat)
    plan = dmft.parameterize(model, x, generator=generator)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    y = torch.randn(P + 1, 1, generator=generator)
    probe = dmft.Probe(x, y, train=torch.arange(P + 1) < P)
    problem = dmft.Problem.like(plan, probe, lr=0.05, steps=3)
    found = dmft.solve(problem, WideEnsemble((16, 32, 64), pairs=6))
    assert found.losses[-1] < found.losses[0]
    assert [layer.name for layer in found.layers] == ["first", "second", "readout"]
    assert 0.1 < found.metadata["chi_squared"] < 4
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_batch_norm_in_training_sees_training_rows_only(generator):
    """A run with test rows is the run without them."""
    x = torch.randn(P + 2, 1, 6, 6, generator=generator)
    y = torch.randn(P + 2, 1, generator=generator)
    plan = dmft.parameterize(Network(4, norm=True, flat=False), x)
    runs = []
    for rows in (P, P + 2):
        probe = dmft.Probe(x[:rows], y[:rows], train=torch.arange(rows) < P)
        problem = dmft.Problem.like(plan, probe, lr=0.05, steps=2)
        runs.append(dmft.solve(problem, WideEnsemble((8, 16), pairs=4)))
    torch.testing.assert_close(runs[0].outputs, runs[1].outputs[:, :P], rtol=1e-4, atol=1e-5)


def test_the_fit_finds_the_limit_and_its_chi_squared(generator):
    """Numbers a + b/N with Gaussian noise of variance ~ 1/N, 2000 entries."""
    a, b, widths, samples = 1.0, 5.0, (20, 40, 80), 45

    def estimate(width: int, curvature: float = 0.0) -> Trajectory:
        noise = 0.1 / width**0.5
        shape = 1, samples, samples

        def draw(*shape: int) -> Tensor:
            mean = a + b / width + curvature / width**2
            return mean + noise * torch.randn(shape, generator=generator, dtype=torch.float64)

        def run(fill) -> Trajectory:
            kernels = [Kernel(fill(*shape)) for _ in range(4)]
            return Trajectory(
                steps=torch.zeros(1, dtype=torch.int64),
                outputs=fill(1, samples, 1),
                losses=fill(1),
                layers=(LayerKernels("0", *kernels[:3]),),
                ntk=kernels[3],
                origin="",
                training=Training.sgd(0.1, 1),
                train=torch.ones(samples, dtype=torch.bool),
            )

        values, errors = run(draw), run(lambda *shape: torch.full(shape, noise, dtype=torch.float64))
        return Trajectory(**{**values.__dict__, "stderr": errors})

    found = extrapolate(widths, [estimate(width) for width in widths])
    z = (found.ntk.array - a) / found.stderr.ntk.array
    assert abs(z.mean()) < 5 / samples
    assert abs(z.square().mean() - 1) < 5 * 2**0.5 / samples
    # 4 * 2025 + 45 entries of chi-squared with one degree of freedom, of which outputs and two kernels are averaged
    assert abs(found.metadata["chi_squared"] - 1) < 5 * (2 / (2 * samples**2)) ** 0.5
    curved = extrapolate(widths, [estimate(width, curvature=100.0) for width in widths])
    assert curved.metadata["chi_squared"] > 3


def test_what_is_refused(data):
    problem = dmft.Problem.mlp(*data, depth=2, lr=0.05, steps=2)
    with pytest.raises(InvalidInputError, match="two widths"):
        dmft.solve(problem, WideEnsemble((32,)))
    x = torch.randn(P, 4, 6, 6)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3, groups=4), nn.Tanh(), nn.Flatten(), nn.Linear(32, 1)
    )
    plan = dmft.parameterize(model, x)
    other = dmft.Problem.like(plan, dmft.Probe(x, data[1]), lr=0.05, steps=2)
    with pytest.raises(UnsupportedModelError, match="2: 4 groups of channels"):
        dmft.solve(other, WideEnsemble())
