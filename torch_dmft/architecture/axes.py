"""Which axes of the tensors in a model are widths.

Every axis of a tensor carries a label. ``None`` is an axis whose size the data fix (their features, positions,
tokens). A weight makes a new axis, numbered by an integer. Adding two tensors unifies their axes; concatenating,
flattening and slicing derive a new axis from others. In the end an axis is a *width* unless it was unified with
the data or reaches the model's output.

A width may be split into consecutive parts, such as the heads of attention. Their number is fixed; the entries of each
part are a width. Side by side the parts are the whole again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import combinations

Label = int | None

SAMPLE: int = 0
"""The label of the axis that counts samples; it is neither a width nor a feature axis."""


@dataclass(frozen=True)
class Split:
    """A width laid out on several axes.

    Attributes:
        whole: the width.
        counts: how many parts there are, outermost axis first.
        parts: the new axes: one for each count, and last the entries of one part.
    """

    whole: int
    counts: tuple[int, ...]
    parts: tuple[int, ...]


class Axes:
    """Union-find over axis labels, with what fixes the size of each."""

    def __init__(self) -> None:
        self._parent = [SAMPLE]
        self._by_data: set[int] = set()
        self._by_output: set[int] = set()
        self._derived: list[tuple[int, tuple[int, ...]]] = []
        self._splits: list[Split] = []

    def new(self) -> int:
        """A new axis, a width until something fixes it."""
        self._parent.append(len(self._parent))
        return self._parent[-1]

    def derived(self, parts: Iterable[Label]) -> Label:
        """An axis made of parts of others (concatenation, flattening, slicing): a width if one of them is."""
        labels = tuple(part for part in parts if part is not None)
        if not labels or SAMPLE in labels:
            return SAMPLE if labels else None
        whole = self.new()
        self._derived.append((whole, labels))
        return whole

    def split(self, whole: int, counts: tuple[int, ...]) -> tuple[int, ...]:
        """The axes of a width laid out in this many parts: one for each count, and the entries of one part."""
        for known in self._splits:
            if known.counts == counts and self.root(known.whole) == self.root(whole):
                return known.parts
        parts = tuple(self.new() for _ in (*counts, whole))
        for number in parts[:-1]:
            self.fix(number)
        self._derived.append((parts[-1], (whole,)))
        self._splits.append(Split(whole, counts, parts))
        return parts

    def joined(self, parts: tuple[Label, ...]) -> Label:
        """One axis in place of these: the whole that was split into them, else an axis derived from them."""
        for known in self._splits:
            if None not in parts and [self.root(p) for p in parts if p] == [self.root(p) for p in known.parts]:
                return known.whole
        return self.derived(part for part in parts if part is None or not self.is_fixed(part))

    @property
    def has_splits(self) -> bool:
        """Whether a width is laid out in parts (after ``settle``)."""
        return any(self.is_width(split.whole) for split in self._splits)

    def meets_parts_of_others(self, label: int) -> bool:
        """Whether entries of this width were combined one by one with parts of a width that is not laid out alike."""
        root = self.root(label)
        pairs = [(a, b) for a in self._splits for b in self._splits if self.root(a.parts[-1]) == self.root(b.parts[-1])]
        is_entries = any(self.root(a.parts[-1]) == root for a, _ in pairs)
        return is_entries or any(self.root(a.whole) == root and a.counts != b.counts for a, b in pairs)

    def root(self, label: int) -> int:
        """The number all axes unified with this one share."""
        while self._parent[label] != label:
            label = self._parent[label]
        return label

    def unify(self, a: Label, b: Label) -> Label:
        """Say that two axes are one, because their entries were combined one by one."""
        if SAMPLE in (a, b):
            return SAMPLE
        if a is None or b is None:
            label = b if a is None else a
            self.fix(label)
            return label
        low, high = sorted((self.root(a), self.root(b)))
        self._parent[high] = low
        for one, other in combinations(self._splits, 2):  # parts whose entries are combined make wholes that are
            ends = self.root(one.parts[-1]), self.root(other.parts[-1])
            if one.counts == other.counts and ends == (low, low) and self.root(one.whole) != self.root(other.whole):
                self.unify(one.whole, other.whole)
        return self.root(low)

    def unified(self, labels: Iterable[Label]) -> Label:
        """Say that all these axes are one; None if there are none."""
        first, *others = tuple(labels) or (None,)
        return reduce(self.unify, others, first)

    def fix(self, label: Label) -> None:
        """Say that an axis is no width, because single entries of it are picked or spread over another axis."""
        if label not in (None, SAMPLE):
            self._by_data.add(label)

    def reach_output(self, label: Label) -> None:
        """Say that an axis is one of the model's output."""
        if label not in (None, SAMPLE):
            self._by_output.add(label)

    def settle(self) -> None:
        """Carry what fixes an axis over to all axes unified with it, derived from it, or that it is derived from."""
        before = None
        while before != (before := (len(self._by_data), len(self._by_output))):
            for fixed in (self._by_data, self._by_output):
                fixed |= {self.root(label) for label in fixed}
                for whole, parts in self._derived:
                    if self.root(whole) in fixed:
                        fixed |= {self.root(part) for part in parts}
            for whole, parts in self._derived:
                if not any(self.is_width(part) for part in parts):
                    last = any(self.is_output(part) for part in parts)
                    (self._by_output if last else self._by_data).add(self.root(whole))

    def is_fixed(self, label: int) -> bool:
        """Whether something other than the output is known to fix the axis so far."""
        return self.root(label) in {self.root(fixed) for fixed in self._by_data}

    def is_output(self, label: Label) -> bool:
        """Whether the axis is one of the model's output (after ``settle``)."""
        return label is not None and self.root(label) in self._by_output

    def is_width(self, label: Label) -> bool:
        """Whether nothing fixes the axis (after ``settle``)."""
        if label is None or label == SAMPLE:
            return False
        return self.root(label) not in self._by_data | self._by_output
