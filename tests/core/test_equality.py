"""Runs are equal by value, bit for bit; comparing never raises, and hashes agree with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trajectories import two_layers
from torch_dmft.core.equality import by_value, hash_of_value, same_value
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.training import Training
from torch_dmft.core.trajectory import Trajectory

NAN = float("nan")
OTHER_NAN = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)


def run() -> Trajectory:
    made = two_layers(stderr=0.1)
    return replace(made, replicas=(made, replace(made, origin="other")), metadata={"width": 3, "none": None})


def copies(value: Any) -> Any:
    """The same value in new memory."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple):
        return tuple(map(copies, value))
    if hasattr(value, "__dataclass_fields__"):
        return replace(value, **{f.name: copies(getattr(value, f.name)) for f in fields(value)})
    return dict(value) if isinstance(value, dict) else value


@pytest.mark.parametrize(
    "part",
    [lambda run: run, lambda run: run.layers[0], lambda run: run.ntk, lambda run: run.layers[0].fields],
    ids=["Trajectory", "LayerKernels", "Kernel", "Fields"],
)
def test_copies_are_equal_and_any_change_is_seen(part: Callable[[Trajectory], Any]) -> None:
    value = part(run())
    other = copies(value)
    assert value == other
    assert (value != other) is False
    assert hash(value) == hash(other)
    assert len({value, other}) == 1
    tensors = [f.name for f in fields(value) if isinstance(getattr(value, f.name), Tensor)]
    for name in tensors:
        changed = getattr(value, name).clone()
        changed.view(-1)[-1] = ~changed.view(-1)[-1] if changed.dtype == torch.bool else changed.view(-1)[-1] + 1
        assert value != replace(value, **{name: changed})
    for stranger in (3, None, "run", (), torch.ones(3), np.ones(3), object(), part):
        assert (value == stranger) is False
        assert isinstance(stranger, np.ndarray) or (stranger == value) is False


def test_what_is_deep_inside_counts() -> None:
    whole = run()
    for change in (
        {"training": replace(whole.training, steps=1)},
        {"training": Training.sgd(torch.tensor([0.1, 0.2]), 2)},
        {"origin": "else"},
        {"stderr": None},
        {"replicas": whole.replicas[:1]},
        {"replicas": whole.replicas[::-1]},
        {"layers": whole.layers[:2], "stderr": None, "replicas": ()},
        {"targets": None},
        {"metadata": {"width": 3}},
        {"metadata": {"width": 3, "none": 0}},
        {"ntk": whole.layers[0].forward},
        {"stderr": replace(whole.stderr, losses=whole.losses)},
    ):
        assert whole != replace(whole, **change)
    assert whole == replace(whole, metadata={"none": None, "width": 3})


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ([1.0, NAN], [1.0, NAN], True),
        (torch.tensor([NAN]), OTHER_NAN, True),
        ([0.0], [-0.0], False),
        ([1.0], [1], False),
        (torch.ones(2), torch.ones(2, dtype=torch.float64), False),
        (torch.ones(2), torch.ones(2, 1), False),
        (torch.ones(2), torch.ones(1), False),
        (torch.ones(()), torch.ones(()), True),
        (torch.ones(0, 3), torch.ones(0, 3), True),
        (torch.ones(2, 3).T, torch.ones(3, 2), True),
        (torch.ones(1).expand(5), torch.ones(5), True),
        (torch.ones(2, requires_grad=True), torch.ones(2), True),
        (torch.nn.Parameter(torch.ones(2)), torch.ones(2), True),
        (torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j]), True),
        (torch.tensor([complex(NAN, 1)]), torch.tensor([complex(NAN, 1)]), True),
        (torch.tensor([complex(NAN, 1)]), torch.tensor([complex(NAN, 2)]), False),
        (torch.tensor([NAN], dtype=torch.bfloat16), torch.tensor([-NAN], dtype=torch.bfloat16), True),
        (torch.ones(2, dtype=torch.float8_e5m2), torch.ones(2, dtype=torch.float8_e5m2), True),
        (torch.tensor([True, False]), torch.tensor([True, True]), False),
        (torch.ones(2).to_sparse(), torch.ones(2).to_sparse(), True),
        (torch.ones(2).to_sparse(), torch.ones(2), False),
        (torch.ones(2, device="meta"), torch.ones(2), False),
    ],
)
def test_tensors_are_compared_bit_for_bit(a: Any, b: Any, same: bool) -> None:
    a, b = (value if isinstance(value, Tensor) else torch.tensor(value) for value in (a, b))
    assert same_value(a, b) is same_value(b, a) is same
    if same:
        assert hash_of_value(a) == hash_of_value(b)


def square(x: float) -> float:
    return x * x


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (NAN, math.nan, True),
        (1, 1.0, True),
        (np.float64(2.0), 2, True),
        ((1, (2, NAN)), (1, (2, math.nan)), True),
        ((1,), [1], False),
        ((1, 2), (1,), False),
        ({"a": torch.ones(2)}, {"a": torch.ones(2)}, True),
        ({"a": 1}, {"b": 1}, False),
        ("a", b"a", False),
        (1, "1", False),
        (None, 0, False),
        (torch.ones(1), 1.0, False),
        (1.0, torch.ones(1), False),
        (square, square, True),
        (square, math.sqrt, False),
        (math.sqrt, math.sqrt, True),
        (partial(square, 1), partial(square, 1), False),
        ([1].append, (), False),
        ({1, 2}, {2, 1}, True),
        (np.ones(2), np.ones(2), False),  # not among what these classes hold; no error
    ],
)
def test_everything_else(a: Any, b: Any, same: bool) -> None:
    assert same_value(a, b) is same_value(b, a) is same
    if same:
        assert hash_of_value(a) == hash_of_value(b)
    assert same_value(a, a)
    assert isinstance(hash_of_value(a), int)


class Odd:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("never")

    __hash__ = None  # type: ignore[assignment]


@by_value
@dataclass(frozen=True)
class Pair:
    left: Any
    right: Any = field(default=None, compare=False)


@by_value
@dataclass(frozen=True)
class Special(Pair):
    pass


def test_other_dataclasses() -> None:
    assert Pair(torch.ones(2)) == Pair(torch.ones(2), right=3)
    assert hash(Pair(torch.ones(2))) == hash(Pair(torch.ones(2), right=3))
    assert Pair({"a": [torch.ones(2)]}) == Pair({"a": [torch.ones(2)]})
    assert Pair(1) != Special(1)
    assert Special(1) == Special(1)
    assert Pair(Odd()) != Pair(Odd())
    assert isinstance(hash(Pair(Odd())), int)
    shared = Odd()
    assert Pair(shared) == Pair(shared)
    assert Pair.__eq__.__qualname__ == "Pair.__eq__"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_does_not_count() -> None:
    kernel = Kernel(torch.randn(2, 3, 3))
    assert kernel == Kernel(kernel.array.cuda())
    assert hash(kernel) == hash(Kernel(kernel.array.cuda()))
