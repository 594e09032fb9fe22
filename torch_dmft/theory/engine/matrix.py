"""The lazily sampled Gaussian matrix: known only on the vectors that it has met."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_dmft.theory.gaussian.latents import Population
from torch_dmft.theory.gaussian.rows import Rows, inner, new_directions, project_off_

GRADIENTS = 3.0
"""Ratio of the parts of a gradient and of an input that may stay outside their bases. At 2e-2 for inputs and three times as
much for gradients the mean G is off by 0.4% instead of 0.3% with 2e-2 for both, 0.25% of it from sampling, at two thirds of
the gradients' directions (tanh, depth 3, ten rows)."""

_LARGEST = 0.3
"""Where the ratio would leave out more of a gradient than this, the tolerance of inputs holds for gradients too."""

_DEPTH = 0.7
"""Once a vector has to be covered, all are, down to this share of the tolerance, so that later vectors bring fewer directions.
Bases are extended at two thirds of the occasions and end 7% larger (tanh, depth 3, ten rows), and with minibatches, where few
rows are seen at a time, kernels are off by 0.15 of the sampling error of 4096 neurons instead of 0.7."""


class Side(nn.Module):
    """The vectors that a matrix has met on one side.

    Attributes:
        basis: Q, ``(k, size)`` orthonormal rows that span it.
        latents: the latent of each of them for every copy of W in turn, vectors of the other side: ``(k * copies, size)``.
    """

    def __init__(self, population: Population, latent_population: Population) -> None:
        super().__init__()
        like = population.known.storage
        self.population, self.latent_population = population, latent_population
        self.basis = Rows(population.size, dtype=like.dtype, device=like.device)
        self.latents = Rows(latent_population.size, dtype=like.dtype, device=like.device)

    @property
    def complete(self) -> bool:
        """Whether the basis spans all neurons."""
        return self.basis.count >= self.population.size


