"""Metrics against their definitions, and in the cases where the definitions say nothing."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_dmft.comparison import alignment, centered_alignment, relative_error, target_alignment
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.kernel import Kernel


def gram(samples: int, seed: int, features: int = 7) -> torch.Tensor:
    x = torch.randn(samples, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x @ x.T / features


seeds = st.integers(0, 10_000)


@given(seeds, seeds, st.integers(1, 6))
def test_alignment_is_the_cosine_of_its_definition(a, b, samples):
    x, y = gram(samples, a), gram(samples, b)
    expected = torch.trace(x @ y.T) / (torch.trace(x @ x.T) * torch.trace(y @ y.T)).sqrt()
    assert alignment(x, y) == pytest.approx(expected.item(), abs=1e-10)
    assert alignment(3 * x, y) == pytest.approx(alignment(y, x), abs=1e-10)
    assert alignment(x, x) == pytest.approx(1, abs=1e-10)


def test_alignment_takes_every_entry_of_a_kernel():
    x, y = torch.stack([gram(4, 0), gram(4, 1)]), torch.stack([gram(4, 2), gram(4, 3)])
    expected = (x * y).sum() / (x.norm() * y.norm())
    assert alignment(Kernel(x), Kernel(y)) == pytest.approx(expected.item(), abs=1e-10)


def test_alignment_of_opposites_is_minus_one():
    assert alignment(gram(4, 0), -gram(4, 0)) == pytest.approx(-1, abs=1e-10)


def test_alignment_of_tiny_kernels_does_not_underflow():
    assert alignment(1e-200 * gram(4, 0), 1e-200 * gram(4, 0)) == pytest.approx(1, abs=1e-10)


@given(seeds, st.integers(2, 6), st.floats(-3, 3))
def test_centered_alignment_is_cka(seed, samples, offset):
    """Linear CKA of features does not see an offset common to all samples."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(samples, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    cx, cy = x - x.mean(0), y - y.mean(0)
    expected = (cx.T @ cy).norm() ** 2 / ((cx.T @ cx).norm() * (cy.T @ cy).norm())
    shifted = x + offset
    assert centered_alignment(shifted @ shifted.T, y @ y.T) == pytest.approx(expected.item(), abs=1e-9)


def test_centered_alignment_of_constant_kernels_is_defined():
    constant = torch.full((5, 5), 0.3, dtype=torch.float64)
    assert centered_alignment(constant, constant) == 1
    assert centered_alignment(constant, gram(5, 0)) == 0


@pytest.mark.parametrize("shape", [(1, 1), (3,), (2, 3), (2, 3, 2, 3)])
def test_centered_alignment_refuses_what_it_cannot_center(shape):
    with pytest.raises(InvalidInputError):
        centered_alignment(torch.ones(shape), torch.ones(shape))


@given(seeds, st.floats(-2, 2))
def test_relative_error_sees_scale(seed, scale):
    x = gram(4, seed)
    assert relative_error((1 + scale) * x, x) == pytest.approx(abs(scale), abs=1e-10)


def test_vanishing_kernels_follow_one_rule():
    zero, x = torch.zeros(3, 3), gram(3, 0).float()
    assert (alignment(zero, zero), alignment(zero, x), alignment(x, zero)) == (1, 0, 0)
    assert (relative_error(zero, zero), relative_error(zero, x), relative_error(x, zero)) == (0, 1, math.inf)
    assert (target_alignment(x, torch.zeros(3)), target_alignment(zero, torch.zeros(3))) == (0, 1)


@pytest.mark.parametrize("metric", [alignment, relative_error, centered_alignment])
def test_nan_stays_nan(metric):
    x = gram(3, 0)
    broken = x.clone()
    broken[0, 0] = math.nan
    assert math.isnan(metric(broken, x))
    assert math.isnan(metric(x, broken))


@pytest.mark.parametrize("metric", [alignment, relative_error])
def test_different_shapes_are_refused(metric):
    with pytest.raises(InvalidInputError, match=r"\(3, 3\) and \(4, 4\)"):
        metric(gram(3, 0), gram(4, 0))


def test_target_alignment_is_one_for_the_task_kernel(generator):
    y = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    assert target_alignment(y @ y.T, y) == pytest.approx(1, abs=1e-10)
    one = y[:, 0]
    x = gram(6, 1)
    expected = (one @ x @ one) / (x.norm() * one.square().sum())
    assert target_alignment(x, one) == pytest.approx(expected.item(), abs=1e-10)


def test_classes_count_as_one_hot():
    classes = torch.tensor([0, 2, 1, 0, 2, 2])
    x = gram(6, 1)
    one_hot = torch.nn.functional.one_hot(classes).double()
    assert target_alignment(x, classes) == pytest.approx(target_alignment(x, one_hot), abs=1e-10)
    with pytest.raises(InvalidInputError, match="from 0 on"):
        target_alignment(x, -classes)


def test_target_alignment_of_a_kernel_with_outputs_averages_over_equal_outputs(generator):
    y = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    a, b = gram(4, 1), gram(4, 2)
    blocks = torch.stack([a, b], 1)  # (sample, output, sample)
    array = torch.einsum("acb,cd->acbd", blocks, torch.eye(2, dtype=torch.float64))
    assert target_alignment(Kernel(array[None]), y) == pytest.approx(target_alignment((a + b) / 2, y), abs=1e-10)
    with pytest.raises(InvalidInputError, match="2 times"):
        target_alignment(Kernel(torch.stack([a, b])), y)
