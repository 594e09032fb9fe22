from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torch_dmft.core.errors import InvalidInputError, NotRecordedError
from torch_dmft.core.kernel import Kernel

T, P, C = 3, 4, 2
SHAPES = [(T, P, P), (T, P, T, P), (T, P, C, P, C), (T, P, C, T, P, C)]


def kernel(shape: tuple[int, ...], generator: torch.Generator) -> Kernel:
    return Kernel(torch.randn(*shape, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
def test_axes_name_the_layout(shape: tuple[int, ...], generator: torch.Generator) -> None:
    k = kernel(shape, generator)
    sizes = {"time": T, "sample": P, "output": C}
    assert tuple(sizes[axis] for axis in k.axes) == shape
    assert k.is_two_time == (k.axes.count("time") == 2)
    assert k.has_outputs == ("output" in k.axes)


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_time_and_matrix(shape: tuple[int, ...], generator: torch.Generator) -> None:
    k = kernel(shape, generator)
    half = k.array.ndim // 2
    for t in range(T):
        block: Tensor = k.array[t].select(half - 1, t) if k.is_two_time else k.array[t]
        assert torch.equal(k.equal_time[t], block)
        rows = P * (C if k.has_outputs else 1)
        assert torch.equal(k.matrix(t), block.reshape(rows, rows))


@pytest.mark.parametrize("shape", SHAPES)
def test_at_keeps_the_chosen_times(shape: tuple[int, ...], generator: torch.Generator) -> None:
    k, index = kernel(shape, generator), torch.tensor([2, 0])
    assert torch.equal(k.at(index).equal_time, k.equal_time[index])
    if k.is_two_time:
        assert torch.equal(k.at(index).values, k.values[index].index_select(k.array.ndim // 2, index))


@pytest.mark.parametrize("shape", SHAPES)
def test_per_sample_averages_equal_outputs(shape: tuple[int, ...], generator: torch.Generator) -> None:
    k = kernel(shape, generator)
    if not k.has_outputs:
        assert k.per_sample() is k
        return
    pattern = "tmcsac->tmsa" if k.is_two_time else "tmcac->tma"
    assert torch.allclose(k.per_sample().array, torch.einsum(pattern, k.array) / C, rtol=1e-10)


def test_refusals(generator: torch.Generator) -> None:
    with pytest.raises(NotRecordedError, match="two_time=True"):
        _ = kernel((T, P, P), generator).values
    with pytest.raises(InvalidInputError, match="3 to 6 axes"):
        kernel((P, P), generator)
    for shape in [(T, P, P + 1), (T, P, T + 1, P), (T, P, C, P, C + 1), (T, P, C, T, P + 1, C)]:
        with pytest.raises(InvalidInputError, match="two sides"):
            kernel(shape, generator)
