"""The spectrum against its definition, and against the training that it predicts."""

import math
from dataclasses import replace

import pytest
import torch

from tests.trajectories import two_layers
from torch_dmft.comparison import ntk_spectrum
from torch_dmft.core.errors import InvalidInputError, NotRecordedError
from torch_dmft.core.kernel import Kernel
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.solve import solve
from torch_dmft.theory.solvers import DeepLinear, StaticNTK


@pytest.mark.parametrize("outputs", [1, 2])
def test_it_takes_the_kernel_of_the_training_rows_apart(outputs):
    run = two_layers(outputs=outputs, test=2)
    found = ntk_spectrum(run)
    rows = 4 * outputs
    rebuilt = found.eigenvectors @ torch.diag_embed(found.eigenvalues) @ found.eigenvectors.mT
    for time in range(len(run.steps)):
        kernel = run.ntk.matrix(time).reshape(6, outputs, 6, outputs)[:4, :, :4].reshape(rows, rows)
        torch.testing.assert_close(rebuilt[time], kernel, rtol=1e-10, atol=1e-10)
    assert bool((found.eigenvalues.diff(dim=1) <= 0).all())
    torch.testing.assert_close(found.target_weights.sum(1), torch.ones(10, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.times, run.times)


def test_the_task_gathers_in_the_leading_direction_only_if_features_are_learned():
    learned, lazy = ntk_spectrum(two_layers()), ntk_spectrum(two_layers(richness=0))
    assert learned.target_weights[-1, 0] > learned.target_weights[0, 0] + 0.1
    torch.testing.assert_close(lazy.eigenvalues[-1], lazy.eigenvalues[0], rtol=1e-10, atol=1e-10)


def test_the_effective_rank_counts_equal_directions():
    run = two_layers(steps=(0, 1))
    projector = torch.diag(torch.tensor([2.0, 2, 2, 0, 0, 0], dtype=torch.float64))
    found = ntk_spectrum(replace(run, ntk=Kernel(projector.expand(2, 6, 6))))
    assert found.effective_rank.tolist() == pytest.approx([3, 3], abs=1e-10)


def test_lazy_errors_fall_at_the_rates_of_the_spectrum(generator):
    inputs = torch.randn(4, 6, dtype=torch.float64, generator=generator)
    targets = torch.randn(4, 1, dtype=torch.float64, generator=generator)
    problem = Problem.mlp(inputs, targets, depth=2, lr=1e-3, steps=50, loss=lambda f, y: 0.5 * (f - y).square().sum())
    run = solve(problem, StaticNTK())
    found = ntk_spectrum(run)
    errors = (targets - run.outputs[-1]).flatten() @ found.eigenvectors[0]
    start = targets.flatten() @ found.eigenvectors[0]
    torch.testing.assert_close(errors, start * (1 - 1e-3 * found.eigenvalues[0]) ** 50, rtol=1e-9, atol=1e-9)


def test_linear_networks_learn_the_task_as_an_eigenvector(generator):
    """Aligned with the targets at the end: an eigenvalue that has grown by cosh-like factors holds most of them."""
    inputs = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q * 2
    targets = torch.randn(4, 1, dtype=torch.float64, generator=generator)
    loss = lambda f, y: 0.5 * (f - y).square().sum()  # noqa: E731
    run = solve(
        Problem.mlp(inputs, targets, activation="linear", gamma0=2.0, lr=0.01, steps=400, loss=loss), DeepLinear()
    )
    found = ntk_spectrum(run)
    expected = 2 * math.sqrt(1 + 4 * float(targets.square().sum()))  # paper, section 4.1, at the end of training
    assert found.target_weights[-1, 0] == pytest.approx(1, abs=1e-2)
    assert found.eigenvalues[-1, 0] == pytest.approx(expected, rel=0.05)


def test_what_is_missing_is_named():
    with pytest.raises(NotRecordedError, match="targets="):
        ntk_spectrum(replace(two_layers(), targets=None))
    with pytest.raises(InvalidInputError, match="4 numbers for 6 rows"):
        ntk_spectrum(two_layers(), torch.ones(4))


def test_classes_are_one_hot_targets(generator):
    run = two_layers(outputs=3)
    rows = int(run.train.sum())
    classes = torch.arange(rows) % 3
    found = ntk_spectrum(run, classes)
    expected = ntk_spectrum(run, torch.nn.functional.one_hot(classes, 3).double())
    torch.testing.assert_close(found.target_weights, expected.target_weights)
    with pytest.raises(InvalidInputError, match="below the number of outputs, 3"):
        ntk_spectrum(run, classes + 1)
