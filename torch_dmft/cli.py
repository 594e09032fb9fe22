"""The command ``torch-dmft``."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import get_args

from torch_dmft import __version__, check_command, solve_command, transfer_command
from torch_dmft.core.errors import DMFTError
from torch_dmft.settings import Data, Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 1 if a set-up is wrong, 2 for a mistake, 3 for no verdict, 130 if stopped."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    if isinstance(sys.stdout, io.TextIOWrapper):  # no result is lost because a dash cannot be printed
        sys.stdout.reconfigure(errors="replace")
    try:
        status = command(**options)
    except (DMFTError, OSError) as error:
        print(f"torch-dmft: {error}", file=sys.stderr)
        _flushed()
        return 2
    except KeyboardInterrupt:
        print("torch-dmft: interrupted; what was logged so far is readable", file=sys.stderr)
        return 130
    except (Exception, SystemExit):  # the status of Python's own ending, or of a user's, would be taken for a verdict
        traceback.print_exc()
        _flushed()
        return 2
    return int(status or 0) if _flushed() else 2


def _flushed() -> bool:
    """Whether what was printed has arrived; if not, the rest goes nowhere, as Python would fail once more when it ends."""
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"torch-dmft: {error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _demo(**options: object) -> None:
    settings = Settings(**options)  # type: ignore[arg-type]
    from torch_dmft.demo import run

    run(settings)


def _compare(measured: Path, predicted: list[Path], logdir: Path | None, json: Path | None, *, details: bool) -> None:
    from torch_dmft.comparison import compare
    from torch_dmft.core.trajectory import Trajectory
    from torch_dmft.demo import terminal
    from torch_dmft.report.results import require_printed

    first, *others = (Trajectory.load(path) for path in predicted)
    comparison = compare(Trajectory.load(measured), first, *others)
    console = terminal()
    try:
        if logdir is not None:
            comparison.write_tensorboard(logdir, progress=console.is_terminal)
    finally:  # a full disk takes the logs and not the report
        console.print(comparison)
        if details:
            console.print()
            console.print(comparison.details())
    if json is not None:
        json.write_text(comparison.to_json(), encoding="utf-8")
    if logdir is not None:
        said = f'Written. See it with: tensorboard --logdir "{logdir}"'
        console.print(said, soft_wrap=True, highlight=False, markup=False)
    require_printed(console)


def _report(logdir: Path, output: Path) -> None:
    from torch_dmft.tab.page import write_page
    from torch_dmft.tab.runs import Library

    write_page(Library({"": logdir}), output, title=f"{logdir.resolve().name} · torch_dmft")
    print(f"Written: {output}, {output.stat().st_size / 1e6:.1f} MB. It opens in a browser, from disk.")


def _doctor() -> int:
    from torch_dmft.doctor import run

    return run()


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError
    return Path(text)


def _widths(text: str) -> tuple[int, ...]:
    return tuple(int(width) for width in text.split(","))


# argparse names the type in its message.
_path.__name__, _widths.__name__ = "path", "list of widths"

_HELP = {
    "data": "digits (scikit-learn), synthetic, or cifar10 or fashion (torchvision; see --data-dir)",
    "samples": "training images, half of each of two classes",
    "width": "neurons per hidden layer of the network",
    "networks": "such as 40: train so many more networks of this width, and tell whether the width explains the gap",
    "widths": "such as 128,512,2048: train networks of these widths too and show how the gap to theory shrinks",
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
    "logdir": "where logs, figures and trajectories go (default: a folder of runs/ named by the settings)",
    "data_dir": "where the files of CIFAR-10 or Fashion-MNIST are",
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
    )
    demo.set_defaults(command=_demo)
    _add_settings(demo)
    compare = commands.add_parser("compare", help="compare saved trajectories (.npz)")
    compare.set_defaults(command=_compare)
    compare.add_argument("measured", type=_path, help="the network's trajectory")
    compare.add_argument("predicted", type=_path, nargs="+", help="one or more predictions")
    compare.add_argument("--details", action="store_true", help="print every table")
    compare.add_argument("--logdir", type=_path, metavar="DIR", help="also write TensorBoard logs here")
    compare.add_argument("--json", type=_path, metavar="FILE", help="also write the comparison for machines")
    report = commands.add_parser("report", help="write the page of TensorBoard's DMFT tab as one HTML file")
    report.set_defaults(command=_report)
    report.add_argument("logdir", type=_path, help="a folder of logs, such as runs/demo")
    report.add_argument(
        "-o", "--output", type=_path, default=Path("report.html"), help="the file (default: %(default)s)"
    )
    commands.add_parser("doctor", help="say what is installed, what computes, and what is missing").set_defaults(
        command=_doctor
    )
    check_command.add(commands, _widths, _path)
    transfer_command.add(commands, _widths, _path)
    solve_command.add(commands, _path)
    return parser


# Of every annotation in the settings: what reads the option, and what help calls it; else a name.
_KINDS: dict[str, tuple[Callable[[str], object], str]] = {
    "int": (int, "N"),
    "float": (float, "X"),
    "tuple[int, ...]": (_widths, "N,N"),
    "Path": (_path, "DIR"),
    "Path | None": (_path, "DIR"),
}


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for every field of the demo's settings, with the field's default."""
    for field in fields(Settings):
        kind, metavar = _KINDS.get(str(field.type), (str, "NAME"))
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=kind,
            default=field.default,
            metavar=metavar,
            choices=get_args(Data) if field.name == "data" else None,
            help=_HELP[field.name] + (" (default: %(default)s)" if field.default not in (None, ()) else ""),
        )


if __name__ == "__main__":
    sys.exit(main())
