"""The spectrum of the tangent kernel through training, and how much of the task each of its directions holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from torch_dmft.comparison.metrics import one_hot
from torch_dmft.core.arguments import checked, typed
from torch_dmft.core.errors import InvalidInputError, NotRecordedError
from torch_dmft.core.trajectory import Trajectory


@typed
@dataclass(frozen=True)
class NTKSpectrum:
    """Eigenvalues and eigenvectors of the tangent kernel on the training rows, largest first.

    With n = samples * outputs, a row is a pair (sample, output). Of an NTK that is averaged over outputs, n = samples.

    Attributes:
        times: ``(time,)``, eta * step.
        eigenvalues: ``(time, n)``, per unit of eta: along eigenvector i the error falls like exp(-eigenvalue * c * time),
            where c is that of Delta = c (y - f), 1 for the paper's loss and 2 / n for ``nn.MSELoss()``.
        target_weights: ``(time, n)``, the share (v_i . y)^2 / |y|^2 of the targets along each eigenvector; sums to 1. With an
            averaged NTK the shares (v_i . y_c)^2 / |y|^2 of all outputs c, added.
        eigenvectors: ``(time, n, n)``, eigenvector i in ``[:, :, i]``.
    """

    times: Tensor
    eigenvalues: Tensor
    target_weights: Tensor
    eigenvectors: Tensor

    @property
    def effective_rank(self) -> Float[Tensor, " time"]:
        """exp(-sum_i p_i log p_i), p = eigenvalues / trace: how many directions share the kernel (1 to n)."""
        shares = self.eigenvalues.clamp(min=0)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
        return torch.special.entr(shares).sum(1).exp()


@checked
def ntk_spectrum(trajectory: Trajectory, targets: Shaped[Tensor, "row ..."] | None = None) -> NTKSpectrum:
    """The eigendecomposition of K^NTK(t) on the training rows, with the targets seen in its eigenvectors.

    K(t) v_i(t) = lambda_i(t) v_i(t). In the lazy limit nothing moves; when features are learned, eigenvalues along the
    targets grow and the targets gather in the leading eigenvectors.

    Args:
        trajectory: any run, measured or predicted.
        targets: of the training rows, floats ``(train,)`` or ``(train, output)`` or classes ``(train,)``; None for those of the
            trajectory.

    Returns:
        The spectrum, in float64.

    Raises:
        NotRecordedError: if there are no targets, or no NTK.
        InvalidInputError: if the targets do not fit the kernel.
    """
    train = trajectory.train
    if targets is None:
        if trajectory.targets is None:
            raise NotRecordedError(
                f"{trajectory.origin!r} has no targets to look for in the spectrum.", remedy="pass targets="
            )
        targets = trajectory.targets[train]
    ntk = trajectory.known_ntk
    kernel = ntk.equal_time.detach().to("cpu", torch.float64)
    kernel = kernel[:, train][:, :, :, train] if ntk.has_outputs else kernel[:, train][:, :, train]
    size = kernel.shape[1 : 1 + (kernel.ndim - 1) // 2].numel()
    y = one_hot(targets, trajectory.outputs.shape[2]).detach().to("cpu", torch.float64)
    numbers = int(train.sum()) * trajectory.outputs.shape[2]
    if y.numel() != numbers:
        raise InvalidInputError(
            "Targets need one number per training row and output.",
            got=f"{y.numel()} numbers for {numbers} rows of the kernel",
            remedy="targets of the training rows, one number for each output, or integer classes",
        )
    values, vectors = torch.linalg.eigh(kernel.reshape(-1, size, size))
    values, vectors = values.flip(1), vectors.flip(2)
    along = (vectors.mT @ y.reshape(size, -1)).square().sum(-1)  # columns: one, or the outputs of an averaged kernel
    shares = along / y.square().sum().clamp(min=torch.finfo(y.dtype).tiny)
    return NTKSpectrum(trajectory.times.cpu(), values, shares, vectors)
