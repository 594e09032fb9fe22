r"""Two-time kernels of long runs: the vectors of every record, in the few directions that all of them need.

A record brings vectors X, ``(row, entry)``, of which a basis knows the directions Q, ``(direction, entry)``, orthonormal. What
they leave out, E = X - X Q^T Q, is lost as long as it is small, and else brings new directions: the eigenvectors of E E^T, the
largest first, until no more is left than is allowed. Coordinates along these, X Q^T, are kept of every record.

What is lost at t might be needed at any later time, so that little may be: epsilon(t) of three quarters of the tolerance. What
is dropped when the run is over is known of all times, and counts by its square: coordinates along the principal axes of all
records may be dropped, the smallest axes first, up to delta(t)^2 of the last quarter, which leaves a few directions of many.
``torch_dmft.core.factors`` says what both make of kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.architecture import Layer
from torch_dmft.core.factors import Factors
from torch_dmft.core.layer_kernels import LayerKernels
from torch_dmft.core.memory import require_memory
from torch_dmft.measurement.normal_form import Stream, backward_vectors, forward_vectors

_LOST = 0.75
"""Share of the tolerance that is for what is lost during the run; the rest is for what is dropped in the end."""
_ROUNDING = 16
"""What rounding adds to what is left out, in units of the last place."""
_GROWTH = 1.5
"""By how much the room for directions grows when it is full."""


class Basis:
    """Directions of the vectors of all records, and the vectors in them.

    Args:
        tolerance: of K(t, s), see ``core.factors``.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self._room: Tensor | None = None
        self._known = 0
        self._rows: list[Tensor] = []
        self._left_out: list[float] = []
        self._sizes: list[float] = []

    @property
    def directions(self) -> Float[Tensor, "direction entry"] | None:
        """Q, on the model's device; None before the first record."""
        return None if self._room is None else self._room[: self._known]

    def add(self, vectors: Float[Tensor, "*row entry"]) -> None:
        """Keep the vectors of one more record."""
        x = vectors.detach().flatten(0, -2)
        if self._room is None:
            self._room = x.new_empty(0, x.shape[1])
        rows, rest = self._split(x)
        size = _size(x @ x.T)
        if bool(torch.isfinite(x).all()) and _size(rest @ rest.T) > _LOST * self.tolerance * size:
            self._learn(rest, _LOST * self.tolerance * size)
            rows, rest = self._split(x)
        self._left_out.append(_size(rest @ rest.T) + _ROUNDING * torch.finfo(x.dtype).eps * size)
        self._sizes.append(size)
        self._rows.append(rows.reshape(*vectors.shape[:-1], -1).cpu())

    def needed(self, vectors: Float[Tensor, "*row entry"]) -> tuple[int, int]:
        """Bytes that keeping a record takes at most: of directions on the model's device, of numbers on the CPU."""
        count, entries = vectors.shape[:-1].numel(), vectors.shape[-1]
        size = vectors.element_size()
        room = 0 if self._room is None else len(self._room)
        grown = int(_GROWTH * (self._known + count)) if self._known + count > room else 0
        return grown * entries * size, count * (self._known + count) * size

    def factors(self) -> Factors:
        """The kernel between all pairs of records, without the directions that hardly any of them needs."""
        row = self._rows[0].shape[:-1]
        every = self._rows[0].new_zeros(len(self._rows), row.numel(), self._known)
        for at, rows in zip(every, self._rows, strict=True):
            at[:, : rows.shape[-1]] = rows.flatten(0, -2)
        sizes = every.new_tensor(self._sizes, dtype=torch.float64)
        known = every[sizes.isfinite() & (sizes > 0)]
        known = (known / sizes[sizes.isfinite() & (sizes > 0)].to(known)[:, None, None]).flatten(0, 1)
        _, axes = torch.linalg.eigh((known.T @ known).double())
        every = every @ axes.flip(1).to(every)  # along the principal axes, the largest first
        del known
        allowed = ((1 - _LOST) * self.tolerance) ** 0.5 * sizes

        def dropped(kept: int) -> Tensor:
            return _sizes(every[:, :, kept:])

        fewest, enough = 0, self._known  # bisection for the fewest that are enough
        while fewest < enough:
            middle = (fewest + enough) // 2
            if bool((dropped(middle) > allowed).any()):
                fewest = middle + 1
            else:
                enough = middle
        kept = max(1, enough)
        left_out = sizes.new_tensor([self._left_out])
        parts = every.new_zeros(len(every), *row, kept)
        parts.flatten(1, -2)[:, :, : every.shape[2]] = every[:, :, :kept]
        parts[~sizes.isfinite()] = torch.nan
        return Factors((parts,), (1.0,), left_out.to(every), dropped(kept)[None].to(every))

    def state_dict(self) -> dict[str, Any]:
        """Everything kept, as plain containers of tensors."""
        known = self.directions
        return {
            "directions": None if known is None else known.clone(),
            "rows": list(self._rows),
            "left_out": list(self._left_out),
            "sizes": list(self._sizes),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what another basis kept."""
        self._room = state["directions"]
        self._known = 0 if self._room is None else len(self._room)
        self._rows, self._left_out, self._sizes = (list(state[name]) for name in ("rows", "left_out", "sizes"))

    def _split(self, x: Float[Tensor, "row entry"]) -> tuple[Tensor, Tensor]:
        """What of vectors lies along the directions, in these, and what does not. Twice, as the first leaves rounding."""
        assert self._room is not None  # there is a record
        known = self._room[: self._known]
        rows = x @ known.T
        rest = x - rows @ known
        again = rest @ known.T
        return rows + again, rest - again @ known

    def _learn(self, rest: Float[Tensor, "row entry"], allowed: float) -> None:
        """Add the directions of what is left out, the largest first, until no more is left out than is allowed."""
        assert self._room is not None
        squares, axes = torch.linalg.eigh((rest @ rest.T).double().cpu())
        squares = squares.clamp(min=0)
        few = squares.square().cumsum(0).sqrt().sqrt() <= allowed  # from the smallest on
        kept = axes[:, ~few].flip(1).to(rest)
        new, _ = torch.linalg.qr(self._split(kept.T @ rest)[1].T)
        new = torch.nn.functional.normalize(self._split(new.T)[1], dim=1)
        count = self._known + len(new)
        if count > len(self._room):
            room = self._room.new_empty(min(int(_GROWTH * count), max(count, self._room.shape[1])), self._room.shape[1])
            room[: self._known] = self._room[: self._known]
            self._room = room
        self._room[self._known : count] = new
        self._known = count


def _size(gram: Float[Tensor, "row row"]) -> float:
    """|K|^{1/2} in the Frobenius norm."""
    return float(gram.double().square().sum()) ** 0.25


def _sizes(vectors: Float[Tensor, "time row direction"]) -> Float[Tensor, " time"]:
    """The same of the Gram matrices of vectors, in float64."""
    return (vectors @ vectors.mT).double().flatten(1).square().sum(1).sqrt().sqrt()


class CompressedMemory:
    """One layer's two-time kernels to a tolerance: what ``TwoTimeMemory`` holds exactly for few records.

    Args:
        tolerance: see ``Basis``.
        per_output: whether G is of pairs (sample, output), or averaged over equal outputs.
    """

    def __init__(self, tolerance: float, *, per_output: bool = True) -> None:
        self._per_output = per_output
        self._forward, self._backward = Basis(tolerance), Basis(tolerance)

    def _vectors(self, stream: Stream) -> tuple[Tensor, Tensor]:
        g = backward_vectors(stream)
        outputs = g.shape[1]
        if not self._per_output:
            g = g.flatten(1) / outputs**0.5
        elif outputs == 1:
            g = g[:, 0]
        return forward_vectors(stream), g

    def require_room(self, stream: Stream) -> None:
        """Refuse a record that does not fit, before anything of it is kept.

        Raises:
            InsufficientMemoryError: if its directions, or its numbers in them, would not fit.
        """
        x, g = self._vectors(stream)
        count, tolerance = len(self._forward._rows), self._forward.tolerance
        what = f"Keeping record {count} of layer {stream.layer.path} for two-time kernels to within {tolerance:g}"
        remedy = (
            "a larger tolerance (two_time=0.05), fewer records (schedule=log_spaced(100)), a smaller probe, or "
            "two_time=False; what was recorded so far is kept"
        )
        needed = [basis.needed(vectors) for basis, vectors in ((self._forward, x), (self._backward, g))]
        require_memory(sum(one for one, _ in needed), x.device, what=what, remedy=remedy)
        cpu = torch.device("cpu")
        require_memory(sum(other for _, other in needed), cpu, what=what, remedy=remedy)

    def add(self, stream: Stream) -> None:
        """Remember one more record."""
        x, g = self._vectors(stream)
        self._forward.add(x)
        self._backward.add(g)

    def completed(self, layer: LayerKernels) -> LayerKernels:
        """A layer's kernels of all records with what they are between two times."""
        forward = replace(layer.forward, factors=self._forward.factors())
        return replace(layer, forward=forward, backward=replace(layer.backward, factors=self._backward.factors()))

    def state_dict(self) -> dict[str, Any]:
        """Everything remembered, as plain containers of tensors."""
        return {"forward": self._forward.state_dict(), "backward": self._backward.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], layer: Layer, gamma0: float) -> None:
        """Take over what another memory of the same layer remembered."""
        self._forward.load_state_dict(state["forward"])
        self._backward.load_state_dict(state["backward"])