class GaussianMatrix(nn.Module):
    r"""An S_out x S_in matrix W with entries N(0, 1/fan_in), sampled only along the vectors it is applied to.

    With Q an orthonormal basis of the inputs seen and Q' one of the gradients seen, the law of W given W Q^T and W^T Q'^T is
    known. The image of a new direction q, orthogonal to Q, is

    .. math:: W q = Q'^T (Q' W) q + (1 - Q'^T Q') \xi, \qquad \xi \sim N(0, 1/\mathrm{fan\_in}).

    The first term is what the matrix already owes to its gradients: averaged over neurons it is the response term A of the
    field theory (B for the transpose), including the equal-time one. Dropping it (``responses=False``) is the gradient
    independence ansatz.

    With the latents of the inputs' directions as rows of Xi, and those of the gradients' as rows of Xi', that is

    .. math:: W = \Xi^T Q + Q'^T \Xi' + Q'^T K Q ,

    where K takes from each latent what lies along the directions of the other side that were there before it: -Q' xi is q's
    column of K. What a new direction is owed need not be computed, it is in the second term.

    Small parts of inputs and gradients stay outside of the bases. Of what W does to them, all that is known is in these
    three terms, and only fresh noise of their small size is left out: one matrix, so forward and backward pass are
    transposes of each other at any tolerance. Images W Q^T applied to coordinates alone would lack the response to the small
    parts in G: it was off by 0.6 of the sampling error of 4096 neurons, instead of 0.15, at a tolerance of 1e-2 (tanh,
    depth 3, six rows).

    A convolution is several independent matrices, one per kernel tap, which meet the same inputs and gradients: ``copies``
    of W share the bases Q and Q' and differ in their latents; fan_in = copies * S_in.

    Args:
        inputs: population of the columns (S_in neurons).
        outputs: population of the rows (S_out neurons).
        tolerance: largest part of an input, relative to its norm, that may stay outside the basis; of a gradient up to
            three times as much.
        responses: keep the response term.
        copies: independent matrices that share the bases.

    Attributes:
        core: K, ``(k', k, copies)``; zero without responses.
        closed: whether it meets no new inputs (``torch_dmft.theory.engine.closed``).
        jointly: whether combinations of gradients are covered like each of them. What all rows have in common moves all
            outputs, though it may be a small part of each: with minibatches this halves what the tolerance does to outputs
            and G, at a sixth more directions (tanh, depth 3, 4 of 32 rows). Few rows in full batches gain nothing.
    """

    keeps_what_it_reveals = True  # measuring a lazily sampled model must not make it forget (core.undisturbed)
    core: Tensor
    closed: bool
    jointly: bool
    _spare: Tensor | None

    def __init__(
        self, inputs: Population, outputs: Population, *, tolerance: float, responses: bool = True, copies: int = 1
    ) -> None:
        super().__init__()
        self.forward_side = Side(inputs, outputs)
        self.backward_side = Side(outputs, inputs)
        self.tolerance, self.responses, self.copies = tolerance, responses, copies
        self.closed, self.jointly, self._spare = False, False, None
        self.scale = (copies * inputs.size) ** -0.5
        self.register_buffer("core", inputs.known.storage.new_empty(0, 0, copies), persistent=False)

    def meet_inputs(self, x: Float[Tensor, "row size"]) -> Float[Tensor, "row k"]:
        """Coordinates Q x of inputs, after extending Q and Xi so that they are covered."""
        if self.closed:
            return inner(x, self.forward_side.basis.rows)
        return self._meet(x, self.forward_side, self.backward_side, self.tolerance, aligned=True)

    def image_of_rest(self, x: Float[Tensor, "row size"], c: Float[Tensor, "row k"]) -> Float[Tensor, "row out"]:
        r"""What W adds for the part of each input outside of Q, while it is closed.

        Taken alone, a row x would be the next to bring a direction, whose image is that of ``_extend``: so all rows have the
        same fresh latent,

        .. math:: \sqrt{|x|^2 - |Qx|^2}\; (1 - Q'^T Q')\, \xi .

        Args:
            x: inputs.
            c: their coordinates Q x.
        """
        if self._spare is None:
            latent = self.scale * self.forward_side.latent_population.draw(1)
            self._spare = project_off_(latent, self.backward_side.basis.rows) if self.responses else latent
        rest = torch.linalg.vector_norm(x, dim=1).square() - c.square().sum(1)
        return rest.clamp(min=0).sqrt()[:, None] * self._spare

    def meet_gradients(self, y: Float[Tensor, "row size"]) -> Float[Tensor, "row k"]:
        """Coordinates Q' y of gradients, after extending Q' and Xi' so that they are covered."""
        tolerance = max(self.tolerance, min(GRADIENTS * self.tolerance, _LARGEST))
        return self._meet(y, self.backward_side, self.forward_side, tolerance, aligned=False)

    def owed_to_inputs(self, x: Float[Tensor, "row size"]) -> Float[Tensor, "row k_copies"]:
        """Xi' x: coordinates in Q' of what each copy of W owes to its gradients; call it if there are responses."""
        return inner(x, self.backward_side.latents.rows)

    def owed_to_gradients(self, y: Float[Tensor, "row size"]) -> Float[Tensor, "row k_copies"]:
        """Xi y: coordinates in Q of what each copy of W^T owes to its inputs; call it if there are responses."""
        return inner(y, self.forward_side.latents.rows)

    def _meet(self, x: Tensor, side: Side, other: Side, tolerance: float, *, aligned: bool) -> Tensor:
        basis = side.basis.rows
        coordinates = inner(x, basis)
        squares = torch.linalg.vector_norm(x, dim=1).square()
        # |x|^2 - |Q x|^2 tells without another pass over Q which rows may not be covered, up to rounding.
        rounding = 64 * torch.finfo(x.dtype).eps
        outside = squares - coordinates.square().sum(1)
        jointly, depth = self.jointly and not aligned, _DEPTH * tolerance
        if jointly:
            beyond = (outside / squares.clamp(min=torch.finfo(x.dtype).tiny)).clamp(min=0).sum() > tolerance**2
        else:
            beyond = (outside > (tolerance**2 - rounding) * squares).any()
        if not bool(beyond):
            return coordinates
        rows = (outside > (-1.0 if jointly else depth**2 - rounding) * squares).nonzero().flatten()
        # Each direction gets a latent, the first of them Sobol points, which fill the planes of few coordinates best. Kernels
        # pair the fields of two samples: inputs get a direction of their own each. Gradients have a strong one in common,
        # that of the readout, which comes first.
        residual = x[rows].addmm_(coordinates[rows], basis, alpha=-1)
        directions = new_directions(residual, squares[rows], basis, depth, aligned=aligned, jointly=jointly)
        if not len(directions):
            return coordinates
        self._extend(directions, side, other)
        return torch.cat([coordinates, inner(x, directions)], dim=1)

    def _extend(self, directions: Tensor, side: Side, other: Side) -> None:
        count, self._spare = directions.shape[0], None
        latents = self.scale * side.latent_population.draw(count * self.copies)
        forward, known = side is self.forward_side, other.basis.rows
        if self.responses:
            coupling = -inner(latents, known).unflatten(0, (count, self.copies)).movedim(1, 2)
        else:
            coupling = latents.new_zeros(count, len(known), self.copies)
        # taken is (new, k of the other side, copy).
        self.core = torch.cat([self.core, coupling.transpose(0, 1) if forward else coupling], dim=int(forward))
        side.basis.append(directions)
        side.latents.append(latents)

    def get_extra_state(self) -> Tensor:
        """K, for ``state_dict``."""
        return self.core.clone()

    def set_extra_state(self, state: Any) -> None:
        """Restore K from a ``state_dict``."""
        self.core = state.to(self.core, copy=True)
