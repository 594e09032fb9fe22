"""The command ``torch-dmft``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from torch_dmft import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, 2 for a mistake in the arguments or the data."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    from torch_dmft.core.errors import DMFTError

    try:
        command(**options)
    except DMFTError as error:
        print(f"torch-dmft: {error}", file=sys.stderr)
        return 2
    return 0


def _demo(**options: object) -> None:
    from torch_dmft.demo import Settings, run

    run(Settings(**options))  # type: ignore[arg-type]


def _compare(measured: Path, predicted: list[Path], logdir: Path | None) -> None:
    from torch_dmft.comparison import compare
    from torch_dmft.core.trajectory import Trajectory

    first, *others = (Trajectory.load(path) for path in predicted)
    comparison = compare(Trajectory.load(measured), first, *others)
    print(comparison)
    if logdir is not None:
        comparison.write_tensorboard(logdir)
        print(f"Written. See it with: tensorboard --logdir {logdir}")


def _widths(text: str) -> tuple[int, ...]:
    return tuple(int(width) for width in text.split(","))


_HELP = {
    "data": "digits (scikit-learn), synthetic, or cifar10 (torchvision; see --data-dir)",
    "samples": "training images, half of each of two classes",
    "width": "neurons per hidden layer of the network",
    "widths": "comma-separated: train networks of these widths too and show how the gap to theory shrinks",
    "depth": "hidden layers",
    "activation": "tanh, relu, erf, gelu, silu, sigmoid, softplus or linear",
    "gamma0": "feature-learning strength: small is lazy, large is rich",
    "lr": "base learning rate, the same for every width",
    "steps": "full-batch SGD steps",
    "records": "about how many steps are recorded",
    "neurons": "sampled neurons that stand for infinite width; theory's error falls like 1/sqrt(neurons)",
    "replicas": "independent runs of the theory, for its error bars",
    "seed": "seed of all random numbers",
    "device": "cpu, cuda, cuda:1, ...",
    "logdir": "where logs, figures and trajectories go",
    "data_dir": "where the CIFAR-10 files are",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torch-dmft",
        description="Dynamical mean field theory for PyTorch models: wrap, measure, predict, compare.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train a network on images beside its infinite-width limit, and report",
        description="Wrap a network, train it on images of two classes, predict it by DMFT and by the static NTK, compare.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.set_defaults(command=_demo)
    _add_settings(demo)
    compare = commands.add_parser("compare", help="compare saved trajectories (.npz)")
    compare.set_defaults(command=_compare)
    compare.add_argument("measured", type=Path, help="the network's trajectory")
    compare.add_argument("predicted", type=Path, nargs="+", help="one or more predictions")
    compare.add_argument("--logdir", type=Path, help="also write TensorBoard logs here")
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for every field of the demo's settings, with the field's default."""
    from torch_dmft.demo import Settings

    for field in fields(Settings):
        kind = _widths if field.name == "widths" else type(field.default)
        options = {"choices": ("digits", "synthetic", "cifar10")} if field.name == "data" else {"metavar": "X"}
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=kind, default=field.default, help=_HELP[field.name], **options)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
