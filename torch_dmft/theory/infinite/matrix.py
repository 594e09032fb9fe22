"""The lazily sampled Gaussian matrix: known only on the vectors that it has met."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_dmft.theory.infinite.latents import Population
from torch_dmft.theory.infinite.rows import Rows, inner, new_directions

_GRADIENTS = 3.0
"""How much more of a gradient than of an input may stay outside its basis. What is missing of the inputs takes the equal-time
response out of G: at 3e-2 for inputs and 1e-2 for gradients G is off by 1%, the other way round by 0.2% at three quarters of
the cost (tanh, depth 3, ten rows)."""


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


class GaussianMatrix(nn.Module):
    r"""An S_out x S_in matrix W with entries N(0, 1/fan_in), sampled only along the vectors it is applied to.

    With Q an orthonormal basis of the inputs seen and Q' one of the gradients seen, the law of W given W Q and W^T Q' is
    known. The image of a new direction q, orthogonal to Q, is

    .. math:: W q = Q' (W^T Q')^T q + (1 - Q' Q'^T) \xi, \qquad \xi \sim N(0, 1/\mathrm{fan\_in}).

    The first term is what the matrix already owes to its gradients: averaged over neurons it is the response term A of the
    field theory (B for the transpose), including the equal-time one. Dropping it (``responses=False``) is the gradient
    independence ansatz.

    A convolution is several independent matrices, one per kernel tap, which meet the same inputs and gradients: ``copies``
    of W share the bases Q and Q' and differ in their images; fan_in = copies * S_in.

    Args:
        inputs: population of the columns (S_in neurons).
        outputs: population of the rows (S_out neurons).
        tolerance: largest part of an input, relative to its norm, that may stay outside the basis; of a gradient three
            times as much.
        responses: keep the response term.
        copies: independent matrices that share the bases.
    """

    def __init__(
        self, inputs: Population, outputs: Population, *, tolerance: float, responses: bool = True, copies: int = 1
    ) -> None:
        super().__init__()
        self.forward_side = Side(inputs, outputs)
        self.backward_side = Side(outputs, inputs)
        self.tolerance, self.responses, self.copies = tolerance, responses, copies
        self.scale = (copies * inputs.size) ** -0.5

    def meet_inputs(self, x: Float[Tensor, "row size"]) -> Float[Tensor, "row k"]:
        """Coordinates Q x of inputs, after extending Q and W Q so that they are covered."""
        return self._meet(x, self.forward_side, self.backward_side, self.tolerance, aligned=True)

    def meet_gradients(self, y: Float[Tensor, "row size"]) -> Float[Tensor, "row k"]:
        """Coordinates Q' y of gradients, after extending Q' and W^T Q' so that they are covered."""
        return self._meet(y, self.backward_side, self.forward_side, _GRADIENTS * self.tolerance, aligned=False)

    def _meet(self, x: Tensor, side: Side, other: Side, tolerance: float, *, aligned: bool) -> Tensor:
        basis = side.basis.rows
        coordinates = inner(x, basis)
        squares = torch.linalg.vector_norm(x, dim=1).square()
        # |x|^2 - |Q x|^2 tells without another pass over Q which rows cannot be covered, up to rounding.
        rounding = 64 * torch.finfo(x.dtype).eps
        outside = squares - coordinates.square().sum(1)
        rows = (outside > (tolerance**2 - rounding) * squares).nonzero().flatten()
        if not rows.shape[0]:
            return coordinates
        norms = squares[rows].sqrt()
        residual = torch.addmm(x[rows], coordinates[rows], basis, alpha=-1)
        uncovered = torch.linalg.vector_norm(residual, dim=1) > tolerance * norms
        if not bool(uncovered.any()):
            return coordinates
        # Each direction gets a latent, the first of them Sobol points, which fill the planes of few coordinates best. Kernels
        # pair the fields of two samples: inputs get a direction of their own each. Gradients have a strong one in common,
        # that of the readout, which comes first.
        new = residual[uncovered] / norms[uncovered, None]
        directions = new_directions(new, basis, tolerance, aligned=aligned)
        self._extend(directions, side, other)
        return torch.cat([coordinates, inner(x, directions)], dim=1)

    def _extend(self, directions: Tensor, side: Side, other: Side) -> None:
        count = directions.shape[0] * self.copies
        images = self.scale * side.image_population.draw(count)
        if self.responses:
            known = inner(directions, other.images.rows).unflatten(1, (other.basis.count, self.copies))
            known = known.mT.reshape(count, -1) - inner(images, other.basis.rows)
            images.addmm_(known, other.basis.rows)
        side.basis.append(directions)
        side.images.append(images)
