"""Which axes of the tensors in a model are widths.

Every axis of a tensor carries a label. ``None`` is an axis whose size the data fix (their features, positions,
tokens). A weight makes a new axis, numbered by an integer. Adding two tensors unifies their axes; concatenating,
flattening and slicing derive a new axis from others. In the end an axis is a *width* unless it was unified with
the data or reaches the model's output.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

Label = int | None

SAMPLE: int = 0
"""The label of the axis that counts samples; it is neither a width nor a feature axis."""


class Axes:
    """Union-find over axis labels, with what fixes the size of each."""

    def __init__(self) -> None:
        self._parent = [SAMPLE]
        self._by_data: set[int] = set()
        self._by_output: set[int] = set()
        self._derived: list[tuple[int, tuple[int, ...]]] = []

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
        return low

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
