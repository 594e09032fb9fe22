"""What commands share: how they are added to ``torch-dmft``, the options of a verdict, and where they print."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def add_command(
    commands: Any, name: str, run: Callable[..., int], *, says: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: what ``add_subparsers`` returned.
        name: of the command.
        run: is called with its options and returns the exit status.
        says: what it does, in the list of commands.
        description: the same at length, above its options.
        epilog: exit status and an example, below them.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=says, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(command=run)
    return parser


def add_set_up(parser: argparse.ArgumentParser, widths: Any, *, makes: str) -> None:
    """Add the options that say what is trained."""
    parser.add_argument("factory", metavar="module:function", help=makes)
    parser.add_argument(
        "--widths", type=widths, default=(64, 128, 256, 512), metavar="N,N", help="(default: 64,128,256,512)"
    )
    parser.add_argument("--data", metavar="module:function", help="makes the batches of a seed")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="networks that train at once (default: one for each processor)"
    )


def add_outcome(parser: argparse.ArgumentParser, path: Any, *, of: str) -> None:
    """Add the options that say where the outcome is written."""
    parser.add_argument("--json", type=path, metavar="FILE", help=f"write the {of} for machines; - prints it")
    parser.add_argument("--markdown", type=path, metavar="FILE", help=f"write the {of} for a pull request; - prints it")
    parser.add_argument("--report", type=path, metavar="FILE", help=f"write the {of} as a page that opens in a browser")


def console() -> Console:
    """The terminal, or 80 columns where there is none."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=80)
