"""Sigma from the influence of neurons: against closed forms, against networks of three widths, and wrong versions of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.theory.test_covariance import pairings
from torch_dmft.core.errors import InsufficientMemoryError, InvalidInputError, NotRecordedError, UnsupportedProblemError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory import Fluctuations, covariance, fluctuations
from torch_dmft.theory.chains import weighted_matrix
from torch_dmft.theory.chains.weighted_chain import Noise, draw, run_weighted
from torch_dmft.theory.chains.weighted_matrix import Directions
from torch_dmft.theory.entries import entries, with_entries
from torch_dmft.theory.solvers import FiniteWidth, InfiniteWidth

_SIGMAS = 5.0
SAMPLES = 3


def problem(*, outputs: int = 1, **options: Any) -> dmft.Problem:
    """A few random rows and signs."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(SAMPLES, outputs, generator=generator, dtype=torch.float64).sign()
    usual = {"activation": "tanh", "depth": 2, "gamma0": 2.0, "lr": 0.5, "steps": 6}
    return dmft.Problem.mlp(inputs, targets, **(usual | options))


def ends(run: Trajectory) -> Tensor:
    """Outputs and the diagonals of all kernels at the last time."""
    kernels = [layer.forward for layer in run.layers[1:]] + [layer.backward for layer in run.layers[:-1]]
    diagonals = [kernel.array[-1].diagonal() for kernel in (*kernels, run.known_ntk)]
    return torch.cat([run.outputs[-1].flatten(), *diagonals])


def distance(found: Fluctuations, networks: Tensor, width: int, count: int) -> Tensor:
    """Of the covariance of some networks from Sigma / N, in standard errors of both."""
    variances = found.sigma.diagonal()
    assert found.stderr is not None
    law = (variances.outer(variances) + found.sigma.square()) / (count - 1)
    return (width * networks - found.sigma) / (law + found.stderr.square()).sqrt()


def test_kernels_of_linear_networks_have_wisharts_covariance() -> None:
    """Phi^1 fluctuates by Wick's theorem; Phi^2 by as much again, as its neurons see a Phi^1 that has fluctuated.

    Without that, the response of the averages to themselves, half of Sigma is missing.
    """
    posed = problem(activation="linear", steps=0)
    wick = pairings(posed.input_kernel)
    for layer in (1, 2):
        found = fluctuations(posed, lambda run, layer=layer: run.layers[layer].forward.array)
        assert found.stderr is not None
        error = found.stderr.clamp_min(1e-12)
        assert float(((found.sigma - layer * wick) / error).abs().max()) < _SIGMAS
        if layer == 2:
            assert float(((found.sigma - wick) / error).abs().max()) > _SIGMAS
            torch.testing.assert_close(found.shares, torch.full_like(found.shares, 0.5), atol=0.1, rtol=0)


def test_the_start_of_the_outputs() -> None:
    """f(0) is an average of w phi / gamma0: Sigma = Phi^L / gamma0^2."""
    posed = problem(steps=0)
    found = fluctuations(posed, lambda run: run.outputs)
    expected = found.mean.layers[2].forward.array[0] / posed.gamma0**2
    assert found.stderr is not None
    assert float(((found.sigma - expected) / found.stderr).abs().max()) < _SIGMAS


