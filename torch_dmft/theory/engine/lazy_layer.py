"""What infinite layers share: a lazily sampled start, and what was learned in coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.theory.engine.matrix import GaussianMatrix
from torch_dmft.theory.gaussian.latents import Population


@runtime_checkable
class Reads(Protocol):
    """Which input rows each output row reads, through which copy of the matrix."""

    def gather(self, c: Tensor) -> Tensor:
        """Coordinates of what each output row reads: ``(row, k) -> (output row, k * copies)``."""

    def scatter(self, d: Tensor) -> Tensor:
        """Coordinates of the output rows that read each row, copy by copy: ``(output row, k') -> (row, k' * copies)``."""

    def gather_back(self, v: Tensor) -> Tensor:
        """The transpose of ``gather``: ``(output row, k * copies) -> (row, k)``."""

    def scatter_back(self, v: Tensor) -> Tensor:
        """The transpose of ``scatter``: ``(row, k' * copies) -> (output row, k')``."""


@dataclass(frozen=True)
class LazySettings:
    """How the weight of a lazy layer is drawn, and how much of it is kept.

    Attributes:
        gain: g.
        tolerance: see ``GaussianMatrix``.
        responses: see ``GaussianMatrix``.
        rank: largest number of directions per basis.
        positions: largest number of rows, per sample, that the layer reads or writes: tokens, pixels.
        whole: whether what is learned is kept entry by entry instead of on bases.
    """

    gain: float
    tolerance: float
    responses: bool = True
    rank: int = 512
    positions: int = 1
    whole: bool = False


class LazyLayer(nn.Module):
    r"""A layer whose weight is split into its Gaussian start and what was learned.

    Both are known on the bases Q (inputs) and Q' (gradients) only:

    .. math:: W(t) = g\, a(t)\, W_0 + Q'^T m(t)\, Q .

    ``core`` is m, a parameter whose gradient is that of W projected on both bases, so any optimizer that treats parameters
    linearly (SGD with momentum, Nesterov, weight decay) moves W as it would move the full matrix, and so does Muon
    (``torch_dmft.theory.engine.muon``). ``initial_scale`` is a, a
    parameter with zero gradient: the optimizer's weight decay acts on it exactly as on every entry of W_0.

    Adam moves every entry by a function of its own gradients, a nonlinear outer product of two populations,

    .. math:: m_{ij}(t) = \Psi_t\Big(\Big\{\sum_\mu \Delta_\mu(s)\, g_{i\mu}(s)\, x_{j\mu}(s)\Big\}_{s<t}\Big), \qquad
       (m x)_i = \sum_j m_{ij} x_j \to \langle \Psi_t(g_i, x)\, x \rangle ,

    of as many directions as there are neurons. A *whole* layer has m itself, W = g a W_0 + m: coordinates in Q and Q' are then
    those of the neurons, and only W_0 is known on bases. Sums over neurons are averages over a population, in which entries
    of W_0 and of m are independent at infinite width (Yang and Littwin 2023, Tensor Programs IVb).

    Attributes:
        matrix: W_0, one copy per kernel tap.
        core: m, ``(room for Q', room for Q, *kernel)``, or ``(S_out, S_in, *kernel)`` of a whole layer.
        initial_scale: a.
        gain: g.
        positions: largest number of rows, per sample, that the layer reads or writes: tokens, pixels.
        whole: whether what is learned is kept entry by entry.
    """

    matrix: GaussianMatrix
    core: nn.Parameter
    initial_scale: nn.Parameter
    gain: float
    positions: int
    whole: bool

    def start(
        self,
        inputs: Population,
        outputs: Population,
        settings: LazySettings,
        bias: Tensor | None,
        kernel: tuple[int, ...] = (),
    ) -> None:
        """Set the attributes, with nothing learned; for the ``__init__`` of subclasses."""
        self.gain, self.positions, self.whole = settings.gain, settings.positions, settings.whole
        self.matrix = GaussianMatrix(
            inputs, outputs, tolerance=settings.tolerance, responses=settings.responses, copies=math.prod(kernel)
        )
        like = self.matrix.forward_side.basis.storage
        room = self.sizes if self.whole else tuple(min(settings.rank, size) for size in self.sizes)
        self.core = nn.Parameter(like.new_zeros(*room, *kernel))
        self.initial_scale = nn.Parameter(like.new_ones(()))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.to(inputs.known.storage)))

    def multiply(self, rows: Tensor, reads: Reads | None = None) -> Tensor:
        """Apply the weight to rows ``(row, S_in)``; gives ``(output row, S_out)``."""
        result: Tensor = _Multiply.apply(rows, self.core, self.initial_scale, self, reads)  # type: ignore[no-untyped-call]
        return result

    @torch.no_grad()
    def forward_rows(self, x: Tensor, reads: Reads | None = None) -> tuple[Tensor, Tensor, int]:
        r"""Apply the weight, with the coordinates c = Q x of what each output row reads.

        .. math:: y = g\, a\, c\, \Xi + [c\, (m + g\, a\, K)^T + g\, a\, x\, \Xi'^T]\, Q'

        and of a whole layer with K alone in the bracket, and x m^T beside it.

        Returns:
            y, the coordinates in which m is known, and their number.
        """
        matrix = self.matrix
        c = matrix.meet_inputs(x)
        self.check_rank()
        rank, scale = c.shape[1], self.gain * self.initial_scale
        owed = matrix.owed_to_inputs(x) if matrix.responses else None
        if reads is not None:
            c = reads.gather(c)
            owed = None if owed is None else reads.scatter_back(owed)
        d = c @ self._core(scale).flatten(1).T
        if owed is not None:
            d.addcmul_(owed, scale)
        y = (c * scale) @ matrix.forward_side.latents.rows
        if matrix.closed:
            y.addcmul_(matrix.image_of_rest(x, c), scale)
        y.addmm_(d, matrix.backward_side.basis.rows)
        if not self.whole:
            return y, c, rank
        c = x if reads is None else reads.gather(x)
        return y.addmm_(c, self.core.flatten(1).T), c, x.shape[1]

    @torch.no_grad()
    def backward_rows(
        self, y_grad: Tensor, reads: Reads | None = None, *, further: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Apply the transpose, with the coordinates d = Q' y_grad.

        Args:
            y_grad: ``(output row, S_out)``.
            reads: of the forward pass.
            further: whether ``x_grad`` is wanted.

        Returns:
            d and x_grad.
        """
        matrix = self.matrix
        d = matrix.meet_gradients(y_grad)
        self.check_rank()
        if not further:
            return y_grad if self.whole else d, None
        scale, spread = self.gain * self.initial_scale, d
        owed = matrix.owed_to_gradients(y_grad) if matrix.responses else None
        if reads is not None:
            spread = reads.scatter(d)
            owed = None if owed is None else reads.gather_back(owed)
        c = spread @ self._core(scale).transpose(1, 2).flatten(0, 1)
        if owed is not None:
            c.addcmul_(owed, scale)
        x_grad = (spread * scale) @ matrix.backward_side.latents.rows
        x_grad.addmm_(c, matrix.forward_side.basis.rows)
        if not self.whole:
            return d, x_grad
        spread = y_grad if reads is None else reads.scatter(y_grad)
        learned = self.core.reshape(*self.sizes, -1).transpose(1, 2).flatten(0, 1)
        return y_grad, x_grad.addmm_(spread, learned)

    @torch.no_grad()
    def start_backward(self, y: Tensor) -> Tensor:
        """W_0^T y, without gain and decay and without what was learned: ``(row, S_out) -> (row, S_in)``."""
        matrix = self.matrix
        d = matrix.meet_gradients(y)
        c = d @ matrix.core[:, :, 0]
        if matrix.responses:
            c += matrix.owed_to_gradients(y)
        return d @ matrix.backward_side.latents.rows + c @ matrix.forward_side.basis.rows

    def _core(self, scale: Tensor) -> Tensor:
        """The matrix between Q' and Q, learned and known: m + g a K, ``(k', k, copies)``; of a whole layer only g a K."""
        known = self.matrix.core
        if self.whole:
            return known * scale
        return torch.addcmul(self.core[: known.shape[0], : known.shape[1]].reshape(known.shape), known, scale)

    def core_gradient(self, d: Tensor, c: Tensor, rank: int) -> Tensor:
        """The gradient of ``core``, sum over output rows of d c^T."""
        if self.whole:
            return (d.T @ c).reshape(self.core.shape)
        gradient = torch.zeros_like(self.core)
        used = gradient[: d.shape[1], :rank]
        used += (d.T @ c).reshape(used.shape)
        return gradient

    @property
    def sizes(self) -> tuple[int, int]:
        """Neurons: S_out, S_in."""
        return self.matrix.backward_side.population.size, self.matrix.forward_side.population.size

    @property
    def rank(self) -> tuple[int, int]:
        """Directions met so far: inputs, gradients."""
        return self.matrix.forward_side.basis.count, self.matrix.backward_side.basis.count

    @property
    def saturated(self) -> bool:
        """Whether a basis spans all neurons, so that the layer is one of an ordinary network of width S."""
        return self.matrix.forward_side.complete or self.matrix.backward_side.complete

    def reserve(self, rank: int, optimizers: Iterable[Optimizer]) -> None:
        """Make room for ``rank`` directions per basis: ``core`` and its state in its optimizer are padded with zeros.

        The parameter is replaced by a larger one, in its optimizer too, as autograd remembers the shape of the old one.
        """
        old = self.core
        shape = (*(min(rank, size) for size in self.sizes), *old.shape[2:])

        def padded(old: Tensor) -> Tensor:
            new = old.new_zeros(shape)
            new[: old.shape[0], : old.shape[1]] = old
            return new

        self.core = nn.Parameter(padded(old.detach()))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["params"] = [self.core if parameter is old else parameter for parameter in group["params"]]
            if old in optimizer.state:
                state = optimizer.state.pop(old)
                optimizer.state[self.core] = {
                    name: padded(value) if isinstance(value, Tensor) and value.shape == old.shape else value
                    for name, value in state.items()
                }

    def check_rank(self) -> None:
        """Refuse to go on when more directions were met than ``core`` has room for."""
        if any(used > room for used, room in zip(reversed(self.rank), self.core.shape, strict=False)):
            needed = max(self.rank)
            raise InvalidInputError(
                "Training needs more directions than the layer can store.",
                got=f"rank {needed}, room for {max(self.core.shape[:2])}",
                remedy=f"infinite_width(..., rank={2 * needed}), or a larger tolerance",
            )


class _Multiply(Function):
    """``LazyLayer.forward_rows`` and ``backward_rows`` for autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, core: Tensor, scale: Tensor, layer: LazyLayer, reads: Reads | None) -> Tensor:
        y, c, rank = layer.forward_rows(x, reads)
        ctx.layer, ctx.reads, ctx.rank = layer, reads, rank
        ctx.save_for_backward(c, core)  # core so that autograd notices if it is changed in between
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        layer: LazyLayer = ctx.layer
        c, _ = ctx.saved_tensors
        wants_x, wants_core, wants_scale = ctx.needs_input_grad[:3]
        d, x_grad = layer.backward_rows(grad, ctx.reads, further=wants_x)
        core_grad = layer.core_gradient(d, c, ctx.rank) if wants_core else None
        return x_grad, core_grad, torch.zeros_like(layer.initial_scale) if wants_scale else None, None, None
