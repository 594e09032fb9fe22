"""What infinite layers share: a lazily sampled start, and what was learned in coordinates."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.theory.infinite.matrix import GaussianMatrix


@runtime_checkable
class Reads(Protocol):
    """Which input rows each output row reads, through which copy of the matrix."""

    def gather(self, c: Tensor) -> Tensor:
        """Coordinates of what each output row reads: ``(row, k) -> (output row, k * copies)``."""

    def scatter(self, d: Tensor) -> Tensor:
        """The transpose of ``gather`` over rows: ``(output row, k') -> (row, k' * copies)``."""


class LazyLayer(nn.Module):
    r"""A layer whose weight is split into its Gaussian start and what was learned.

    Both are known on the bases Q (inputs) and Q' (gradients) only:

    .. math:: W(t) = g\, a(t)\, W_0 + Q'^T m(t)\, Q .

    ``core`` is m, a parameter whose gradient is that of W projected on both bases, so any optimizer that treats parameters
    linearly (SGD with momentum, Nesterov, weight decay) moves W as it would move the full matrix. ``initial_scale`` is a, a
    parameter with zero gradient: the optimizer's weight decay acts on it exactly as on every entry of W_0.

    Attributes:
        matrix: W_0, one copy per kernel tap.
        core: m, ``(room for Q', room for Q, *kernel)``.
        initial_scale: a.
        gain: g.
        positions: largest number of rows, per sample, that the layer reads or writes: tokens, pixels.
    """

    matrix: GaussianMatrix
    core: nn.Parameter
    initial_scale: nn.Parameter
    gain: float
    positions: int

    def start(
        self, matrix: GaussianMatrix, *, gain: float, rank: int, positions: int, kernel: tuple[int, ...] = ()
    ) -> None:
        """Set the attributes, with nothing learned; for the ``__init__`` of subclasses."""
        self.matrix, self.gain, self.positions = matrix, gain, positions
        like = matrix.forward_side.basis.storage
        self.core = nn.Parameter(like.new_zeros(*(min(rank, size) for size in self.sizes), *kernel))
        self.initial_scale = nn.Parameter(like.new_ones(()))

    def multiply(self, rows: Tensor, reads: Reads | None = None) -> Tensor:
        """Apply the weight to rows ``(row, S_in)``; gives ``(output row, S_out)``."""
        result: Tensor = _Multiply.apply(rows, self.core, self.initial_scale, self, reads)  # type: ignore[no-untyped-call]
        return result

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
        """Whether a basis spans all neurons: nothing is sampled any more, the layer is one of an ordinary width-S network."""
        return any(used >= size for used, size in zip(reversed(self.rank), self.sizes, strict=True))

    def reserve(self, rank: int, optimizer: Optimizer) -> None:
        """Make room for ``rank`` directions per basis: ``core`` and its state in the optimizer are padded with zeros.

        The parameter is replaced by a larger one, in the optimizer too, as autograd remembers the shape of the old one.
        """
        old = self.core
        shape = (*(min(rank, size) for size in self.sizes), *old.shape[2:])

        def padded(old: Tensor) -> Tensor:
            new = old.new_zeros(shape)
            new[: old.shape[0], : old.shape[1]] = old
            return new

        self.core = nn.Parameter(padded(old.detach()))
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
                "Training explores more directions than the layer has room for.",
                got=f"rank {needed}, room for {max(self.core.shape[:2])}",
                remedy=f"infinite_width(..., rank={2 * needed}), or a larger tolerance",
            )


class _Multiply(Function):
    """y = g a (Q x) (W_0 Q) + Q' m (Q x) and its gradients, by coordinates; a sum over taps if rows read others."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, core: Tensor, scale: Tensor, layer: LazyLayer, reads: Reads | None) -> Tensor:
        matrix = layer.matrix
        c = matrix.meet_inputs(x)
        layer.check_rank()
        ctx.layer, ctx.scale, ctx.reads, ctx.rank = layer, float(scale), reads, c.shape[1]
        if reads is not None:
            c = reads.gather(c)
        ctx.save_for_backward(c, core)
        gradients = matrix.backward_side.basis.rows
        y = c @ matrix.forward_side.images.rows
        y *= layer.gain * ctx.scale
        if not len(gradients):
            return y
        learned = core[: len(gradients), : ctx.rank].flatten(1)
        return torch.addmm(y, c @ learned.T, gradients)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        layer: LazyLayer = ctx.layer
        c, core = ctx.saved_tensors
        matrix = layer.matrix
        d = matrix.meet_gradients(grad)
        layer.check_rank()
        used = slice(d.shape[1]), slice(ctx.rank)
        x_grad = core_grad = scale_grad = None
        if ctx.needs_input_grad[0]:
            spread = d if ctx.reads is None else ctx.reads.scatter(d)
            x_grad = spread @ matrix.backward_side.images.rows
            x_grad *= layer.gain * ctx.scale
            inputs = matrix.forward_side.basis.rows[: ctx.rank]
            learned = core[used].reshape(d.shape[1], ctx.rank, -1).transpose(1, 2).reshape(-1, ctx.rank)
            x_grad = torch.addmm(x_grad, spread @ learned, inputs)
        if ctx.needs_input_grad[1]:
            core_grad = torch.zeros_like(core)
            core_grad[used] = (d.T @ c).reshape(core[used].shape)
        if ctx.needs_input_grad[2]:
            scale_grad = grad.new_zeros(())
        return x_grad, core_grad, scale_grad, None, None
