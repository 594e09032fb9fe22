"""Layers of infinite width: drop-ins for nn.Linear between two wide axes and from the last one to the outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.theory.infinite.latents import Population
from torch_dmft.theory.infinite.matrix import GaussianMatrix


class InfiniteLinear(nn.Module):
    r"""A hidden ``nn.Linear`` between two populations, of cost O(S k) instead of O(S^2) per row.

    The effective weight is split into its Gaussian start and what was learned, both known on the bases Q (inputs) and Q'
    (gradients) only:

    .. math:: W(t) = g\, a(t)\, W_0 + Q'^T m(t)\, Q .

    ``core`` is m, a parameter whose gradient is that of W projected on both bases, so any optimizer that treats parameters
    linearly (SGD with momentum, Nesterov, weight decay) moves W as it would move the full matrix. ``initial_scale`` is a, a
    parameter with zero gradient: the optimizer's weight decay acts on it exactly as on every entry of W_0.

    Args:
        inputs: population of the inputs.
        outputs: population of the outputs.
        gain: g.
        bias: initial bias ``(S_out,)``, or None for no bias.
        tolerance: see ``GaussianMatrix``.
        responses: see ``GaussianMatrix``.
        rank: largest number of directions per basis.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        inputs: Population,
        outputs: Population,
        *,
        gain: float,
        bias: Tensor | None = None,
        tolerance: float,
        responses: bool = True,
        rank: int = 512,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.gain = inputs.size, outputs.size, gain
        self.matrix = GaussianMatrix(inputs, outputs, tolerance=tolerance, responses=responses)
        like = inputs.known.storage
        self.core = nn.Parameter(like.new_zeros(min(rank, outputs.size), min(rank, inputs.size)))
        self.initial_scale = nn.Parameter(like.new_ones(()))
        self.bias = None if bias is None else nn.Parameter(bias.to(like))

    @property
    def rank(self) -> tuple[int, int]:
        """Directions met so far: inputs, gradients."""
        return self.matrix.forward_side.basis.count, self.matrix.backward_side.basis.count

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``(..., S_in)``; gives ``(..., S_out)``."""
        if x.shape[-1] != self.in_features:
            raise InvalidInputError(
                "The last axis must hold the neurons of the layer.",
                got=f"{tuple(x.shape)} for {self.in_features} inputs",
            )
        rows: Tensor = _Apply.apply(x.reshape(-1, self.in_features), self.core, self.initial_scale, self)  # type: ignore[no-untyped-call]
        output = rows.reshape(*x.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias

    def extra_repr(self) -> str:
        """Sizes and ranks, for ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, gain={self.gain:g}, rank={self.rank}"

    def reserve(self, rank: int, optimizer: Optimizer) -> None:
        """Make room for ``rank`` directions per basis: ``core`` and its state in the optimizer are padded with zeros.

        The parameter is replaced by a larger one, in the optimizer too, as autograd remembers the shape of the old one.
        """
        shape = (min(rank, self.out_features), min(rank, self.in_features))

        def padded(old: Tensor) -> Tensor:
            new = old.new_zeros(shape)
            new[: old.shape[0], : old.shape[1]] = old
            return new

        old = self.core
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
        needed = max(self.rank)
        if any(used > room for used, room in zip(reversed(self.rank), self.core.shape, strict=True)):
            raise InvalidInputError(
                "Training explores more directions than the layer has room for.",
                got=f"rank {needed}, room for {max(self.core.shape)}",
                remedy=f"infinite_width(..., rank={2 * needed}), or a larger tolerance",
            )


class _Apply(Function):
    """y = g a (Q x) (W_0 Q) + Q' m (Q x) and its gradients, by coordinates."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, core: Tensor, scale: Tensor, layer: InfiniteLinear) -> Tensor:
        matrix = layer.matrix
        c = matrix.meet_inputs(x)
        layer.check_rank()
        ctx.layer, ctx.scale = layer, float(scale)
        ctx.save_for_backward(c, core)
        gradients = matrix.backward_side.basis.rows
        y = c @ matrix.forward_side.images.rows
        y *= layer.gain * ctx.scale
        learned = c @ core[: len(gradients), : c.shape[1]].T
        return torch.addmm(y, learned, gradients) if len(gradients) else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (grad,) = grads
        layer: InfiniteLinear = ctx.layer
        c, core = ctx.saved_tensors
        matrix = layer.matrix
        d = matrix.meet_gradients(grad)
        layer.check_rank()
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = d @ matrix.backward_side.images.rows
            x_grad *= layer.gain * ctx.scale
            inputs = matrix.forward_side.basis.rows[: c.shape[1]]
            x_grad = torch.addmm(x_grad, d @ core[: d.shape[1], : c.shape[1]], inputs)
        core_grad = scale_grad = None
        if ctx.needs_input_grad[1]:
            core_grad = torch.zeros_like(core)
            core_grad[: d.shape[1], : c.shape[1]] = d.T @ c
        if ctx.needs_input_grad[2]:
            scale_grad = grad.new_zeros(())
        return x_grad, core_grad, scale_grad, None


class InfiniteReadout(nn.Linear):
    """A readout whose weights are drawn at the first forward pass, orthogonal over the neurons to the features they meet.

    The weights are the last population's latents w(0); drawing them late makes f(0) = w . phi(h) / (gamma0 S) vanish exactly
    on the rows first seen, as it does in the limit, instead of being noise of size 1 / (gamma0 sqrt S).

    Args:
        population: the last hidden population.
        out_features: C.
        std: initial standard deviation, 1 / (gamma0 S).
        bias: whether each output has a bias, zero at the start.
    """

    keeps_what_it_reveals = True  # drawn once, also if a measurement comes first (core.undisturbed)
    drawn: Tensor

    def __init__(self, population: Population, out_features: int, *, std: float, bias: bool) -> None:
        like = population.known.storage
        super().__init__(population.size, out_features, bias=bias, dtype=like.dtype, device=like.device)
        self.population, self.std = population, std
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.register_buffer("drawn", torch.tensor(False, device=like.device))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``(..., S)``, drawing its weights first if that has not been done."""
        if not self.drawn:
            with torch.no_grad():
                rows = x.detach().reshape(-1, x.shape[-1])
                norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
                self.population.observe(rows / norms.clamp_min(torch.finfo(rows.dtype).tiny))
                self.weight.copy_(self.std * self.population.draw(self.out_features))
                self.drawn.fill_(True)
        return super().forward(x)
