"""Width axes and reshapes, against what the definitions say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_dmft.architecture.axes import SAMPLE, Axes
from torch_dmft.architecture.operations.regroup import regroup

sizes = st.lists(st.integers(1, 3), max_size=3)


@settings(deadline=None)
@given(groups=st.lists(st.tuples(sizes, st.randoms(use_true_random=False)), max_size=3))
def test_a_reshape_moves_entries_only_within_groups(groups: list) -> None:
    old = [size for group, _ in groups for size in group]
    new = []
    for group, random in groups:  # keep, flatten or rearrange each stretch of axes
        choice = random.randrange(3)
        new += [group, [math.prod(group)], random.sample(group, len(group))][choice]
    tensor = torch.arange(math.prod(old)).reshape(old)
    reshaped = tensor.reshape(new)

    found = regroup(tuple(old), tuple(new))

    assert [axis for olds, _ in found for axis in olds] == [axis for axis, size in enumerate(old) if size > 1]
    assert [axis for _, news in found for axis in news] == [axis for axis, size in enumerate(new) if size > 1]
    for olds, news in found:
        assert math.prod(old[axis] for axis in olds) == math.prod(new[axis] for axis in news)
        for entry in tensor.flatten()[: 2 * len(old)]:
            here, there = (tensor == entry).nonzero()[0], (reshaped == entry).nonzero()[0]
            before = sum(int(here[a]) * math.prod(old[b] for b in olds if b > a) for a in olds)
            after = sum(int(there[a]) * math.prod(new[b] for b in news if b > a) for a in news)
            assert before == after


def test_regroup_finds_the_finest_groups() -> None:
    assert regroup((2, 3, 4), (2, 12)) == (((0,), (0,)), ((1, 2), (1,)))
    assert regroup((2, 1, 12), (2, 3, 4)) == (((0,), (0,)), ((2,), (1, 2)))
    assert regroup((4, 6), (6, 4)) == (((0, 1), (0, 1)),)


def test_a_new_axis_is_a_width_until_something_fixes_it() -> None:
    axes = Axes()
    free, data, output, picked = (axes.new() for _ in range(4))
    axes.unify(data, None)
    axes.reach_output(output)
    axes.fix(picked)
    axes.settle()
    assert [axes.is_width(label) for label in (free, data, output, picked, None, SAMPLE)] == [True, *[False] * 5]
    assert axes.is_output(output)
    assert not axes.is_output(data)


def test_what_fixes_one_axis_fixes_all_that_are_unified_with_it() -> None:
    axes = Axes()
    a, b, c = (axes.new() for _ in range(3))
    axes.unify(a, b)
    axes.reach_output(c)
    axes.unify(b, c)
    axes.settle()
    assert axes.root(a) == axes.root(c)
    assert axes.is_output(a)


@pytest.mark.parametrize("depth", [1, 3])
def test_derived_axes_are_fixed_with_their_parts_and_their_whole(depth: int) -> None:
    axes = Axes()
    first, second = axes.new(), axes.new()
    whole = axes.derived([first, second, None])
    for _ in range(depth - 1):
        whole = axes.derived([whole])
    axes.settle()
    assert axes.is_width(whole)
    axes.fix(first)
    axes.settle()
    assert axes.is_width(whole)  # the second part is still free
    assert not axes.is_width(first)
    axes.reach_output(whole)
    axes.settle()
    assert axes.is_output(first)
    assert axes.is_output(second)


def test_derived_of_data_is_data() -> None:
    axes = Axes()
    part = axes.new()
    whole = axes.derived([part, None])
    axes.unify(part, None)
    axes.settle()
    assert not axes.is_width(whole)
    assert axes.derived([None, None]) is None
    assert axes.derived([SAMPLE, None]) == SAMPLE


def test_parts_side_by_side_are_the_whole_again() -> None:
    axes = Axes()
    whole = axes.new()
    heads, entries = axes.split(whole, (2, None))
    assert axes.split(whole, (2, None)) == (heads, entries)
    assert axes.joined((heads, entries)) == whole
    assert axes.joined((entries, heads)) != whole  # another order of the neurons
    axes.settle()
    assert axes.is_width(entries)
    assert not axes.is_width(heads)
    assert [split.sizes for split in axes.splits] == [(2, None)]


def test_parts_may_grow_in_number_instead_of_in_size() -> None:
    axes = Axes()
    whole, other = axes.new(), axes.new()
    three, heads, entries = axes.split(whole, (3, None, 8))
    assert axes.joined((three, heads, entries)) == whole
    assert axes.joined((heads, entries)) != whole  # one of the three
    axes.unify(heads, axes.split(other, (3, None, 8))[1])
    assert axes.root(whole) == axes.root(other)
    assert not axes.shares_parts([whole])
    axes.settle()
    assert [axes.is_width(part) for part in (three, heads, entries)] == [False, True, False]
    assert {split.sizes_of_parts for split in axes.splits} == {(8,)}


def test_wholes_whose_parts_meet_are_one_width() -> None:
    axes = Axes()
    wholes = [axes.new() for _ in range(4)]
    parts = [axes.split(whole, (count, None)) for whole, count in zip(wholes, (2, 2, 4, 2), strict=True)]
    axes.unify(parts[0][1], parts[1][1])
    assert axes.root(wholes[0]) == axes.root(wholes[1])
    assert not axes.shares_parts([wholes[0]])
    axes.unify(parts[2][1], parts[3][1])  # as many neurons in a head, but other numbers of heads
    assert axes.root(wholes[2]) != axes.root(wholes[3])
    assert axes.shares_parts([wholes[2]])
    assert axes.shares_parts([wholes[3]])


@pytest.mark.parametrize("which", ["whole", "entries"])
def test_what_fixes_a_width_fixes_its_parts_and_conversely(which: str) -> None:
    axes = Axes()
    whole = axes.new()
    _, entries = axes.split(whole, (3, None))
    axes.unify({"whole": whole, "entries": entries}[which], None)
    axes.settle()
    assert not axes.is_width(whole)
    assert not axes.is_width(entries)
    assert not axes.splits
