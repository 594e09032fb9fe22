"""Images for demo and examples: a data set as it is, or two classes of it, centred and of unit norm, with targets -1 and 1."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import require_choice
from torch_dmft.settings import Data

_TORCHVISION = {"cifar10": ("CIFAR-10", "CIFAR10"), "fashion": ("Fashion-MNIST", "FashionMNIST")}
"""What is read by torchvision: its title, and the class."""


@checked
def load(
    name: str, samples: int, folder: str | Path = "data", *, classes: tuple[int, int] = (0, 1), seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Half of ``samples`` from each of two classes, alternating.

    Pixels are centred over the images and each image scaled to x . x / D = 1, so that Phi^0 has a unit diagonal.

    Args:
        name: ``"digits"`` (scikit-learn's 8x8 images, shipped with it), ``"cifar10"``, ``"fashion"`` (CIFAR-10 and
            Fashion-MNIST, read by torchvision, which must lie in ``folder``), or ``"synthetic"`` (8x8 Gaussian images of
            two overlapping classes, no dependency).
        samples: P, an even number.
        folder: where the files of CIFAR-10 and Fashion-MNIST are, as torchvision puts them.
        classes: the class that becomes -1 and the one that becomes +1.
        seed: of the synthetic images.

    Returns:
        inputs ``(sample, channel, height, width)`` and targets ``(sample, 1)``, float32.

    Raises:
        InvalidInputError: if the data are not there or not enough; the message tells how to get them.
    """
    require_choice("name", name, get_args(Data))
    if samples < 4 or samples % 2:
        raise InvalidInputError(
            "`samples` must be an even number of at least 4, half from each of two classes.",
            got=str(samples),
            remedy=f"{max(4, samples + samples % 2)} samples",
        )
    half = samples // 2
    pictures, labels = _synthetic(half, seed) if name == "synthetic" else images(name, folder)
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
    inputs = pictures[torch.stack(picked, dim=1).flatten()].to(torch.float32)
    inputs = inputs - inputs.mean(0)
    inputs = inputs / inputs.square().mean((1, 2, 3), keepdim=True).sqrt()
    targets = torch.tensor([-1.0, 1.0]).repeat(half).unsqueeze(1)
    return inputs, targets


@checked
def images(name: str, folder: str | Path = "data") -> tuple[Tensor, Tensor]:
    """All training images of a data set as they are, and their classes.

    Args:
        name: ``"digits"``, ``"cifar10"`` or ``"fashion"``, see ``load``.
        folder: where the files of CIFAR-10 and Fashion-MNIST are.

    Returns:
        pixels ``(sample, channel, height, width)``, of digits 0 to 16, of others 0 to 255, and labels ``(sample,)``.

    Raises:
        InvalidInputError: if the data are not there; the message tells how to get them.
    """
    require_choice("name", name, ("digits", *_TORCHVISION))
    return _digits() if name == "digits" else _of_torchvision(name, Path(folder))


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


def _of_torchvision(name: str, folder: Path) -> tuple[Tensor, Tensor]:
    title, kind = _TORCHVISION[name]
    try:
        datasets = import_module("torchvision.datasets")
    except (ImportError, RuntimeError) as error:
        raise InvalidInputError(
            f"{title} is read by torchvision, which cannot be imported: {error}.",
            remedy="pip install 'torch_dmft[vision]' with a torchvision that fits your torch",
        ) from error
    try:
        dataset = getattr(datasets, kind)(str(folder), train=True, download=False)
    except RuntimeError as error:
        raise InvalidInputError(
            f"{title} is not in {folder}.",
            got=str(error),
            remedy=f'python -c "from torchvision.datasets import {kind}; {kind}({str(folder)!r}, download=True)"',
        ) from error
    pixels, labels = torch.as_tensor(dataset.data), torch.as_tensor(dataset.targets)
    return pixels.permute(0, 3, 1, 2) if pixels.ndim == 4 else pixels.unsqueeze(1), labels


def _synthetic(half: int, seed: int) -> tuple[Tensor, Tensor]:
    """Each class is Gaussian noise about its own random image."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(2, 1, 8, 8, generator=generator)
    labels = torch.arange(2).repeat(half)
    return centres[labels] + torch.randn(2 * half, 1, 8, 8, generator=generator), labels
