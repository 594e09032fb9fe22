"""Kernels between two times, by factors: the same algebra as that of arrays of all pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.core.saved import example
from torch_dmft.core.errors import InsufficientMemoryError, InvalidInputError, NotRecordedError
from torch_dmft.core.factors import Factors, tolerance_of, weighted
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.trajectory import Trajectory

T, P, C, K = 4, 3, 2, 5
ROWS = [(P,), (P, C)]


def vectors(rows: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(T, *rows, K, generator=generator, dtype=torch.float64)


def exact(x: Tensor) -> Factors:
    """The factors of vectors of which nothing is left out."""
    return Factors((x,), (1.0,), x.new_zeros(1, T), x.new_zeros(1, T))


def array(x: Tensor) -> Tensor:
    """All pairs of rows of all times."""
    rows = x.shape[:-1]
    flat = x.flatten(0, -2)
    return (flat @ flat.T).reshape(*rows, *rows)


def both(x: Tensor) -> tuple[Kernel, Kernel]:
    """A kernel by its array of all pairs, and by factors."""
    two_time = Kernel(array(x))
    return two_time, Kernel(two_time.equal_time.clone(), exact(x))


@pytest.mark.parametrize("rows", ROWS)
def test_factors_are_another_form_of_the_array(rows: tuple[int, ...], generator: torch.Generator) -> None:
    full, few = both(vectors(rows, generator))
    assert few.has_lags
    assert not few.is_two_time
    assert torch.allclose(few.values, full.values, rtol=1e-12)
    assert torch.equal(Kernel(few.values).equal_time, few.array)
    for t in range(T):
        for s in range(-T, 0):
            expected = full.values[t].select(len(rows), s)
            assert torch.allclose(few.between(t, s), expected, rtol=1e-12)
            assert torch.equal(full.between(t, s), expected)
    assert not torch.allclose(few.between(0, 1), few.between(1, 0))
    swapped = few.between(1, 0).flatten(len(rows)).flatten(0, len(rows) - 1).T
    assert torch.allclose(few.between(0, 1).reshape(swapped.shape), swapped)


@pytest.mark.parametrize("rows", ROWS)
def test_parts_of_a_kernel(rows: tuple[int, ...], generator: torch.Generator) -> None:
    full, few = both(vectors(rows, generator))
    times, some = torch.tensor([3, 1]), torch.tensor([2, 0])
    assert torch.allclose(few.at(times).values, full.at(times).values, rtol=1e-12)
    assert torch.allclose(few.at_rows(some).values, full.at_rows(some).values, rtol=1e-12)
    assert torch.allclose(few.per_sample().values, full.per_sample().values, rtol=1e-12)


def test_sums_with_weights_and_means_of_times(generator: torch.Generator) -> None:
    x, y = vectors((P,), generator), vectors((P,), generator)
    every = torch.arange(T)
    total = weighted([exact(x), exact(y)], [0.75, -0.5])
    assert torch.allclose(total.between(every, every), 0.75 * array(x) - 0.5 * array(y), rtol=1e-12)
    twice = weighted([total, exact(x)], [2.0, 1.0])
    assert torch.allclose(twice.between(every, every), 2.5 * array(x) - array(y), rtol=1e-12)
    assert weighted([exact(x), None], [0.5, 0.5]) is None
    mix = torch.tensor([[0.25, 0.75, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    mixed = exact(x).mixed(mix)
    two = torch.arange(2)
    assert torch.allclose(mixed.between(two, two), array(torch.tensordot(mix, x, 1)), rtol=1e-12)


@pytest.mark.parametrize("lost", [0.1, 1.0])
def test_the_bound_holds_what_is_left_out(lost: float, generator: torch.Generator) -> None:
    """Of vectors in K directions the last two are lost at early times, as before they are met, and one is dropped."""
    x = vectors((P,), generator)
    x[..., 2:] *= lost
    known = x.clone()
    known[:2, :, 3:] = 0
    rest = (x - known)[..., :4].clone()  # what a basis loses; the last axis is dropped at all times
    small = x[..., 4:]
    kept = known[..., :4]

    def size(part: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(part @ part.mT).sqrt()[None]

    kernel = Kernel(Kernel(array(x)).equal_time.clone(), Factors((kept,), (1.0,), size(rest), size(small)))
    full, ratios = array(x), []
    for t in range(T):
        for s in range(T):
            error = float((kernel.between(t, s) - full[t, :, s]).norm())
            assert error <= kernel.bound(t, s) * (1 + 1e-12)
            ratios += [error / kernel.bound(t, s)] if t != s else []
            assert (t == s) == (kernel.bound(t, s) == 0)
    assert max(ratios) > 0.2  # it is no idle bound


def test_the_bound_of_a_mean_is_the_mean_of_bounds(generator: torch.Generator) -> None:
    parts = [exact(vectors((P,), generator)) for _ in range(2)]
    parts = [replace(part, left_out=torch.full((1, T), 0.1), dropped=torch.full((1, T), 0.2)) for part in parts]
    mean = weighted(parts, [0.5, 0.5])
    assert mean.bound(0, 2) == pytest.approx(sum(part.bound(0, 2) for part in parts) / 2)
    assert parts[0].bound(0, 2) > 0.2**2


def test_files_keep_factors(generator: torch.Generator, tmp_path: Path) -> None:
    run = example(generator)
    x = torch.randn(2, 3, 2, K, generator=generator)
    kernel = Kernel(Kernel(array(x)).equal_time.clone(), Factors((x,), (0.5,), torch.zeros(1, 2), torch.ones(1, 2)))
    run = replace(run, layers=(replace(run.layers[0], backward=kernel), *run.layers[1:]))
    run.save(tmp_path / "run.npz")
    again = Trajectory.load(tmp_path / "run.npz")
    assert again == run
    assert torch.equal(again.layers[0].backward.between(0, 1), kernel.between(0, 1))
    other = replace(kernel, factors=replace(kernel.factors, weights=(0.25,)))
    assert again != replace(run, layers=(replace(run.layers[0], backward=other), *run.layers[1:]))
    double = run.to(torch.float64).layers[0].backward
    assert double.factors.parts[0].dtype == torch.float64
    assert torch.allclose(double.between(1, 0), kernel.between(1, 0).double())


def test_refusals(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x = vectors((P,), generator)
    full, few = both(x)
    equal = Kernel(full.equal_time)
    assert torch.equal(equal.between(1, 1), equal.array[1])
    with pytest.raises(NotRecordedError, match=r"two_time=0\.01"):
        equal.between(0, 1)
    with pytest.raises(NotRecordedError, match=r"two_time=True"):
        equal.bound(0, 1)
    with pytest.raises(InvalidInputError, match=r"0\.\.3"):
        few.between(0, T)
    for wrong in (Kernel(full.array[:2, :, :2]), few.at_rows(torch.tensor([0, 1])), few.at(torch.tensor([0]))):
        with pytest.raises(InvalidInputError, match="of its times and rows"):
            Kernel(
                few.array if not wrong.is_two_time else wrong.array, exact(x) if wrong.is_two_time else wrong.factors
            )
    with pytest.raises(InvalidInputError, match="a weight each"):
        replace(few.factors, weights=())
    monkeypatch.setattr("torch_dmft.core.memory.free_memory", lambda device: 100)
    monkeypatch.setattr("torch_dmft.core.memory._was_plenty", lambda *_: False)
    with pytest.raises(InsufficientMemoryError, match=r"kernel\.between"):
        _ = few.values


@pytest.mark.parametrize("wrong", [0, 0.0, 1, 1.0, 1e-7, -0.01, float("nan")])
def test_tolerances(wrong: float) -> None:
    with pytest.raises(InvalidInputError, match=r"two_time=0\.01"):
        tolerance_of(wrong)
    assert tolerance_of(0.02) == 0.02
    assert tolerance_of(True) is tolerance_of(False) is None
