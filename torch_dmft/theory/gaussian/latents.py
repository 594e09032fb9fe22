"""Where fresh Gaussians come from: the neurons of one width axis and everything already drawn for them."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

from torch_dmft.parameterization.uniform import uniform_like
from torch_dmft.theory.gaussian.rows import Rows, new_directions, orthonormal_, project_off_

_SOBOL = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 17, 18, 19, 25, 34, 38, 40, 43, 49)
"""Dimensions of the Sobol sequence that the first latents of a population are taken from; later ones are plain Gaussians.

The leading bits of some dimensions add up to a constant, whatever the scrambling: <u_i u_j u_k> or <u_i u_j u_k u_l> is then
some +-0.3 at any S, and replicas fall into clusters instead of scattering about the limit. These were kept one by one, as
long as in five scramblings of 8192 points no such product of three exceeded 0.1 and none of four 0.25. Compared with the
first 12 they reduce the errors of Phi by a tenth, and those of G by less (tanh, depth 3, ten rows, 60 seeds); three more,
the last of them the hundredth, made no difference and took as long to draw as these.
"""

_FEW, _MANY_POINTS = 11, 8192
"""The number of dimensions for fewer points than this, which cannot have more without ties."""

_BATCH = 16
"""Number of latents that are drawn and made orthogonal together, in one pass over everything known."""

_NEW_DIRECTION = 1e-3
"""A past variable counts as known if the part of it outside the span of the others is smaller than this."""


class Population(nn.Module):
    """S neurons that stand for the infinitely many of one width axis, and the source of their Gaussian latents.

    A latent is one N(0, 1) number per neuron: a vector of length S. Two laws:

    - ``"network"``: latents are plain i.i.d. Gaussians. The lazily sampled network is then *exactly* an ordinary network of
      width S in law.
    - ``"limit"``: the first latents are scrambled Sobol points, and each latent is made orthogonal, over the S neurons, to the
      constant vector and to all earlier latents, and has second moment one. The averages of theirs that vanish in the
      infinite-width limit then vanish exactly and only higher moments fluctuate. Linear networks become exact. When the
      known vectors fill half of the S dimensions, later latents are plain. (Making latents orthogonal to features
      and gradients as well was tried: it costs more and gains nothing.)

    Args:
        size: S.
        law: ``"limit"`` or ``"network"``.
        generator: source of randomness.
        quasi: whether the first latents are Sobol points. Distant points of a sequence depend on each other, so neurons that
            meet each other directly, as the heads of one width may, need independent ones.
    """

    def __init__(
        self,
        size: int,
        *,
        law: str,
        generator: torch.Generator,
        dtype: torch.dtype,
        device: torch.device | str,
        quasi: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.law, self.generator = size, law, generator
        self.drawn = 0
        self.full = law != "limit"
        self.known = Rows(size, dtype=dtype, device=device)
        self._ahead = torch.empty(0, size, dtype=dtype, device=device)  # next latents, orthonormal, orthogonal to known
        self._sobol: Tensor | None = None
        if law == "limit":
            self.known.append(torch.full((1, size), size**-0.5, dtype=dtype, device=device))
        if law == "limit" and quasi:
            seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
            dimensions = _SOBOL if size >= _MANY_POINTS else _SOBOL[:_FEW]
            engine = SobolEngine(dimensions[-1] + 1, scramble=True, seed=seed)
            self._sobol = engine.draw(size, dtype=dtype).T[list(dimensions)]

    def can_match(self, count: int) -> bool:
        """Whether the next ``count`` latents will be orthogonal to everything known."""
        return not self.full and self.known.count + count <= self.size // 2

    def draw(self, count: int, *, uniform: bool = False) -> Float[Tensor, "count size"]:
        """``count`` fresh latents, N(0, 1) per neuron, or U(-sqrt 3, sqrt 3) if they are to be uniform."""
        self.full = not self.can_match(count)  # for good: matching to a part of what was drawn would bias kernels
        if self.full:
            return uniform_like(self._raw(count)) if uniform else self._raw(count)
        if uniform:
            latents = orthonormal_(uniform_like(self._raw(count)), self.known.rows)
            self._know(latents)
            return latents * self.size**0.5
        missing = count - len(self._ahead)
        if missing > 0:
            more = max(missing, min(_BATCH, self.size // 2 - self.known.count) - len(self._ahead))
            self._ahead = orthonormal_(torch.cat([self._ahead, self._raw(more)]), self.known.rows)
        latents, self._ahead = self._ahead[:count], self._ahead[count:]
        self.known.append(latents)
        return latents * self.size**0.5

    def observe(self, variables: Float[Tensor, "m size"]) -> None:
        """Make later latents orthogonal to these variables, which are of unit norm."""
        self.full = not self.can_match(len(variables))
        if not self.full:
            residual = project_off_(variables.clone(), self.known.rows)
            unit = residual.new_ones(len(residual))
            new = new_directions(residual, unit, self.known.rows, _NEW_DIRECTION)
            self._know(new)

    def _know(self, new: Tensor) -> None:
        """Keep orthonormal vectors, to which all later latents will be orthogonal."""
        self.known.append(new)
        if len(self._ahead):
            self._ahead = orthonormal_(self._ahead, new)

    def _raw(self, count: int) -> Tensor:
        """Gaussians before any matching: Sobol points first, then independent draws."""
        like = self.known.storage
        quasi = 0 if self._sobol is None else max(0, min(count, len(self._sobol) - self.drawn))
        parts = []
        if self._sobol is not None and quasi:
            uniform = self._sobol[self.drawn : self.drawn + quasi]
            rounding = torch.finfo(uniform.dtype).eps / 2
            centered = 2 * uniform.clamp(rounding, 1 - rounding) - 1
            # The normal quantile of uniform, five times faster than ndtri.
            parts.append((2**0.5 * torch.erfinv(centered)).to(like))
        if quasi < count:
            shape = (count - quasi, self.size)
            plain = torch.randn(shape, generator=self.generator, device=self.generator.device, dtype=like.dtype)
            parts.append(plain.to(like.device))
        self.drawn += count
        return torch.cat(parts)

    def get_extra_state(self) -> dict[str, Any]:
        """Position in the random streams, for ``state_dict``."""
        state = {
            "drawn": self.drawn,
            "full": self.full,
            "ahead": self._ahead,
            "generator": self.generator.get_state(),
        }
        return state | ({} if self._sobol is None else {"sobol": self._sobol})

    def set_extra_state(self, state: Any) -> None:
        """Continue the random streams of a ``state_dict``."""
        self.drawn, self.full = state["drawn"], state["full"]
        self._ahead = state["ahead"].to(self._ahead)
        self.generator.set_state(state["generator"].cpu())
        if self._sobol is not None:
            self._sobol = state["sobol"].cpu()
