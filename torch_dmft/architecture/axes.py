"""Which axes of the tensors in a model are widths.

Every axis of a tensor carries a label. ``None`` is an axis whose size the data fix (their features, positions,
tokens). A weight makes a new axis, numbered by an integer. Adding two tensors unifies their axes; concatenating,
flattening and slicing derive a new axis from others. In the end an axis is a *width* unless it was unified with
the data or reaches the model's output.

A width may be split into consecutive parts, such as the heads of attention. Either their number is fixed, and the entries of
each part are a width; or their size is fixed, and their number is a width. Side by side the parts are the whole again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

Label = int | None

SAMPLE: int = 0
"""The label of the axis that counts samples; it is neither a width nor a feature axis."""


@dataclass(frozen=True)
class Split:
    """A width laid out on several axes.

    Attributes:
        whole: the width.
        sizes: of the new axes, outermost first; None for the one that grows with the width.
        parts: the new axes.
    """

    whole: int
    sizes: tuple[int | None, ...]
    parts: tuple[int, ...]

    @property
    def grown(self) -> int:
        """The axis that grows with the width."""
        return self.parts[self.sizes.index(None)]

    @property
    def sizes_of_parts(self) -> tuple[int, ...]:
        """The fixed size of one part; () if their number is fixed instead."""
        return tuple(size for size in self.sizes[self.sizes.index(None) + 1 :] if size is not None)


class Axes:
    """Union-find over axis labels, with the reasons that fix the size of each.

    What is known of an axis is kept at its root and moves with it, so that every question takes constant time, near enough.
    """

    def __init__(self) -> None:
        self._parent = [SAMPLE]
        self._by_data: set[int] = set()
        self._by_output: set[int] = set()
        self._derived: list[tuple[int, tuple[int, ...]]] = []
        self._by_whole: dict[int, list[Split]] = {}
        self._by_grown: dict[int, list[Split]] = {}

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

    def split(self, whole: int, sizes: tuple[int | None, ...]) -> tuple[int, ...]:
        """The axes of a width laid out on axes of these sizes, of which one, None, grows with it."""
        for known in self._by_whole.get(self.root(whole), ()):
            if known.sizes == sizes:
                return known.parts
        split = Split(whole, sizes, tuple(self.new() for _ in sizes))
        for part in split.parts:
            if part != split.grown:
                self.fix(part)
        self._derived.append((split.grown, (whole,)))
        self._by_whole.setdefault(self.root(whole), []).append(split)
        self._by_grown[split.grown] = [split]
        return split.parts

    def joined(self, parts: tuple[Label, ...]) -> Label:
        """One axis in place of these: the whole that was split into them, else an axis derived from them."""
        if None not in parts:
            roots = [self.root(part) for part in parts if part]
            for known in (split for root in roots for split in self._by_grown.get(root, ())):
                if roots == [self.root(part) for part in known.parts]:
                    return known.whole
        return self.derived(part for part in parts if part is None or not self.is_fixed(part))

    @property
    def splits(self) -> list[Split]:
        """How widths are laid out in parts (after ``settle``)."""
        return [split for whole, splits in self._by_whole.items() if self.is_width(whole) for split in splits]

    def shares_parts(self, labels: Iterable[int]) -> bool:
        """Whether neurons of one of these widths meet several others one by one: those of keys that queries share.

        They meet parts of a width that is laid out otherwise, or are repeated until they are as many as its parts.
        """
        repeated = (whole for whole, parts in self._derived if any(self.root(part) in self._by_grown for part in parts))
        return any(self.root(whole) in self._by_grown for whole in repeated) or any(
            self.root(label) in self._by_grown
            or any(
                split.sizes != other.sizes
                for split in self._by_whole.get(self.root(label), ())
                for other in self._by_grown[self.root(split.grown)]
            )
            for label in labels
        )

    def root(self, label: int) -> int:
        """The number all axes unified with this one share."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = label = parent[parent[label]]
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
        if low == high:
            return low
        self._parent[high] = low
        for fixed in (self._by_data, self._by_output):
            if high in fixed:
                fixed.add(low)
        if high in self._by_whole:
            self._by_whole.setdefault(low, []).extend(self._by_whole.pop(high))
        if high in self._by_grown:
            moved, here = self._by_grown.pop(high), self._by_grown.setdefault(low, [])
            alike = {split.sizes: split.whole for split in here}
            here.extend(moved)
            for split in moved:  # parts whose entries are combined make wholes that are
                if split.sizes in alike:
                    self.unify(alike[split.sizes], split.whole)
        return self.root(low)

    def unified(self, labels: Iterable[Label]) -> Label:
        """Say that all these axes are one; None if there are none."""
        first, *others = tuple(labels) or (None,)
        return reduce(self.unify, others, first)

    def fix(self, label: Label) -> None:
        """Say that an axis is not a width, because single entries of it are picked or spread over another axis."""
        if label not in (None, SAMPLE):
            self._by_data.add(self.root(label))

    def reach_output(self, label: Label) -> None:
        """Say that an axis is one of the model's output."""
        if label not in (None, SAMPLE):
            self._by_output.add(self.root(label))

    def settle(self) -> None:
        """Carry what fixes an axis over to all axes derived from it, or that it is derived from."""
        derived = [(self.root(whole), {self.root(part) for part in parts}) for whole, parts in self._derived]
        made_of, part_of = defaultdict(list), defaultdict(list)
        still_open = [len(parts) for _, parts in derived]
        for number, (whole, parts) in enumerate(derived):
            made_of[whole].append(number)
            for part in parts:
                part_of[part].append(number)
        seen: set[int] = set()
        news = [(root, fixed) for fixed in (self._by_output, self._by_data) for root in fixed]

        def add(label: int, fixed: set[int]) -> None:
            if label not in fixed:
                fixed.add(label)
                news.append((label, fixed))

        while news:
            root, fixed = news.pop()
            for number in made_of[root]:
                for part in derived[number][1]:
                    add(part, fixed)
            for number in part_of[root]:
                still_open[number] -= root not in seen
                if not still_open[number]:
                    whole, parts = derived[number]
                    add(whole, self._by_data if parts.isdisjoint(self._by_output) else self._by_output)
            seen.add(root)

    def is_fixed(self, label: int) -> bool:
        """Whether something other than the output is known to fix the axis so far."""
        return self.root(label) in self._by_data

    def is_made(self, label: Label) -> bool:
        """Whether an axis is made of parts of others, or a part of one."""
        return label is not None and self.root(label) in {self.root(whole) for whole, _ in self._derived}

    def is_output(self, label: Label) -> bool:
        """Whether the axis is one of the model's output (after ``settle``)."""
        return label is not None and self.root(label) in self._by_output

    def is_width(self, label: Label) -> bool:
        """Whether nothing fixes the axis (after ``settle``)."""
        if label is None or label == SAMPLE:
            return False
        root = self.root(label)
        return root not in self._by_data and root not in self._by_output
