"""How alike two kernels are: angles and distances in the Frobenius norm, each a plain number.

One rule for vanishing norms serves every function: a comparison of zero with zero finds them equal, of zero with
anything else finds them entirely different. What is left of a kernel by round-off after centering counts as zero.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from torch_dmft.core.arguments import checked, require_rows
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.kernel import Kernel


@checked
def alignment(a: Kernel | Shaped[Tensor, "..."], b: Kernel | Shaped[Tensor, "..."]) -> float:
    """The cosine of the angle between two kernels.

    A(X, Y) = tr(X Y^T) / (|X| |Y|), over all entries: of all times and outputs too, if there are such axes.

    Args:
        a: a kernel, or its entries in any shape.
        b: a kernel of the same shape.

    Returns:
        A number in [-1, 1], in [0, 1] for positive semi-definite kernels; blind to the scale of either. 1 if both
        vanish, 0 if one does.

    Raises:
        InvalidInputError: if the shapes differ.
    """
    x, y = _entries(a, b)
    return cosines(x.reshape(1, -1), y.reshape(1, -1)).item()


@checked
def centered_alignment(a: Kernel | Shaped[Tensor, "..."], b: Kernel | Shaped[Tensor, "..."]) -> float:
    """The alignment of two kernels with their means over samples taken away (CKA).

    A(H X H, H Y H) with H = I - 1 1^T / P: what is left of the angle when every sample shares a common offset.

    Args:
        a: a kernel with the axes ``(..., sample, sample)``, at equal times and without output axes.
        b: a kernel of the same shape.

    Returns:
        A number in [0, 1] for positive semi-definite kernels. 1 if both centered kernels vanish, 0 if one does.

    Raises:
        InvalidInputError: if the shapes differ, are no (sample, sample) matrices, or there are fewer than two samples.

    Source: Kornblith et al. 2019, eq. 1 (linear CKA).
    """
    x, y = _entries(a, b)
    if x.ndim < 2 or x.shape[-1] != x.shape[-2] or x.ndim > 3:
        raise InvalidInputError(
            "A centered alignment needs (sample, sample) matrices.",
            got=f"shape {tuple(x.shape)}",
            remedy="pass kernel.per_sample().equal_time",
        )
    if x.shape[-1] < 2:
        raise InvalidInputError("A centered alignment needs at least two samples.", got="one sample")
    return alignment(_centered(x), _centered(y))


@checked
def relative_error(a: Kernel | Shaped[Tensor, "..."], b: Kernel | Shaped[Tensor, "..."]) -> float:
    """The distance of a kernel from a reference, in units of the reference.

    |X - Y| / |Y|, over all entries. It sees a wrong scale, to which the alignment is blind.

    Args:
        a: a kernel, or its entries in any shape.
        b: the reference, of the same shape.

    Returns:
        A number that is not negative. 0 if both vanish, infinity if only the reference does.

    Raises:
        InvalidInputError: if the shapes differ.
    """
    x, y = _entries(a, b)
    size = max(float(each.abs().max()) if each.numel() else 0.0 for each in (x, y)) or 1.0  # squares may be no numbers
    x, y = x / size, y / size
    return quotients((x - y).norm()[None], y.norm()[None]).item()


@checked
def target_alignment(kernel: Kernel | Shaped[Tensor, "..."], targets: Shaped[Tensor, "sample ..."]) -> float:
    """The alignment of a kernel with the task.

    A(K, Y Y^T), with the sum over outputs in Y Y^T. It grows while features are learned, and is constant in the lazy
    limit.

    Args:
        kernel: ``(sample, sample)`` entries, or a ``Kernel`` with a single recorded time; output axes are averaged
            over equal outputs first.
        targets: ``(sample, output)`` or ``(sample,)`` floats, or ``(sample,)`` integer classes, which count as one-hot.

    Returns:
        A number in [0, 1] for a positive semi-definite kernel. 0 if the targets or the kernel vanish, 1 if both do.

    Raises:
        InvalidInputError: if the kernel has several times, or another number of samples than the targets, or integer targets
            are negative.
    """
    require_rows("targets", targets, len(targets) if targets.ndim else 1)
    if isinstance(kernel, Kernel):
        kernel = kernel.per_sample().equal_time
        if len(kernel) != 1:
            raise InvalidInputError(
                "A target alignment is one number and this kernel has several times.",
                got=f"{len(kernel)} times",
                remedy="pass kernel.per_sample().equal_time[index]",
            )
        kernel = kernel[0]
    rows = one_hot(targets).to("cpu", torch.float64).reshape(len(targets), -1)
    return alignment(kernel, rows @ rows.T)


def cosines(x: Float[Tensor, "row entry"], y: Float[Tensor, "row entry"]) -> Float[Tensor, " row"]:
    """The cosine of every row of x with the same row of y; 1 where both rows vanish, 0 where one does."""
    x, y = (each / nonzero(each.abs().amax(1))[:, None] for each in (x, y))  # whose squares would be no numbers
    x_norm, y_norm = x.norm(dim=1), y.norm(dim=1)
    # Divided before summing: the product of two tiny norms would underflow.
    cosine = ((x / nonzero(x_norm)[:, None]) * (y / nonzero(y_norm)[:, None])).sum(1).clamp(-1, 1)
    return cosine.masked_fill((x_norm == 0) & (y_norm == 0), 1.0)


def quotients(numerator: Float[Tensor, " row"], denominator: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """The quotients of two vectors of norms, with 0 / 0 = 0."""
    return (numerator / denominator).masked_fill((numerator == 0) & (denominator == 0), 0.0)


def nonzero(norms: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """The norms with 1 in place of 0, to divide by."""
    return norms.masked_fill(norms == 0, 1.0)


def one_hot(targets: Tensor, classes: int = -1) -> Tensor:
    """Classes as one column for each; anything else as it is.

    Args:
        targets: ``(row,)`` integers, or floats.
        classes: how many there are; -1 for the largest + 1.

    Raises:
        InvalidInputError: if integers are no classes.
    """
    if targets.is_floating_point() or targets.ndim != 1:
        return targets
    if int(targets.min()) < 0:
        raise InvalidInputError(
            "Integer targets must be classes, from 0 on.",
            got=f"a smallest target of {int(targets.min())}",
            remedy="targets.float(), if they are numbers to be fitted",
        )
    if classes != -1 and int(targets.max()) >= classes:
        raise InvalidInputError(
            f"Classes must be below the number of outputs, {classes}.",
            got=f"a largest target of {int(targets.max())}",
            remedy="targets.float(), if they are numbers to be fitted",
        )
    return torch.nn.functional.one_hot(targets.long(), classes)


def _entries(a: Kernel | Tensor, b: Kernel | Tensor) -> tuple[Tensor, Tensor]:
    x, y = (item.array if isinstance(item, Kernel) else item for item in (a, b))
    if x.shape != y.shape:
        raise InvalidInputError(
            "Two kernels of different shapes cannot be compared.",
            got=f"{tuple(x.shape)} and {tuple(y.shape)}",
            remedy="compare at equal samples, outputs and times",
        )
    if not x.numel():
        raise InvalidInputError(
            "Kernels to compare must have entries.",
            got=f"shape {tuple(x.shape)}",
            remedy="at least one sample and time",
        )
    return x.detach().to("cpu", torch.float64), y.detach().to("cpu", torch.float64)


def _centered(x: Tensor) -> Tensor:
    x = x / (float(x.abs().max()) or 1.0)  # whose squares would be no numbers
    centered = x - x.mean(-1, keepdim=True)
    centered = centered - centered.mean(-2, keepdim=True)
    return torch.zeros_like(x) if centered.norm() <= 1e-12 * x.norm() else centered
