"""Means and covariances of networks of one width over initialisations, against closed forms of linear networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import torch_dmft as dmft
from torch_dmft.core.errors import InsufficientMemoryError, NotRecordedError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory import covariance
from torch_dmft.theory.solvers import DeepLinear, FiniteWidth

P = 3


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


def problem(inputs: Tensor, **options) -> dmft.Problem:
    targets = torch.tensor([[1.0], [-1.0], [1.0]], dtype=torch.float64)
    return dmft.Problem.mlp(
        inputs, targets, **{"depth": 1, "activation": "linear", "lr": 0.1, "loss": half_square} | options
    )


@pytest.fixture
def inputs(generator: torch.Generator) -> Tensor:
    return torch.randn(P, 4, generator=generator, dtype=torch.float64)


def worst_z(found: Tensor, expected: Tensor, left: Tensor, right: Tensor, replicas: int) -> float:
    """In standard errors of the covariance of nearly Gaussian numbers with these variances."""
    error = ((left[:, None] * right + expected.square()) / replicas).sqrt()
    return float(((found - expected) / error).abs().max())


def pairings(kernel: Tensor) -> Tensor:
    """K_ac K_bd + K_ad K_bc at rows (a, b) and columns (c, d)."""
    return (torch.einsum("ac,bd->abcd", kernel, kernel) + torch.einsum("ad,bc->abcd", kernel, kernel)).reshape(
        P * P, -1
    )


def test_kernels_of_linear_networks_start_with_the_covariance_of_wishart_matrices(inputs: Tensor) -> None:
    """Wick's theorem: Phi^1 averages products of Gaussians; given it Phi^2 does the same with it as covariance."""
    posed, width, replicas = problem(inputs, depth=2, steps=0), 64, 384
    found = dmft.solve(posed, FiniteWidth(width, replicas))
    first = pairings(posed.input_kernel) / width  # Cov(Phi^1_ab, Phi^1_cd)
    swapped = first.reshape(P, P, P, P)
    mixed = torch.einsum("acbd->abcd", swapped) + torch.einsum("adbc->abcd", swapped)
    second = first + (pairings(posed.input_kernel) + mixed.reshape(P * P, -1)) / width
    variances = {1: first.diagonal(), 2: second.diagonal()}
    for a, b, expected in ((1, 1, first), (1, 2, first), (2, 2, second)):
        kernels = (lambda run, l=l: run.layers[l].forward.array[0] for l in (a, b))
        assert worst_z(covariance(found, *kernels), expected, variances[a], variances[b], replicas) < 5, (a, b)
    # A wrong law is told apart: all layers independent, so that Phi^1 and Phi^2 do not fluctuate together.
    together = covariance(found, *(lambda run, l=l: run.layers[l].forward.array[0] for l in (1, 2)))
    assert worst_z(together, 0 * first, variances[1], variances[2], replicas) > 5


def test_lazy_outputs_fluctuate_like_time_times_decay() -> None:
    r"""The kernel's initial fluctuation moves an error mode e^{-lambda t} by -dK t e^{-lambda t} (paper, 5.2).

    On whitened inputs all modes decay alike, in discrete time by q = 1 - eta lambda with lambda = 2. f(t) - q^t f(0)
    leaves out what f(0) alone does; then Cov(t, s) = eta^2 t s q^{t+s-2} Var(sum_j dK_kj (y - f(0))_j), where dK has the
    variance 4 / N on and 1 / N off its diagonal, and Var f(0) = 1 / (gamma0^2 N).
    """
    generator = torch.Generator().manual_seed(0)
    x = math.sqrt(P) * torch.linalg.qr(torch.randn(P, P, generator=generator, dtype=torch.float64))[0]
    width, replicas, gamma0, lr = 256, 128, 0.2, 0.1
    posed = problem(x, lr=lr, steps=6, gamma0=gamma0)
    found = dmft.solve(posed, FiniteWidth(width, replicas), record=[1, 2, 4, 6, 0])
    t, q = found.steps[1:].double(), 1 - 2 * lr

    def moved(run: Trajectory) -> Tensor:
        return run.outputs[1:, :, 0] - q ** t[:, None] * run.outputs[0, :, 0]

    times = len(t)
    modes = covariance(found, moved).reshape(times, P, times, P).diagonal(dim1=1, dim2=3).mean(-1)
    size = 6 / width * (1 + 1 / (gamma0**2 * width))
    ratio = modes / (lr**2 * t[:, None] * t * q ** (t[:, None] + t - 2) * size)
    # The P modes are nearly independent draws; what is left out is of relative order gamma0^2.
    assert abs(float(ratio[0, 0]) - 1) < 5 * math.sqrt(2 / (replicas * P)) + gamma0**2
    assert float((ratio / ratio[0, 0] - 1).abs().max()) < 2 * gamma0**2


def test_mean_shifts_and_covariances_fall_with_the_width(inputs: Tensor) -> None:
    """Slopes -1 over three widths; the loss starts above its limit by the variance of f(0), sum_a Phi_aa / (2 gamma0^2 N)."""
    posed, widths, gamma0 = problem(inputs, steps=2, gamma0=0.05), (16, 64, 256), 0.05
    limit = dmft.solve(posed, DeepLinear(), record=[0, 2])
    found = [dmft.solve(posed, FiniteWidth(width, 128), record=[0, 2]) for width in widths]
    for width, run in zip(widths, found, strict=True):
        shift = float(posed.input_kernel.diagonal().sum()) / (2 * gamma0**2 * width)
        assert abs(float(run.losses[0] - limit.losses[0]) - shift) < 5 * float(run.stderr.losses[0])

    def slope(values: list[Tensor]) -> float:
        return math.log(float(values[-1] / values[0])) / math.log(widths[-1] / widths[0])

    assert abs(slope([run.losses[1] - limit.losses[1] for run in found]) + 1) < 0.2
    for observable in (lambda run: run.layers[1].forward.array, lambda run: run.outputs):
        assert abs(slope([covariance(run, observable).norm() for run in found]) + 1) < 0.2


def test_the_covariance_is_that_of_numpy(inputs: Tensor) -> None:
    found = dmft.solve(problem(inputs, steps=1), FiniteWidth(8, 6))
    outputs = torch.stack([run.outputs.flatten() for run in found.replicas])
    torch.testing.assert_close(covariance(found, lambda run: run.outputs), torch.cov(outputs.T), rtol=1e-10, atol=0)
    spread = covariance(found, lambda run: run.ntk.array).diagonal().sqrt()
    torch.testing.assert_close(spread, found.spread.ntk.array.flatten(), rtol=1e-10, atol=1e-15)


def test_what_has_no_covariance(inputs: Tensor) -> None:
    found = dmft.solve(problem(inputs, steps=1), FiniteWidth(8, 4))
    with pytest.raises(InsufficientMemoryError, match="fewer entries"):
        covariance(found, lambda run: run.outputs.expand(10**7, -1, -1, -1)[:, :1, :1].contiguous())
    with pytest.raises(NotRecordedError, match="Expected an ensemble"):
        covariance(dmft.solve(problem(inputs, steps=1), DeepLinear()), lambda run: run.outputs)
