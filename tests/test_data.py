"""The images of demo and examples: centred, of unit norm, balanced, and refused with a remedy where they are missing."""

import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torch_dmft import data
from torch_dmft.core.errors import InvalidInputError


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_images_are_centred_of_unit_norm_and_alternate_between_two_classes(name):
    inputs, targets = data.load(name, 12)
    assert inputs.shape == (12, 1, 8, 8)
    assert inputs.dtype == targets.dtype == torch.float32
    torch.testing.assert_close(inputs.square().mean((1, 2, 3)), torch.ones(12))
    assert targets.flatten().tolist() == [-1, 1] * 6
    # Before each image was scaled the pixels had mean zero: some positive combination of the images vanishes.
    flat = inputs.flatten(1)
    assert torch.linalg.svdvals(flat)[-1] < 1e-4 * torch.linalg.norm(flat)


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    inputs, _ = data.load("digits", 4, classes=(3, 8))
    source = load_digits()
    picked = [np.flatnonzero(source.target == digit)[:2] for digit in (3, 8)]
    images = source.images[[picked[0][0], picked[1][0], picked[0][1], picked[1][1]]]
    images = images - images.mean(0)
    images = images / np.sqrt((images**2).mean((1, 2), keepdims=True))
    np.testing.assert_allclose(inputs[:, 0], images, atol=1e-6)


def test_the_seed_decides_the_synthetic_images():
    first, again, other = (data.load("synthetic", 8, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize(
    ("name", "samples", "message"),
    [
        ("digits", 7, "8 samples"),
        ("digits", 2, "4 samples"),
        ("digits", 2000, "at most 356"),
        ("mnist", 8, '"digits", '),
    ],
)
def test_what_cannot_be_had_is_refused_with_a_remedy(name, samples, message):
    with pytest.raises(InvalidInputError, match=f"Remedy: .*{message}"):
        data.load(name, samples)


def write_cifar10(folder: Path, per_class: int) -> np.ndarray:
    """Small files in CIFAR-10's format: rows of 3072 bytes, channel by channel, and labels 0..9."""
    labels = list(range(10)) * per_class
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    home = folder / "cifar-10-batches-py"
    home.mkdir()
    empty = {"data": np.zeros((0, 3072), np.uint8), "labels": []}
    batches = {f"data_batch_{number}": empty for number in (2, 3, 4, 5)}
    batches |= {"data_batch_1": {"data": pixels, "labels": labels}, "test_batch": empty}
    for name, batch in (batches | {"batches.meta": {"label_names": list("abcdefghij")}}).items():
        (home / name).write_bytes(pickle.dumps(batch))
    return pixels


def write_fashion_mnist(folder: Path, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Small files in Fashion-MNIST's format: big-endian headers, then bytes."""
    labels = np.arange(10, dtype=np.uint8).repeat(per_class)
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
    home = folder / "FashionMNIST" / "raw"
    home.mkdir(parents=True)
    for name in ("train", "t10k"):
        head = struct.pack(">4i", 0x803, len(labels), 28, 28)
        (home / f"{name}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (home / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, len(labels)) + labels.tobytes())
    return pixels, labels


@pytest.fixture
def cifar10(monkeypatch):
    """CIFAR10 of torchvision, content with files of its format whatever their checksum."""
    module = pytest.importorskip("torchvision.datasets.cifar")
    monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())
    return module


@pytest.mark.usefixtures("cifar10")
def test_cifar10_is_read_by_torchvision(tmp_path):
    pixels = write_cifar10(tmp_path, per_class=3)
    inputs, targets = data.load("cifar10", 6, tmp_path, classes=(2, 7))
    assert inputs.shape == (6, 3, 32, 32)
    assert targets.flatten().tolist() == [-1, 1] * 3
    images = pixels[[2, 7, 12, 17, 22, 27]].reshape(6, 3, 32, 32).astype(np.float64)
    images = images - images.mean(0)
    images = images / np.sqrt((images**2).mean((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(inputs, images, atol=1e-5)


def test_fashion_mnist_is_read_by_torchvision(tmp_path):
    pytest.importorskip("torchvision.datasets.mnist")
    pixels, labels = write_fashion_mnist(tmp_path, per_class=3)
    images, classes = data.images("fashion", tmp_path)
    assert images.shape == (30, 1, 28, 28)
    np.testing.assert_array_equal(images[:, 0], pixels)
    np.testing.assert_array_equal(classes, labels)
    inputs, targets = data.load("fashion", 6, tmp_path, classes=(2, 7))
    assert inputs.shape == (6, 1, 28, 28)
    assert targets.flatten().tolist() == [-1, 1] * 3
    with pytest.raises(InvalidInputError, match=r"Fashion-MNIST is not in .*FashionMNIST\(.*download=True"):
        data.images("fashion", tmp_path / "nowhere")


def test_images_of_digits_are_as_they_are():
    images, classes = data.images("digits")
    assert images.shape == (1797, 1, 8, 8)
    assert (float(images.min()), float(images.max())) == (0, 16)
    assert classes[:10].tolist() == list(range(10))
    with pytest.raises(InvalidInputError, match=r"`name` must be one of"):
        data.images("synthetic")


@pytest.mark.usefixtures("cifar10")
def test_too_few_images_of_a_class_are_counted(tmp_path):
    write_cifar10(tmp_path, per_class=3)
    with pytest.raises(InvalidInputError, match="3 cifar10 images of class 0"):
        data.load("cifar10", 8, tmp_path)


@pytest.mark.usefixtures("cifar10")
def test_missing_files_are_told_with_the_command_that_gets_them(tmp_path):
    with pytest.raises(InvalidInputError, match=r"CIFAR-10 is not in .*download=True") as caught:
        data.load("cifar10", 8, tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in caught.value.remedy


def test_a_torchvision_that_cannot_be_imported_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(InvalidInputError, match=r"torchvision, which cannot be imported.*pip install"):
        data.load("cifar10", 8, tmp_path)
