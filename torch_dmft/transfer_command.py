"""The command ``torch-dmft transfer``: its options, and what it writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch_dmft.subcommand import add_command, add_outcome, add_set_up
from torch_dmft.written import folder, write

_DESCRIPTION = """\
Train a set-up at several widths and learning rates, and say whether the best rate is the same at all of them: its exponent in
the width with an interval, what a transferred rate costs, and which base width is enough. Nothing is wrapped: any model,
optimizer and loss will do. Rates are found by the sweep, coarse first, then fine; with --log the runs are kept in a file, from
which the same command goes on.
"""
_EPILOG = """\
exit status: 0 transfers, 1 does not, 2 could not run, 3 not decided

  module:function   function(width, lr) returns (model, optimizer) or (model, optimizer, loss) with
                    loss(model, batch) -> scalar; without an argument lr, rates are factors of those that its
                    optimizers have; modules of the current folder are found
  --data            function(seed) returns batches, or (batches, loss); with a second argument it is given the value of
                    the axis, such as a batch size; default: the model's own example_input(), example_input_array or
                    dummy_inputs, else random rows or tokens that fit its first layer
  --axis            what the widths are if they are none, such as depth or heads: function(depth, lr)

example: torch-dmft transfer train:make --data train:batches --widths 64,128,256,512 --lrs 0.001,0.01,0.1 --log runs.jsonl
"""


def add(commands: Any, widths: Any, path: Any) -> None:
    """Add the command.

    Args:
        commands: what ``add_subparsers`` returned.
        widths: reads a list of widths.
        path: reads the path of a file.
    """
    parser = add_command(
        commands,
        "transfer",
        run,
        says="does the best learning rate hold at other widths, and what does it cost if not?",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    add_set_up(parser, widths, makes="makes the set-up of a width and a learning rate")
    parser.add_argument(
        "--lrs", type=_rates, metavar="X,X", help="rates to begin with; the best may lie beyond (default: powers of 4)"
    )
    parser.add_argument("--axis", default="width", metavar="NAME", help="what the widths are (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="steps of training (default: %(default)s)")
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="networks at each width and rate (default: %(default)s)"
    )
    parser.add_argument("--log", type=path, metavar="FILE", help="keep every run here, and go on from it after a kill")
    parser.add_argument(
        "--tolerance", type=float, default=0.15, metavar="X", help="exponent that counts as none (default: %(default)s)"
    )
    parser.add_argument(
        "--accept",
        type=float,
        default=0.02,
        metavar="X",
        help="cost of a base width that is enough (default: %(default)s)",
    )
    add_outcome(parser, path, of="result")
    parser.add_argument("--figure", type=path, metavar="FILE", help="write the figure, as PNG, PDF or SVG")


def _rates(text: str) -> tuple[float, ...]:
    return tuple(float(rate) for rate in text.split(","))


# argparse names the type in its message.
_rates.__name__ = "list of rates"


def run(
    factory: str,
    widths: tuple[int, ...],
    lrs: tuple[float, ...] | None,
    axis: str,
    steps: int,
    seeds: int,
    data: str | None,
    log: Path | None,
    processes: int | None,
    tolerance: float,
    accept: float,
    json: Path | None,
    markdown: Path | None,
    figure: Path | None,
    report: Path | None,
) -> int:
    """Sweep, print and write; returns the exit status."""
    from torch_dmft.referee import transfer
    from torch_dmft.referee.setup import named

    found = transfer(
        named(factory, "factory"),
        widths,
        lrs=lrs,
        steps=steps,
        seeds=seeds,
        data=None if data is None else named(data, "data"),
        axis=axis,
        log=log,
        processes=processes,
        tolerance=tolerance,
        accept=accept,
        progress=sys.stderr.isatty(),
    )
    write(((json, found.to_json), (markdown, found.to_markdown)), lambda: print(found.text(80)))
    if figure is not None:
        folder(figure.parent)
        found.figure().savefig(figure)
    if report is not None:
        folder(report.parent)
        found.write_html(report)
    return found.exit_code
