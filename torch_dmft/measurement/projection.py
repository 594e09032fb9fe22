r"""A few fixed random directions in the space of the outputs: for models with more outputs than kernels can be kept of."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.arguments import checked
from torch_dmft.core.classes import are_classes
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import require_seed, require_whole
from torch_dmft.uses.outputs import Selection, output_rows, select


@checked
class Projection:
    r"""Selects k fixed random combinations of a model's C outputs, for ``outputs=``.

    .. math:: f'_j = \sum_c R_{cj} f_c, \qquad R_{cj} \sim N(0, 1/k), \qquad
        E \sum_j K'_{\mu j, \alpha j} = \sum_c K_{\mu c, \alpha c}

    The NTK summed over the k outputs is an unbiased estimate of the NTK summed over all C of them, with a relative error of
    about :math:`\sqrt{2/(k\, r)}` for r outputs that matter. R is drawn in float64 from the seed, on the CPU, so that it is the
    same for every run and device.

    Args:
        count: k.
        of: which of the model's outputs are projected: a key, an index or a function that gives ``(sample, C)``, as in
            ``outputs=``; None for the usual one.
        seed: of R.

    Example:
        >>> Recorder(model, probe, outputs=Projection(8, of=lambda out: out.logits[:, -1]))  # doctest: +SKIP
    """

    def __init__(self, count: int, of: Selection | None = None, *, seed: int = 0) -> None:
        require_whole("count", count, at_least=1)
        require_seed("seed", seed)
        self.count, self.of, self.seed = count, of, seed
        self._matrix: Tensor | None = None

    def __call__(self, returned: Any) -> Float[Tensor, "sample output"]:
        """The projected outputs."""
        outputs = select(returned, self.of)
        if outputs.ndim != 2:
            outputs = output_rows(outputs, len(outputs))
        return outputs @ self.matrix(outputs.shape[1]).to(outputs)

    def matrix(self, outputs: int) -> Float[Tensor, "outputs projected"]:
        """R for a model with so many outputs, on the CPU in float64."""
        require_whole("outputs", outputs, at_least=1)
        if self._matrix is None or len(self._matrix) != outputs:
            generator = torch.Generator("cpu").manual_seed(self.seed)
            drawn = torch.randn(outputs, self.count, generator=generator, dtype=torch.float64, device="cpu")
            self._matrix = drawn / self.count**0.5
        return self._matrix


def refuse_classes_of(outputs: Selection | None, targets: Tensor | None) -> None:
    """Refuse class targets beside projected outputs, of which no loss on classes can be taken.

    Raises:
        InvalidInputError: if both are there.
    """
    if isinstance(outputs, Projection) and are_classes(targets):
        raise InvalidInputError(
            "Class targets are of all outputs, and a projection has only a few combinations of them.",
            got=f"{outputs.count} projected outputs and class targets",
            remedy="a probe without targets, Probe(inputs)",
        )
