"""The Custom Scalars page: runs together in one chart for each quantity and weight, and bands of the theory."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import custom_scalars

from torch_dmft.report.scalars import KINDS, LOWER, UPPER

_PREDICTED = {"Phi": slice(1, None), "G": slice(-1), "NTK": slice(None)}
"""Weights at which kernels are predicted, and not given by data or outputs."""

_Chart = tuple[str, list[str | list[str]]]


def layout(weights: int, *, has_targets: bool, has_widths: bool, has_scatter: bool, has_ntk: bool = True) -> Summary:
    """The page of a comparison of networks with so many weights; titles hold indices, so that models share charts.

    Args:
        weights: L + 1.
        has_targets: whether alignments with the targets were written.
        has_widths: whether the widths of the network are known.
        has_scatter: whether the scatter of networks of its width is known.
        has_ntk: whether the NTK was recorded.
    """
    whole = [*map(_lines, ("NTK alignment/all", "NTK relative error/all"))] if has_ntk else []
    categories: dict[str, dict[str, list]] = {
        "Loss": dict([_lines("loss"), _lines("loss, log10"), _band("loss")]),
        "All weights": dict([*whole, _lines("relative error/all"), *([_band("NTK trace/all")] if has_ntk else [])]),
    }
    for kind in KINDS if has_ntk else ("Phi", "G"):
        for quantity in ("alignment", "relative error", "moved", "trace"):
            categories[f"{kind}: {quantity}"] = dict(_each(f"{kind} {quantity}", range(weights)))
        predicted = range(weights)[_PREDICTED[kind]]
        if has_widths:
            categories[f"{kind}: relative error times the root of N"] = dict(_each(f"{kind} error, root N", predicted))
        if has_scatter:
            categories[f"{kind}: in units of what the width explains"] = dict(_each(f"{kind} deviation", predicted))
        categories[f"{kind}: trace with the band of the theory"] = dict(
            _band(f"{kind} trace/{position}") for position in range(weights)
        )
    if has_targets:
        categories["Phi: alignment with the targets"] = dict(_each("Phi on targets", range(weights)))
    return custom_scalars(categories)


def _each(quantity: str, weights: range) -> Iterator[_Chart]:
    return (_lines(f"{quantity}/{position}") for position in weights)


def _lines(tag: str) -> _Chart:
    return _title(tag), ["Multiline", [f"^{re.escape(tag)}$"]]


def _band(tag: str) -> _Chart:
    return f"{_title(tag)}, with band", ["Margin", [tag, f"{LOWER}/{tag}", f"{UPPER}/{tag}"]]


def _title(tag: str) -> str:
    quantity, _, place = tag.partition("/")
    return f"{quantity}, weight {place}" if place.isdigit() else quantity
