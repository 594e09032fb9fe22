"""Layers of infinite width: drop-ins for nn.Linear between two wide axes and from the last one to the outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.theory.engine.lazy_layer import LazyLayer, LazySettings
from torch_dmft.theory.engine.matrix import GRADIENTS, GaussianMatrix
from torch_dmft.theory.gaussian.latents import Population


class InfiniteLinear(LazyLayer):
    """A hidden ``nn.Linear`` between two populations, of cost O(S k) instead of O(S^2) per row.

    Args:
        inputs: population of the inputs.
        outputs: population of the outputs.
        settings: how the weight is drawn.
        bias: initial bias ``(S_out,)``, or None for no bias.
    """

    bias: nn.Parameter | None

    def __init__(
        self, inputs: Population, outputs: Population, settings: LazySettings, *, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs.size, outputs.size
        self.start(inputs, outputs, settings, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``(..., S_in)``; gives ``(..., S_out)``."""
        if x.shape[-1] != self.in_features:
            raise InvalidInputError(
                "The last axis must hold the neurons of the layer.",
                got=f"{tuple(x.shape)} for {self.in_features} inputs",
            )
        rows = self.multiply(x.reshape(-1, self.in_features))
        output = rows.reshape(*x.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias

    def draw_for_inputs(self, count: int) -> Float[Tensor, "count S_in"]:
        """So many numbers N(0, 1) for each neuron that the layer reads."""
        return self.matrix.forward_side.population.draw(count)

    def feedback(self, rho: float) -> Callable[[Tensor], Tensor]:
        r"""Backward weights of their own, :math:`B = g (\rho W_0 + \sqrt{1 - \rho^2}\, \tilde W)`, as ``y -> B^T y``.

        W~ meets no inputs, so that it owes nothing to any: it is sampled along the pseudo-gradients that it is applied to. W_0
        has its responses, to inputs and to these.

        Args:
            rho: correlation of the entries of B and W_0.
        """
        sides = self.matrix.forward_side.population, self.matrix.backward_side.population
        other = GaussianMatrix(*sides, tolerance=self.matrix.tolerance / GRADIENTS, responses=False)

        def back(y: Tensor) -> Tensor:
            parts = []
            if rho > 0:
                parts.append(rho * self.start_backward(y))
            if rho < 1:
                d = other.meet_gradients(y)
                parts.append((1 - rho**2) ** 0.5 * (d @ other.backward_side.latents.rows))
            return self.gain * torch.stack(parts).sum(0)

        return back

    def extra_repr(self) -> str:
        """Sizes and ranks, for ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, gain={self.gain:g}, rank={self.rank}"


class InfiniteReadout(nn.Linear):
    """A readout whose weights are drawn at the first forward pass, orthogonal over the neurons to the features they meet.

    The weights are the last population's latents w(0); drawing them late makes f(0) = w . phi(h) / (gamma0 S) vanish exactly
    on the rows first seen, as it does in the limit, instead of being noise of size 1 / (gamma0 sqrt S).

    Args:
        population: the last hidden population.
        out_features: C.
        std: initial standard deviation, 1 / (gamma0 S).
        bias: whether each output has a bias, zero at the start.
        uniform: whether weights are uniform numbers instead of Gaussian ones.
    """

    keeps_what_it_reveals = True  # drawn once, also if a measurement comes first (core.undisturbed)
    drawn: Tensor

    def __init__(
        self, population: Population, out_features: int, *, std: float, bias: bool, uniform: bool = False
    ) -> None:
        like = population.known.storage
        super().__init__(population.size, out_features, bias=bias, dtype=like.dtype, device=like.device)
        self.population, self.std, self.uniform = population, std, uniform
        self.register_buffer("drawn", torch.tensor(False, device=like.device))

    def reset_parameters(self) -> None:
        """Set all parameters to zero, without torch's random numbers: weights are drawn at the first forward pass."""
        for parameter in self.parameters(recurse=False):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``(..., S)``; the first call draws its weights."""
        if not self.drawn:
            with torch.no_grad():
                rows = x.detach().reshape(-1, x.shape[-1])
                norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
                self.population.observe(rows / norms.clamp_min(torch.finfo(rows.dtype).tiny))
                self.weight.copy_(self.std * self.population.draw(self.out_features, uniform=self.uniform))
                self.drawn.fill_(True)
        return super().forward(x)

    def draw_for_inputs(self, count: int) -> Float[Tensor, "count S_in"]:
        """So many numbers N(0, 1) for each neuron that the layer reads."""
        return self.population.draw(count)

    @torch.no_grad()
    def feedback(self, rho: float) -> Callable[[Tensor], Tensor]:
        """Backward weights of their own, rho w + sqrt(1 - rho^2) w~ of the present w, as ``y -> B^T y``."""
        other = self.std * self.population.draw(self.out_features)
        backward = rho * self.weight.detach() + (1 - rho**2) ** 0.5 * other
        return lambda y: y @ backward
