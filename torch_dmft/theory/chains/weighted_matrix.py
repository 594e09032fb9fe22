r"""A lazily sampled hidden matrix between neurons that weigh something.

With e_a the orthonormal activities of layer l and f_b the orthonormal gradients of layer l + 1, in the order in which
training meets them, and fresh normals xi and zeta for every neuron,

    W e_a = v_a = xi_a + sum_b f_b (<w_b e_a> - <f_b xi_a>),                       over the b met before,
    (N_l / N_{l+1}) W^T f_b = w_b = r zeta_b + sum_a e_a (<v_a f_b> - r <e_a zeta_b>),   over the a met before,

where W has entries of variance 1 / N_l, r^2 = N_l / N_{l+1}, and < > is the average over the neurons of the layer. With
equal weights of N neurons this is exactly an i.i.d. matrix of their sizes. <w_b e_a> is the response A of the theory (Stein's
lemma), <v_a f_b> its B; <f_b xi_a> is zero at infinite width, but fluctuates.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

_TOLERANCE = 1e-3
"""Part of a row's size beyond the directions that are known, at which it brings a new one."""


class Columns:
    """Fields side by side, in few blocks, so that an automatic derivative keeps few copies of them."""

    def __init__(self) -> None:
        self.blocks: list[Float[Tensor, "neuron row"]] = []

    def __len__(self) -> int:
        return sum(block.shape[1] for block in self.blocks)

    def add(self, fields: Float[Tensor, "neuron row"]) -> None:
        """Put fields at the end; a block is at most as wide as the one before."""
        self.blocks.append(fields)
        while len(self.blocks) > 1 and self.blocks[-2].shape[1] <= self.blocks[-1].shape[1]:
            last = self.blocks.pop()
            self.blocks[-1] = torch.cat([self.blocks[-1], last], dim=1)

    def combined(self, weights: Float[Tensor, "row column"]) -> Float[Tensor, "neuron column"]:
        """The sum of all columns with these weights."""
        parts = weights.split([block.shape[1] for block in self.blocks])
        return torch.stack([block @ part for block, part in zip(self.blocks, parts, strict=True)]).sum(0)

    def with_all(self, fields: Float[Tensor, "neuron column"]) -> Float[Tensor, "row column"]:
        """Inner products of all columns with other fields."""
        return torch.cat([block.mT @ fields for block in self.blocks])


class Directions:
    """The orthonormal directions of the fields of one layer that a matrix has met, and what it makes of them.

    Args:
        weights: p of the layer's neurons, of sum one.
        fresh: normals ``(neuron, direction)`` of the neurons on the other side, taken in their order.
    """

    def __init__(self, weights: Float[Tensor, " neuron"], fresh: Float[Tensor, "neuron direction"]) -> None:
        self.weights, self.fresh = weights[:, None], fresh
        self.directions, self.images = Columns(), Columns()

    def split(self, fields: Float[Tensor, "neuron row"]) -> tuple[Tensor, Tensor, Tensor]:
        """Fields = known directions c + new directions n: the new ones, c and n.

        The new ones are the principal axes of what is left. Which of them are taken is not differentiated: normals have the
        same law in any axes.
        """
        rest, known = fields, fields.new_zeros(len(self.directions), fields.shape[1])
        if len(self.directions):
            for _ in range(2):  # once more, for what rounding left
                more = self.directions.with_all(self.weights * rest)
                known, rest = known + more, rest - self.directions.combined(more)
        size = (self.weights * fields.square()).sum(0).sqrt().detach()
        size = torch.where(size > 0, size, 1.0)  # rows of zeros bring nothing
        gram = rest.mT @ (self.weights * rest)
        values, axes = torch.linalg.eigh(gram.detach() / torch.outer(size, size))
        axes = (axes / size[:, None])[:, values > _TOLERANCE**2].flip(1)
        root = torch.linalg.cholesky(axes.mT @ gram @ axes)
        new = torch.linalg.solve_triangular(root, (rest @ axes).mT, upper=False).mT
        return new, known, new.mT @ (self.weights * rest)

    def take(self, count: int) -> Float[Tensor, "neuron direction"]:
        """The next fresh normals."""
        start = len(self.directions)
        return self.fresh[:, start : start + count]


class WeightedMatrix:
    """A hidden matrix at the start of training, met from both sides.

    Args:
        weights: p of the neurons before and after it.
        fresh: their normals: zeta of those before, xi of those after.
        ratio: N_l / N_{l+1}.
    """

    def __init__(self, weights: tuple[Tensor, Tensor], fresh: tuple[Tensor, Tensor], ratio: float) -> None:
        self.before = Directions(weights[0], fresh[1])
        self.after = Directions(weights[1], math.sqrt(ratio) * fresh[0])

    def forward(self, activities: Float[Tensor, "neuron row"]) -> Float[Tensor, "neuron row"]:
        """W x."""
        return _met(self.before, self.after, activities)

    def backward(self, gradients: Float[Tensor, "neuron row"]) -> Float[Tensor, "neuron row"]:
        """(N_l / N_{l+1}) W^T g."""
        return _met(self.after, self.before, gradients)


def _met(here: Directions, there: Directions, fields: Tensor) -> Tensor:
    new, known, coefficients = here.split(fields)
    image = here.take(new.shape[1])
    if len(there.directions):
        image = image + there.directions.combined(_owed(here, there, new, image))
    found = image @ coefficients
    if len(here.directions):
        found = found + here.images.combined(known)
    if new.shape[1]:
        here.directions.add(new)
        here.images.add(image)
    return found


def _owed(here: Directions, there: Directions, new: Tensor, image: Tensor) -> Float[Tensor, "direction new"]:
    """What the images of the other side say about new directions, beyond what fresh normals happen to."""
    return there.images.with_all(here.weights * new) - there.directions.with_all(there.weights * image)
