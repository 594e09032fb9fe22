"""The lazily sampled Gaussian matrix: known only on the vectors that it has met."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_dmft.theory.infinite.latents import Population
from torch_dmft.theory.infinite.rows import Rows, inner, new_directions

_GRADIENTS = 3.0
"""How much more of a gradient than of an input may stay outside its basis. At 2e-2 for inputs and three times as much for
gradients the mean G is off by 0.4% instead of 0.3% with 2e-2 for both, of which sampling makes 0.25%, at two thirds of the
gradients' directions (tanh, depth 3, ten rows)."""

_LARGEST = 0.3
"""Where that would leave out more of a gradient than this, it may miss no more than an input."""


class Side(nn.Module):
    """What is known of a matrix from one side: orthonormal vectors it has met and their images.

    Attributes:
        basis: Q, ``(k, size)`` orthonormal rows.
        images: W q for each of them (W^T q' on the backward side), for every copy of W in turn: ``(k * copies, size)``.
    """

    def __init__(self, population: Population, image_population: Population) -> None:
        super().__init__()
        like = population.known.storage
        self.population, self.image_population = population, image_population
        self.basis = Rows(population.size, dtype=like.dtype, device=like.device)
        self.images = Rows(image_population.size, dtype=like.dtype, device=like.device)

    @property
    def complete(self) -> bool:
        """Whether the basis spans all neurons."""
        return self.basis.count >= self.population.size


class GaussianMatrix(nn.Module):
    r"""An S_out x S_in matrix W with entries N(0, 1/fan_in), sampled only along the vectors it is applied to.

    With Q an orthonormal basis of the inputs seen and Q' one of the gradients seen, the law of W given W Q and W^T Q' is
    known. The image of a new direction q, orthogonal to Q, is

    .. math:: W q = Q' (W^T Q')^T q + (1 - Q' Q'^T) \xi, \qquad \xi \sim N(0, 1/\mathrm{fan\_in}).

    The first term is what the matrix already owes to its gradients: averaged over neurons it is the response term A of the
    field theory (B for the transpose), including the equal-time one. Dropping it (``responses=False``) is the gradient
    independence ansatz.

    Small parts of inputs and gradients stay outside of the bases. Of what W does to them, all that is known is applied,

    .. math:: W x = W Q^T Q x + Q'^T\, Q' W (1 - Q^T Q)\, x + (1 - Q'^T Q')\, W (1 - Q^T Q)\, x ,

    and only the last term, fresh noise of their small size, is left out. The first two are one matrix, so forward and
    backward pass are transposes of each other at any tolerance. Without the second term the response to the small parts
    would be missing from G: it was off by 0.6 of the sampling error of 4096 neurons, instead of 0.15, at a tolerance of 1e-2
    (tanh, depth 3, six rows).

    A convolution is several independent matrices, one per kernel tap, which meet the same inputs and gradients: ``copies``
    of W share the bases Q and Q' and differ in their images; fan_in = copies * S_in.

    Args:
        inputs: population of the columns (S_in neurons).
        outputs: population of the rows (S_out neurons).
        tolerance: largest part of an input, relative to its norm, that may stay outside the basis; of a gradient up to
            three times as much.
        responses: keep the response term.
        copies: independent matrices that share the bases.

    Attributes:
        block: Q' W Q^T, known from both sides, ``(k', k, copies)``.
    """

    keeps_what_it_reveals = True  # measuring a lazily sampled model must not make it forget (core.undisturbed)
    block: Tensor

    def __init__(
        self, inputs: Population, outputs: Population, *, tolerance: float, responses: bool = True, copies: int = 1
    ) -> None:
        super().__init__()
        self.forward_side = Side(inputs, outputs)
        self.backward_side = Side(outputs, inputs)
        self.tolerance, self.responses, self.copies = tolerance, responses, copies
        self.scale = (copies * inputs.size) ** -0.5
        self.register_buffer("block", inputs.known.storage.new_empty(0, 0, copies), persistent=False)

    def meet_inputs(self, x: Float[Tensor, "row size"]) -> Float[Tensor, "row k"]:
        """Coordinates Q x of inputs, after extending Q and W Q so that they are covered."""
        return self._meet(x, self.forward_side, self.backward_side, self.tolerance, aligned=True)

    def meet_gradients(self, y: Float[Tensor, "row size"]) -> Float[Tensor, "row k"]:
        """Coordinates Q' y of gradients, after extending Q' and W^T Q' so that they are covered."""
        tolerance = max(self.tolerance, min(_GRADIENTS * self.tolerance, _LARGEST))
        return self._meet(y, self.backward_side, self.forward_side, tolerance, aligned=False)

    def beyond_inputs(self, x: Float[Tensor, "row size"], c: Float[Tensor, "row k"]) -> Tensor | None:
        """Coordinates Q' W (x - Q^T c) of what each copy of W does to what is left of inputs, ``(row, k' * copies)``.

        None if that is nothing: Q is complete, or W knows nothing of W^T.
        """
        if not self.responses or self.forward_side.complete:
            return None
        return inner(x, self.backward_side.images.rows) - c @ self.block.transpose(0, 1).flatten(1)

    def beyond_gradients(self, y: Float[Tensor, "row size"], d: Float[Tensor, "row k"]) -> Tensor | None:
        """Coordinates Q W^T (y - Q'^T d) of what each copy of W^T does to what is left of gradients, ``(row, k * copies)``."""
        if not self.responses or self.backward_side.complete:
            return None
        return inner(y, self.forward_side.images.rows) - d @ self.block.flatten(1)

    def _meet(self, x: Tensor, side: Side, other: Side, tolerance: float, *, aligned: bool) -> Tensor:
        basis = side.basis.rows
        coordinates = inner(x, basis)
        squares = torch.linalg.vector_norm(x, dim=1).square()
        # |x|^2 - |Q x|^2 tells without another pass over Q that all rows are covered, up to rounding.
        rounding = 64 * torch.finfo(x.dtype).eps
        outside = squares - coordinates.square().sum(1)
        if not bool((outside > (tolerance**2 - rounding) * squares).any()):
            return coordinates
        # Each direction gets a latent, the first of them Sobol points, which fill the planes of few coordinates best. Kernels
        # pair the fields of two samples: inputs get a direction of their own each. Gradients have a strong one in common,
        # that of the readout, which comes first.
        residual = torch.addmm(x, coordinates, basis, alpha=-1)
        directions = new_directions(residual, squares, basis, tolerance, aligned=aligned)
        if not len(directions):
            return coordinates
        self._extend(directions, side, other)
        return torch.cat([coordinates, inner(x, directions)], dim=1)

    def _extend(self, directions: Tensor, side: Side, other: Side) -> None:
        count = directions.shape[0]
        images = self.scale * side.image_population.draw(count * self.copies)
        if self.responses:
            # What W owes to the other side, (new, k of the other side, copy): new columns or rows of Q' W Q^T.
            owed = inner(directions, other.images.rows).unflatten(1, (other.basis.count, self.copies))
            forward = side is self.forward_side
            self.block = torch.cat([self.block, owed.transpose(0, 1) if forward else owed], dim=int(forward))
            known = owed.mT.reshape(count * self.copies, -1) - inner(images, other.basis.rows)
            images.addmm_(known, other.basis.rows)
        side.basis.append(directions)
        side.images.append(images)

    def get_extra_state(self) -> Tensor:
        """The block known from both sides, for ``state_dict``."""
        return self.block.clone()

    def set_extra_state(self, state: Any) -> None:
        """Restore that block from a ``state_dict``."""
        self.block = state.to(self.block, copy=True)
