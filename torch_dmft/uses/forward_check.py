"""Whether features have one size at two widths: a forward pass at each, with weights drawn by the same law.

Numbers and sums are followed operator by operator (``balance``). What else may depend on the width shows itself in the sizes of
features: tensors of constants, sums along neurons, a softmax over them, parameters that keep an initial size which falls with
the width. With entries N(0, 1/fan-in) in every matrix, what products and activations are taken of is O(1) at every width, up to
O(1/N). Vectors are drawn by one law at both widths, as the biases of torch fall like 1/sqrt(N), without effect in the limit;
embeddings by their own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from torch_dmft.core.errors import Place
from torch_dmft.uses.outputs import Example
from torch_dmft.uses.passes import Seen, see

_EXPONENT = 0.25
"""The power of the width that is taken for one; sizes of narrow networks differ by O(1/N) beside it."""

_FEW, _ENOUGH, _MOST = 4, 12, 64
"""Draws after which nothing large is left in peace, draws that tell a scatter, and the most that are made."""
_BY_CHANCE = 1e-3
"""The share of models without a fault that chance may refuse; a model has many places at which it has to be none."""


Site = tuple[str, int]
"""A place in a pass: the path of a module, and the how many-th of its kind there."""

_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class Instance:
    """A model at one width, prepared to run.

    Attributes:
        model: the model.
        run: maps the inputs to its outputs.
        inputs: what it is run on.
        laws: mean and standard deviation of the parameters that are drawn, by name.
        values: of parameters that are set, by name.
        shifts: the logarithm of what the features that a product takes are multiplied by, as parameters hold numbers. Products
            that are missing here, of experts that no row was sent to, are not looked at.
    """

    model: nn.Module
    run: nn.Module
    inputs: Example
    laws: Mapping[str, tuple[float, float]]
    values: Mapping[str, Tensor]
    shifts: Mapping[Site, float] = field(default_factory=dict)

    def sizes(self, seed: int) -> dict[tuple[str, Site], float]:
        """The logarithms of root mean squares, for matrices drawn with this seed: of what products take, and of steps."""
        with self._drawn(seed):
            seen = see(self.model, self.run, self.inputs, notes_steps=True)
        products = sites(_of_products(seen))
        steps = sites((step.path, _log(step.size)) for step in seen.taken.steps if step.size is not None)
        return {
            **{("product", site): products[site] - shift for site, shift in self.shifts.items() if site in products},
            **{("step", site): log for site, log in steps.items()},
        }

    @contextmanager
    def _drawn(self, seed: int) -> Iterator[None]:
        generator = torch.Generator().manual_seed(seed)
        changed = self.laws.keys() | self.values.keys()
        parameters = {name: value for name, value in self.model.named_parameters() if name in changed}
        before = {name: value.detach().clone() for name, value in parameters.items()}
        try:
            with torch.no_grad():
                for name, value in parameters.items():
                    if name in self.values:
                        value.copy_(self.values[name])
                        continue
                    drawn = torch.randn(value.shape, generator=generator, dtype=torch.float32, device="cpu")
                    mean, deviation = self.laws[name]
                    value.copy_(mean + deviation * drawn)
            yield
        finally:
            with torch.no_grad():
                for name, value in parameters.items():
                    value.copy_(before[name])


def sites(found: Iterable[tuple[str, _Value]]) -> dict[Site, _Value]:
    """What was found in modules, by the module's path and how many times it had been there before."""
    seen: Counter[str] = Counter()
    numbered = {}
    for path, value in found:
        numbered[path, seen[path]] = value
        seen[path] += 1
    return numbered


def _of_products(seen: Seen) -> list[tuple[str, float]]:
    """Of what the products take; of what they make there may be too little to tell."""
    return [
        (product.use.path, _log(_size(product.use.argument(product.data))))
        for product in seen.forward
        if product.kind != "embedding"
    ]


def _size(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def _log(size: float) -> float:
    return math.log(size) if 0 < size < math.inf else math.nan


def grown(one: Instance, other: Instance, growth: float) -> Place | None:
    """The first place at which features grow or shrink with the width.

    Args:
        one: the model.
        other: the model at another width, with the same products and steps.
        growth: the other width in units of this one.
    """
    changes: list[dict[tuple[str, Site], float]] = []
    places: dict[tuple[str, Site], None] = {}
    while len(changes) < _MOST:
        here, there = one.sizes(len(changes)), other.sizes(len(changes))
        changes.append({place: there[place] - size for place, size in here.items() if place in there})
        places.update(dict.fromkeys(changes[-1]))  # in other draws rows may be sent to other experts
        if len(changes) < _FEW:
            continue
        exponents, errors = _exponents([[draw.get(place, math.nan) for place in places] for draw in changes], growth)
        large = exponents.abs() > _EXPONENT
        if not bool(large.any()):
            return None
        certain = large & ((exponents.abs() - _EXPONENT) > _sigmas(len(changes), len(places)) * errors)
        if len(changes) >= _ENOUGH and bool(certain.any()):
            at = int(certain.nonzero()[0])
            _, (path, _) = list(places)[at]
            return _place(path, float(exponents[at]), growth)
    return None


def _sigmas(draws: int, places: int) -> float:
    """How many standard errors chance does not reach at any of some places, if they are known from so many draws."""
    from scipy.special import stdtrit  # slow to import

    return float(stdtrit(draws - 1, 1 - _BY_CHANCE / places))


def _exponents(changes: Sequence[Sequence[float]], growth: float) -> tuple[Tensor, Tensor]:
    """Exponent and standard error at every place; draws in which all is zero there (a narrow relu) tell nothing."""
    found = torch.tensor(changes, dtype=torch.float64, device="cpu") / math.log(growth)
    told = found.isfinite()
    counts = told.sum(0)
    means = found.nanmean(0)
    scatter = (found - means).where(told, 0.0).square().sum(0) / (counts - 1).clamp(min=1)
    return means.where(counts >= _FEW, 0.0), (scatter / counts.clamp(min=1)).sqrt()


def _place(path: str, exponent: float, growth: float) -> Place:
    reason = (
        f"features go with the width to the power {exponent:.2f} (they are {growth**exponent:.3g} times as large at the other "
        "one), though every matrix is drawn by the same law"
    )
    remedy = (
        "look before this place for tensors of constants, sums or a softmax along neurons, and parameters whose initial size "
        "depends on the width; make them the same at every width"
    )
    return Place(path or "(model)", reason, remedy)
