"""Infinitely wide networks read digits, or tell pictures apart: test error against the number of training samples.

    python examples/infinite_digits.py --samples 50,100,200,400
    python examples/infinite_digits.py --data fashion --data-dir data --samples 100,300,1000

Beside each other are regression with the kernel of the last features at the start (the NNGP: only the readout learns), the
tangent kernel at the start (gamma0 -> 0: kernel regression), infinitely wide networks that learn features at several gamma0,
and finite networks in PyTorch's own parameterization. All see the same images; error bars
are standard errors over draws of the training samples. Fashion-MNIST and CIFAR-10 are read by torchvision.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import label_binarize

import torch_dmft as dmft
from torch_dmft import data

LAZY = 0.05
"""A gamma0 at which features stay where they are."""


PIXELS = {"digits": (5.0, 6.0), "fashion": (73.0, 90.0), "cifar10": (121.0, 64.0)}
"""Mean and standard deviation of the pixels of each data set, about."""


def load(name: str, folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(sample, pixel)`` around zero and of order one, and their classes 0 to 9."""
    images, classes = data.images(name, folder)
    center, size = PIXELS[name]
    return (images.flatten(1).double().numpy() - center) / size, classes.numpy()


class GaussianProcess(ClassifierMixin, BaseEstimator):
    """Regression of signs, one against all others, with the NNGP of two hidden ReLU layers (Lee et al. 2018).

    Args:
        noise: variance of what is not explained, in units of the kernel's diagonal.
    """

    def __init__(self, noise: float = 0.01) -> None:
        self.noise = noise

    def fit(self, images: np.ndarray, classes: np.ndarray) -> "GaussianProcess":
        """Keep the rows: all work is done where others are asked for."""
        self.classes_, self._images = np.unique(classes), images
        self._signs = 2.0 * label_binarize(classes, classes=range(10))[:, self.classes_] - 1
        return self

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The class of the largest mean."""
        rows = torch.tensor(np.concatenate([self._images, images]))
        zeros = rows.new_zeros(len(rows), 1)
        problem = dmft.Problem.mlp(rows, zeros, depth=2, activation="relu", gain=math.sqrt(2), steps=1)
        start = dmft.solve(problem, dmft.solvers.StaticNTK(), record=0)
        kernel = start.layers[-1].forward.equal_time[0].numpy()
        known = len(self._images)
        noise = self.noise * np.diag(kernel[:known, :known]).mean() * np.eye(known)
        means = kernel[known:, :known] @ np.linalg.solve(kernel[:known, :known] + noise, self._signs)
        return np.asarray(self.classes_[means.argmax(1)])


def classifiers(
    gammas: Sequence[float], neurons: int, epochs: int, width: int
) -> dict[str, Callable[[int], ClassifierMixin]]:
    """Name -> what makes one from a seed."""

    def infinite(gamma0: float) -> Callable[[int], ClassifierMixin]:
        return lambda seed: dmft.InfiniteWidthClassifier(
            gamma0=gamma0, neurons=neurons, replicas=1, epochs=epochs, random_state=seed
        )

    def finite(seed: int) -> ClassifierMixin:
        return MLPClassifier(
            (width, width), early_stopping=True, n_iter_no_change=10, max_iter=epochs, random_state=seed
        )

    names: dict[str, Callable[[int], ClassifierMixin]] = {
        "N = inf, readout alone (the NNGP)": lambda _: GaussianProcess(),
        "N = inf, lazy (the NTK)": infinite(LAZY),
    }
    names |= {f"N = inf, gamma0 = {gamma0:g}": infinite(gamma0) for gamma0 in gammas}
    return names | {f"PyTorch-like, N = {width}, Adam": finite}


def main(arguments: Sequence[str] | None = None) -> dict[str, list[tuple[float, float]]]:
    """Returns name -> (test error, its standard error) at each number of samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(PIXELS), default="digits", help="default: %(default)s")
    parser.add_argument("--data-dir", default="data", help="where torchvision has put its files (default: %(default)s)")
    parser.add_argument("--samples", default="50,100,200,400", help="training samples")
    parser.add_argument("--asked", type=int, default=2000, help="other images that are asked for, at most")
    parser.add_argument("--gammas", default="0.5,2")
    parser.add_argument("--draws", type=int, default=3, help="of training samples, from which the error bars come")
    parser.add_argument("--neurons", type=int, default=1024, help="sample that stands for infinite width")
    parser.add_argument("--epochs", type=int, default=60, help="at most")
    parser.add_argument("--width", type=int, default=256, help="of the finite network")
    parser.add_argument("--logdir", default="runs/infinite_digits", help="for the figure (default: %(default)s)")
    options = parser.parse_args(arguments)
    counts = [int(count) for count in options.samples.split(",")]
    gammas = [float(gamma) for gamma in options.gammas.split(",")]
    console = Console()
    images, classes = load(options.data, options.data_dir)

    made = classifiers(gammas, options.neurons, options.epochs, options.width)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for count in counts:
        for name, make in made.items():
            errors = []
            for draw in range(options.draws):
                order = np.random.default_rng(draw).permutation(len(images))
                rows, others = order[:count], order[count:][: options.asked]
                with console.status(f"{count} samples, {name}: draw {draw + 1} of {options.draws}"):
                    classifier = make(draw).fit(images[rows], classes[rows])
                errors.append(1 - classifier.score(images[others], classes[others]))
            spread = float(np.std(errors, ddof=1) / np.sqrt(len(errors))) if len(errors) > 1 else 0.0
            found[name].append((float(np.mean(errors)), spread))

    table = Table(
        "classifier", *(f"{count} samples" for count in counts), title=f"test error on other images, {options.data}"
    )
    for name, row in found.items():
        table.add_row(name, *(f"{error:.1%} ± {spread:.1%}" for error, spread in row))
    console.print(table)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="training samples", ylabel="test error", xscale="log", yscale="log")
    for name, row in found.items():
        means, spreads = zip(*row, strict=True)
        axes.errorbar(counts, means, spreads, marker="o", capsize=2, label=name)
    axes.legend()
    folder = Path(options.logdir)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "infinite_digits.png", dpi=150)
    console.print(f"Figure: {folder / 'infinite_digits.png'}")
    return found


if __name__ == "__main__":
    main()
