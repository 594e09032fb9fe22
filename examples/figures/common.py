"""What the scripts of the figures share: options, data, networks, and the table of claims.

Settings are those of Bordelon & Pehlevan 2022 where the main text tells them; gains are 1, as in eq. 1. Losses are half the
sum of squares, so that t = eta * step is the paper's time. Networks are trained centered, f - f_0, where there is no weight
decay: a finite network begins at a random output of order 1 / (gamma0 sqrt N), its infinitely wide limit at zero.
"""

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft import data
from torch_dmft.comparison import relative_error
from torch_dmft.report.style import COLORS as COLORS

ACTIVATIONS = {"linear": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class Claim:
    """One line of the table: what the paper says, what we find, and whether the two are the same.

    Attributes:
        said: in the paper; the letter of a panel or the number of a section first.
        found: with numbers.
        holds: by a condition that the script states; None where the paper says nothing, or the run cannot tell.
    """

    said: str
    found: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "yes", False: "no", None: "-"}[self.holds]


@dataclass(frozen=True)
class Clock:
    """CPU seconds since it was made."""

    start: float

    @classmethod
    def started(cls) -> "Clock":
        """A clock that starts now."""
        return cls(sum(os.times()[:4]))

    @property
    def seconds(self) -> float:
        """Of all threads, and of child processes that have ended."""
        return sum(os.times()[:4]) - self.start


@dataclass(frozen=True)
class Option:
    """A size that can be chosen: what it is by default, and with ``--quick``."""

    usual: float
    quick: float
    help: str


def options_of(
    description: str | None, name: str, arguments: Sequence[str] | None, **sizes: Option
) -> argparse.Namespace:
    """The options of a script: its own sizes, and those that all have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: seconds, and rough numbers")
    parser.add_argument(
        "--data", choices=["digits", "cifar10", "fashion"], default="digits", help="default: %(default)s"
    )
    parser.add_argument("--data-dir", default="data", help="where torchvision has put its files (default: %(default)s)")
    parser.add_argument("--folder", default=f"runs/figures/{name}", help="for the results (default: %(default)s)")
    for key, size in sizes.items():
        shown = f"{size.help} (default: {size.usual:g}, quick: {size.quick:g})"
        parser.add_argument(f"--{key.replace('_', '-')}", type=type(size.usual), help=shown)
    options = parser.parse_args(arguments)
    for key, size in sizes.items():
        if getattr(options, key) is None:
            setattr(options, key, size.quick if options.quick else size.usual)
    options.name = name
    return options


def load(options: argparse.Namespace, samples: int) -> tuple[Tensor, Tensor]:
    """Images of two classes, ``(sample, channel, height, width)``, and targets -1, 1, ``(sample, 1)``.

    The first two classes of CIFAR-10, as in the paper, and of Fashion-MNIST; of the digits 5 and 9, since 0 and 1 are told
    apart without features.
    """
    classes = (5, 9) if options.data == "digits" else (0, 1)
    return data.load(options.data, samples, options.data_dir, classes=classes)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the sum of squares, whose error signal Delta is y - f."""
    return (outputs - targets).square().sum() / 2


def chain(inputs: int, width: int, depth: int, activation: str) -> nn.Sequential:
    """A network of ``depth`` hidden layers without biases, eq. 1."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in in (inputs, *[width] * (depth - 1)):
        layers += [nn.Linear(fan_in, width, bias=False), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(width, 1, bias=False))


def trained(
    model: nn.Module,
    probe: dmft.Probe,
    *,
    gamma0: float,
    lr: float,
    steps: int,
    record: Iterable[int],
    seed: int,
    weight_decay: float = 0.0,
    two_time: bool = False,
) -> dmft.Recorder:
    """Train a network by full-batch gradient descent, and record it; ``.problem()`` poses the same to the theory.

    It is trained centered, f - f_0, but with weight decay, which would take f_0 along.
    """
    inputs, targets = probe.inputs, probe.targets
    generator = torch.Generator().manual_seed(seed)
    plan = dmft.parameterize(model, inputs, gamma0=gamma0, gain=1.0, generator=generator)
    network = plan.model if weight_decay else dmft.centered(plan.model)
    optimizer = torch.optim.SGD(plan.param_groups(lr, weight_decay=weight_decay))
    recorder = dmft.Recorder(plan, probe, model=network, schedule=record, two_time=two_time, loss=half_square)
    with recorder.attach(optimizer):
        for _ in range(steps):
            optimizer.zero_grad()
            half_square(network(inputs), targets).backward()
            optimizer.step()
    return recorder


def kernel_errors(one: dmft.Trajectory, other: dmft.Trajectory) -> tuple[float, float]:
    """The largest relative errors of any Phi of a hidden layer and of any G, over all entries that both hold."""
    layers = [*zip(one.layers, other.layers, strict=True)]
    return (
        max(relative_error(a.forward, b.forward) for a, b in layers[1:]),
        max(relative_error(a.backward, b.backward) for a, b in layers[:-1]),
    )


def traced(kernel: dmft.Kernel) -> Tensor:
    """The sum over samples of K[(t, mu), (s, mu)]: ``(time, time)``."""
    return kernel.values.diagonal(dim1=1, dim2=3).sum(-1)


def by_class(kernel: Tensor, targets: Tensor) -> Tensor:
    """A ``(sample, sample)`` matrix with samples sorted by class."""
    order = targets[:, 0].argsort(stable=True)
    return kernel[order][:, order]


def of_samples(axes: Axes, values: Tensor, limit: float) -> None:
    """Draw a ``(sample, sample)`` matrix, white at zero."""
    axes.imshow(values.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set(xticks=[], yticks=[])


def of_times(axes: Axes, theory: Tensor, network: Tensor, end: float) -> None:
    """Draw a ``(time, time)`` matrix up to time ``end``: theory above the diagonal, network below."""
    both = theory.triu() + network.tril(-1)
    shown = axes.imshow(both.numpy(), extent=(0.0, end, end, 0.0))
    bar = axes.figure.colorbar(shown, ax=axes, location="bottom", shrink=0.8)
    for each in (axes, bar.ax):
        each.tick_params(labelsize=7)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of independent numbers and its standard error."""
    numbers = torch.tensor(values, dtype=torch.float64, device="cpu")
    return float(numbers.mean()), float(numbers.std() / len(numbers) ** 0.5)


def finish(
    options: argparse.Namespace, settings: str, clock: Clock, figure: Figure | None, claims: list[Claim]
) -> None:
    """Print the claims; write them, and the figure, to the folder."""
    seconds = clock.seconds
    shown = Table(title=settings, title_justify="left", show_lines=True)
    for name in ("the paper says", "we find", "same?"):
        shown.add_column(name)
    for claim in claims:
        shown.add_row(claim.said, claim.found, claim.verdict)
    console = Console()
    console.print(shown)
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    if figure is not None:
        figure.savefig(folder / f"{options.name}.png", dpi=150)
    known = {"settings": settings, "quick": options.quick, "cpu_seconds": round(seconds)}
    known["claims"] = [asdict(claim) for claim in claims]
    (folder / f"{options.name}.json").write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    console.print(
        f"{seconds:.0f} s of CPU time; {folder}/{options.name}.json" + (f", {options.name}.png" if figure else "")
    )
