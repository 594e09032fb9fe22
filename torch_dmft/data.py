"""Two-class image problems for demo and examples: centred images of unit norm, targets -1 and +1."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.settings import Data


@checked
def load(
    name: str, samples: int, folder: str | Path = "data", *, classes: tuple[int, int] = (0, 1), seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Half of ``samples`` from each of two classes, alternating.

    Pixels are centred over the images and each image scaled to x . x / D = 1, so that Phi^0 has a unit diagonal.

    Args:
        name: ``"digits"`` (scikit-learn's 8x8 images, shipped with it), ``"cifar10"`` (torchvision's CIFAR-10, which must lie
            in ``folder``), or ``"synthetic"`` (8x8 Gaussian images of two overlapping classes, no dependency).
        samples: P, an even number.
        folder: where the CIFAR-10 files are, as torchvision puts them.
        classes: the class that becomes -1 and the one that becomes +1.
        seed: of the synthetic images.

    Returns:
        inputs ``(sample, channel, height, width)`` and targets ``(sample, 1)``, float32.

    Raises:
        InvalidInputError: if the data are not there or not enough; the message tells how to get them.
    """
    if name not in get_args(Data):
        raise InvalidInputError(
            "`name` must be one of the data sets.", got=repr(name), remedy=", ".join(get_args(Data))
        )
    if samples < 4 or samples % 2:
        raise InvalidInputError(
            "`samples` must be an even number of at least 4, half from each of two classes.",
            got=str(samples),
            remedy=f"{max(4, samples + samples % 2)} samples",
        )
    half = samples // 2
    if name == "synthetic":
        images, labels = _synthetic(half, seed)
    else:
        images, labels = _digits() if name == "digits" else _cifar10(Path(folder))
    picked = []
    for label in classes:
        found = (labels == label).nonzero().flatten()[:half]
        if len(found) < half:
            raise InvalidInputError(
                f"`samples` must be at most twice the {len(found)} {name} images of class {label}.",
                got=f"{samples} samples",
                remedy=f"at most {2 * len(found)} samples",
            )
        picked.append(found)
    inputs = images[torch.stack(picked, dim=1).flatten()].to(torch.float32)
    inputs = inputs - inputs.mean(0)
    inputs = inputs / inputs.square().mean((1, 2, 3), keepdim=True).sqrt()
    targets = torch.tensor([-1.0, 1.0]).repeat(half).unsqueeze(1)
    return inputs, targets


def _digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InvalidInputError(
            "The digits ship with scikit-learn, which is not installed.",
            remedy="pip install 'torch_dmft[examples]', or take synthetic data",
        ) from error
    digits = load_digits()
    return torch.from_numpy(digits.images).unsqueeze(1), torch.from_numpy(digits.target)


def _cifar10(folder: Path) -> tuple[Tensor, Tensor]:
    try:
        from torchvision.datasets import CIFAR10
    except (ImportError, RuntimeError) as error:
        raise InvalidInputError(
            f"CIFAR-10 is read by torchvision, which cannot be imported: {error}.",
            remedy="pip install 'torch_dmft[vision]' with a torchvision that fits your torch",
        ) from error
    try:
        dataset = CIFAR10(str(folder), train=True, download=False)
    except RuntimeError as error:
        raise InvalidInputError(
            f"CIFAR-10 is not in {folder}.",
            got=str(error),
            remedy=f'python -c "from torchvision.datasets import CIFAR10; CIFAR10({str(folder)!r}, download=True)"',
        ) from error
    return torch.from_numpy(dataset.data).permute(0, 3, 1, 2), torch.tensor(dataset.targets)


def _synthetic(half: int, seed: int) -> tuple[Tensor, Tensor]:
    """Each class is Gaussian noise about its own random image."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(2, 1, 8, 8, generator=generator)
    labels = torch.arange(2).repeat(half)
    return centres[labels] + torch.randn(2 * half, 1, 8, 8, generator=generator), labels
