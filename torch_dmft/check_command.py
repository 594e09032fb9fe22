"""The command ``torch-dmft check``: its options, and what it writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch_dmft.subcommand import add_command, add_outcome, add_set_up, console
from torch_dmft.written import folder, write

_DESCRIPTION = """\
Train a set-up as it is at several widths, and say whether its initial sizes and rates are right at all of them; if not, which
parameter is to blame and what mends it. Nothing is wrapped: any model, optimizer and loss will do.
"""
_EPILOG = """\
exit status: 0 right, 1 wrong, 2 could not run, 3 not decided

  module:function   function(width) returns a model, or (model, optimizer), or (model, optimizer, loss) with
                    loss(model, batch) -> scalar; modules of the current folder are found
  --data            function(seed) returns batches, or (batches, loss); default: the model's own example_input(),
                    example_input_array or dummy_inputs, else random rows or tokens that fit its first layer

example: torch-dmft check train:make --widths 64,128,256,512 --json check.json
"""


def add(commands: Any, widths: Any, path: Any) -> None:
    """Add the command.

    Args:
        commands: what ``add_subparsers`` returned.
        widths: reads a list of widths.
        path: reads a path.
    """
    parser = add_command(
        commands,
        "check",
        run,
        says="a verdict on anybody's parameterization: is it right at every width?",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    add_set_up(parser, widths, makes="makes the set-up of a width")
    parser.add_argument("--steps", type=int, default=16, metavar="N", help="steps of training (default: %(default)s)")
    parser.add_argument(
        "--seeds", type=int, default=4, metavar="N", help="networks at each width (default: %(default)s)"
    )
    parser.add_argument(
        "--most-seeds",
        type=int,
        metavar="N",
        help="networks at each width while nothing is decided (default: four times --seeds)",
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.2, metavar="X", help="exponent that counts as none (default: %(default)s)"
    )
    parser.add_argument("--details", action="store_true", help="print what every parameter is trained with, too")
    add_outcome(parser, path, of="verdict")
    parser.add_argument("--figures", type=path, metavar="DIR", help="write the figures here, as PNG")
    parser.add_argument("--logdir", type=path, metavar="DIR", help="write TensorBoard logs here")


def run(
    factory: str,
    widths: tuple[int, ...],
    steps: int,
    seeds: int,
    most_seeds: int | None,
    data: str | None,
    tolerance: float,
    processes: int | None,
    details: bool,
    json: Path | None,
    markdown: Path | None,
    figures: Path | None,
    report: Path | None,
    logdir: Path | None,
) -> int:
    """Check, print and write; returns the exit status."""
    from torch_dmft.referee import check
    from torch_dmft.referee.setup import named

    verdict = check(
        named(factory, "factory"),
        widths,
        steps=steps,
        seeds=seeds,
        most_seeds=most_seeds,
        data=None if data is None else named(data, "data"),
        tolerance=tolerance,
        processes=processes,
        progress=sys.stderr.isatty(),
    )

    def shown() -> None:
        terminal = console()
        terminal.print(verdict)
        if details:
            terminal.print()
            terminal.print(verdict.details())

    write(((json, verdict.to_json), (markdown, verdict.to_markdown)), shown)
    if figures is not None:
        folder(figures)
        for name, figure in verdict.figures().items():
            figure.savefig(figures / f"{name}.png")
    if report is not None:
        folder(report.parent)
        verdict.write_html(report)
    if logdir is not None:
        verdict.write_tensorboard(logdir)
    return verdict.exit_code