def test_it_is_the_covariance_of_networks_and_wrong_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong: neurons as if they did not answer to the averages; overlaps of gradients with what is drawn after them."""
    posed, width, count = problem(steps=4), 96, 200
    networks = covariance(dmft.solve(posed, FiniteWidth(width, count), record=[0, posed.steps]), ends)
    found = fluctuations(posed, ends, neurons=600)
    assert float(distance(found, networks, width, count).abs().max()) < _SIGMAS
    assert found.stderr is not None

    def wrongly(owed: Any) -> float:
        """In standard errors of Sigma, from the right one."""
        monkeypatch.setattr(weighted_matrix, "_owed", owed)
        wrong = fluctuations(posed, ends, neurons=600)
        assert wrong.stderr is not None
        error = (found.stderr.square() + wrong.stderr.square()).sqrt()
        return float(((wrong.sigma - found.sigma) / error).abs().max())

    right = weighted_matrix._owed
    assert wrongly(lambda *args: right(*args).detach()) > _SIGMAS
    assert wrongly(lambda here, there, new, image: there.images.with_all(here.weights * new)) > _SIGMAS

    bare = _bare(posed)  # the variance of single neurons' phi^2 at fixed averages
    at = slice(SAMPLES, 3 * SAMPLES)
    error = (2 / (count - 1)) ** 0.5 * found.sigma.diagonal()[at]
    assert float(((width * networks.diagonal()[at] - bare) / error).abs().max()) > _SIGMAS


def _bare(posed: dmft.Problem) -> Tensor:
    run = dmft.solve(posed, InfiniteWidth(2048, replicas=1), record=[0, posed.steps])
    fields = [layer.fields for layer in run.layers[:-1]]
    return torch.cat([f.preactivation[-1].tanh().square().double().var(-1) for f in fields if f is not None])


@pytest.mark.long
@pytest.mark.parametrize("gamma0", [0.5, 2.0])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_one_run_for_three_widths(depth: int, gamma0: float) -> None:
    posed, count = problem(depth=depth, gamma0=gamma0, lr=0.3, steps=10), 300
    found = fluctuations(posed)

    def all_but_losses(run: Trajectory) -> Tensor:  # gamma0 sqrt(64) = 4 is not large enough for the squares of f
        return entries(run)[kept]

    kept = torch.ones(len(found.values), dtype=torch.bool)
    kept[run_of_losses(found)] = False
    some = Fluctuations(
        found.mean, found.values[kept], found.sigma[kept][:, kept], found.shares[:, kept], _rows(found, kept)
    )
    for width in (64, 128, 256):
        generator = torch.Generator().manual_seed(width)
        networks = dmft.solve(posed, FiniteWidth(width, count, generator=generator), record=[0, 10])
        worst = float(distance(some, covariance(networks, all_but_losses), width, count).abs().max())
        assert worst < _SIGMAS, (width, worst)


def run_of_losses(found: Fluctuations) -> slice:
    """Where the losses stand among all entries."""
    first = found.mean.outputs.numel()
    return slice(first, first + len(found.mean.losses))


def _rows(found: Fluctuations, kept: Tensor) -> Tensor:
    assert found.stderr is not None
    return found.stderr[kept][:, kept]


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"outputs": 2, "bias_std": 0.3, "width_ratios": (2.0, 0.5, 1.0), "depth": 3, "gamma0": 1.0, "lr": 0.3},
        {"momentum": 0.8, "weight_decay": 0.3, "gain": 1.3, "lr": 0.1, "gamma0": 1.0},
        {
            "momentum": 0.8,
            "nesterov": True,
            "batches": [torch.tensor([t % 3, (t + 1) % 3]) for t in range(6)],
            "lr": 0.03,
            "activation": "gelu",
        },
        {"lr": [0.5 / (1 + t) for t in range(6)], "weight_decay": 0.2, "depth": 3},
    ],
    ids=["outputs, biases, widths", "momentum, decay, gain", "minibatches", "schedule"],
)
def test_whatever_is_covered_is_right(options: dict[str, Any]) -> None:
    posed, width, count = problem(**options), 192, 300
    networks = dmft.solve(posed, FiniteWidth(width, count), record=[0, posed.steps])
    found = fluctuations(posed)
    assert float(distance(found, covariance(networks, entries), width, count).abs().max()) < _SIGMAS


@pytest.mark.long
def test_the_standard_error_of_sigma_is_honest() -> None:
    posed = problem()
    truth = fluctuations(posed, ends, neurons=4000)
    scores = []
    for seed in range(12):
        found = fluctuations(posed, ends, neurons=600, generator=torch.Generator().manual_seed(seed))
        assert found.stderr is not None
        assert truth.stderr is not None
        scores.append((found.sigma - truth.sigma) / (found.stderr.square() + truth.stderr.square()).sqrt())
    size = float(torch.stack(scores).square().mean().sqrt())
    assert 0.6 < size < 1.4, size


def test_what_a_neuron_weighs_is_all_that_counts() -> None:
    """Exact: two neurons of one noise are one of twice the weight, and one of no weight is none."""
    posed, neurons = problem(bias_std=0.2), 40
    noise = draw(posed, posed.chain, posed.steps + 1, neurons, torch.Generator().manual_seed(0))
    record = torch.arange(posed.steps + 1)
    equal = torch.full((neurons,), 1 / neurons, dtype=torch.float64)
    expected = entries(run_weighted(posed, noise, [equal, equal], record))
    drawn = [[one.start, one.bias, one.forward, one.backward] for one in noise]
    twice = [Noise(*(torch.cat([part, part]) for part in parts)) for parts in drawn]
    split = torch.cat([0.3 * equal, 0.7 * equal])
    torch.testing.assert_close(
        entries(run_weighted(posed, twice, [split, split], record)), expected, rtol=1e-8, atol=1e-10
    )
    more = [Noise(*(torch.cat([part, part + 1]) for part in parts)) for parts in drawn]
    none = torch.cat([equal, 0 * equal])
    torch.testing.assert_close(
        entries(run_weighted(posed, more, [none, none], record)), expected, rtol=1e-8, atol=1e-10
    )


def test_directions_are_orthonormal_and_give_the_fields_back(generator: torch.Generator) -> None:
    weights = torch.rand(50, generator=generator, dtype=torch.float64)
    basis = Directions(weights / weights.sum(), torch.randn(50, 20, generator=generator, dtype=torch.float64))
    fields = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    for met in (fields, torch.cat([fields[:, :2] * 1e-6, fields[:, 2:].cos()], dim=1)):
        new, known, coefficients = basis.split(met)
        found = new @ coefficients
        if len(basis.directions):
            found = found + basis.directions.combined(known)
        torch.testing.assert_close(found, met, rtol=1e-8, atol=1e-12)
        basis.directions.add(new)
    assert len(basis.directions) == 6
    gram = basis.directions.with_all(basis.weights * basis.directions.combined(torch.eye(6, dtype=torch.float64)))
    torch.testing.assert_close(gram, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-10)


def test_rows_of_zeros_and_equal_rows_do_no_harm() -> None:
    inputs = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [-1.0, -2.0]])
    posed = dmft.Problem.mlp(inputs, torch.tensor([1.0, -1.0, 1.0, -1.0]), depth=2, steps=2, lr=0.2)
    found = fluctuations(posed, lambda run: run.layers[2].forward.array[-1], neurons=100, replicas=1)
    sigma = found.sigma.reshape(4, 4, 4, 4)
    assert bool(sigma.isfinite().all())
    assert float(sigma[1].abs().max()) < 1e-20
    torch.testing.assert_close(sigma[0, 0, 3, 3], sigma[0, 0, 0, 0])
    assert found.stderr is None


def test_bars_are_a_run_of_standard_deviations() -> None:
    posed = problem(depth=1, outputs=2, steps=2, lr=0.1)
    found = fluctuations(posed, neurons=200, replicas=2)
    some = fluctuations(posed, lambda run: run.known_ntk.array[1], neurons=200, replicas=2)
    bars = found.bars(64)
    torch.testing.assert_close(bars.known_ntk.array[1].flatten(), some.spread(64), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(some.covariance(64), some.sigma / 64)
    torch.testing.assert_close(entries(with_entries(found.mean, found.values)), found.values)
    networks = dmft.solve(posed, FiniteWidth(64, 64), record=[0, 2]).spread
    for one, other in pairwise((bars, networks)):
        assert one.outputs.shape == other.outputs.shape
        for mine, theirs in zip(one.layers, other.layers, strict=True):
            for kind in ("forward", "backward"):
                sizes = [getattr(layer, kind).array.norm() for layer in (mine, theirs)]
                assert abs(float(sizes[0] - sizes[1])) <= 0.35 * float(sizes[1]), (mine.name, kind)
    torch.testing.assert_close(found.shares.sum(0), torch.ones_like(found.values))
    again = fluctuations(posed, neurons=200, replicas=2)
    assert torch.equal(again.sigma, found.sigma)


def test_what_has_no_fluctuations_here() -> None:
    posed = problem(steps=1)
    with pytest.raises(UnsupportedProblemError, match="second derivative"):
        fluctuations(problem(activation="relu"))
    with pytest.raises(UnsupportedProblemError, match="does not cover"):
        fluctuations(problem(temperature=0.1))
    with pytest.raises(UnsupportedProblemError, match="does not cover"):
        fluctuations(problem(optimizer="adam", lr=0.01))
    with pytest.raises(UnsupportedProblemError, match="plain chain"):
        fluctuations(_normed())
    with pytest.raises(InvalidInputError, match="even"):
        fluctuations(posed, neurons=101)
    with pytest.raises(InvalidInputError, match="differentiable"):
        fluctuations(posed, lambda run: run.outputs.detach(), neurons=20)
    with pytest.raises(InvalidInputError, match="differentiable"):
        fluctuations(posed, lambda run: run.layers[0].forward.array, neurons=20)
    with pytest.raises(InvalidInputError, match="real numbers"):
        fluctuations(posed, lambda run: 1.0, neurons=20)  # type: ignore[arg-type, return-value]
    with pytest.raises(InsufficientMemoryError, match="fewer neurons"):
        fluctuations(posed, neurons=10**10)
    with pytest.raises(NotRecordedError, match="all numbers"):
        fluctuations(posed, lambda run: run.outputs, neurons=20).bars(64)


def _normed() -> dmft.Problem:
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))
    inputs = torch.eye(3, 5)
    return dmft.Problem.like(dmft.parameterize(model, inputs), dmft.Probe(inputs, torch.ones(3, 1)), lr=0.1, steps=1)
