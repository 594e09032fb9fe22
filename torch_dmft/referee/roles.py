"""What a parameter is for, by which of its axes grow with the width."""

from __future__ import annotations

from enum import StrEnum

from torch_dmft.referee.look import OUTPUTS, SCORES, Place
from torch_dmft.referee.measure import Measured


class Role(StrEnum):
    """What a parameter is for, by which axes grow with the width."""

    INPUT = "input"
    EMBEDDING = "embedding"
    HIDDEN = "hidden"
    READOUT = "readout"
    INNER = "inner"
    VECTOR = "vector"
    SCALAR = "scalar"
    SCORES = "scores"
    OUTPUTS = "outputs"

    @property
    def is_matrix(self) -> bool:
        """Whether it multiplies vectors."""
        return self in _MATRICES

    @property
    def averages(self) -> bool:
        """Whether it sums over neurons, and may start as N^-1/2."""
        return self in (Role.READOUT, Role.SCORES, Role.OUTPUTS)


_MATRICES = frozenset({Role.INPUT, Role.EMBEDDING, Role.HIDDEN, Role.READOUT, Role.INNER})


def role(measured: Measured, place: Place) -> Role:
    """The role of what is at a place, from two widths."""
    names, operator, _ = place
    if operator == OUTPUTS:
        return Role.OUTPUTS
    if operator.startswith(SCORES) and not names:
        return Role.SCORES
    (narrow_in, narrow), (wide_in, wide) = (measured.shapes[place][i] for i in _ends(measured))
    if narrow:
        if operator == "embedding":
            return Role.EMBEDDING if wide != narrow else Role.INNER
        if wide_in != narrow_in:
            return Role.HIDDEN if wide != narrow else Role.READOUT
        return Role.INPUT if wide != narrow else Role.INNER
    name = names.split("+")[0]
    shapes = [measured.parameters[i][name].shape for i in _ends(measured)]
    return Role.VECTOR if shapes[0] != shapes[1] else Role.SCALAR


def _ends(measured: Measured) -> tuple[int, int]:
    order = sorted(range(len(measured.widths)), key=measured.widths.__getitem__)
    return order[0], order[-1]


def is_average(measured: Measured, place: Place) -> bool:
    """Whether what is at a place sums over ever more neurons, as a readout does, and scores over d where heads widen.

    A readout that is an embedding as well is none: what it reads holds the row of the token itself.
    """
    kind = role(measured, place)
    if kind is Role.READOUT:
        return not any(other[0] == place[0] and role(measured, other) is not Role.READOUT for other in measured.places)
    terms = [shape[0] for shape in measured.shapes[place]]
    return kind is Role.SCORES and max(terms) > min(terms) > 0


def is_added(place: Place) -> bool:
    """Whether a parameter is added to features, and does not multiply them."""
    names, operator, _ = place
    return (
        operator in ("add", "add_", "sub", "sub_")
        or names.rpartition(".")[2].endswith("bias")
        or operator in ("addmm", "baddbmm", "convolution")
    )
