"""Wrong arguments of the command: every flag with values that it must refuse."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch_dmft.core.errors import InvalidInputError

SMALL = {
    "data": "synthetic",
    "samples": "4",
    "width": "4",
    "depth": "1",
    "steps": "1",
    "neurons": "16",
    "replicas": "1",
}
"""Settings with which the demo takes a second."""

_WORDS = ("x", "", "1,5", "1e")
_NUMBERS = ("nan", "inf", "-inf", "1e300", "-1")
_TOO_MANY = (str(2**64), "1" + 30 * "0", "1e20", "1.5")
VALUES = {
    "int": (*_WORDS, *_NUMBERS, *_TOO_MANY),
    "float": (*_WORDS, *_NUMBERS, "0", "1e-300"),
    "list of widths": ("x", ",", "4,", "4,x", "0,4", "-1,4", "1.5,4", f"4,{2**64}", "1e20,4", "nan,4"),
    "str": ("no such thing", "\0"),
    "Path": ("", "\0"),
}
RIGHT_ALL_THE_SAME = {("data_dir", ""), ("data_dir", "\0")}
"""Of data that lie nowhere it is not asked where they lie."""


def demo_flags() -> dict[str, argparse.Action]:
    """Every flag of ``torch-dmft demo`` but ``--help``, by the name of its setting."""
    from torch_dmft.cli import _parser

    commands = next(one for one in _parser()._actions if isinstance(one, argparse._SubParsersAction))
    return {one.dest: one for one in commands.choices["demo"]._actions if one.dest != "help"}


def command_cases(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """A case for every flag and wrong value, and for the files of the other commands."""
    for name, action in demo_flags().items():
        for value in VALUES[getattr(action.type, "__name__", "str")]:
            if (name, value) not in RIGHT_ALL_THE_SAME:
                settings = {"logdir": str(folder / "demo"), **SMALL, name: value}
                words = [f"--{flag.replace('_', '-')}={text}" for flag, text in settings.items()]
                yield f"demo --{name}={value!r}", lambda words=words: _run("demo", *words)
    nothing, text = folder / "nothing.npz", folder / "text.npz"
    empty = folder / "empty"
    empty.mkdir(exist_ok=True)
    text.write_text("no archive")
    for label, words in {
        "compare nothing": ("compare", nothing, nothing),
        "compare text": ("compare", text, text),
        "compare a folder": ("compare", empty, empty),
        "compare one run": ("compare", nothing),
        "compare --what": ("compare", nothing, nothing, "--what"),
        "report nothing": ("report", folder / "missing", "-o", folder / "page.html"),
        "report an empty folder": ("report", empty, "-o", folder / "page.html"),
        "no command": (),
        "another command": ("train",),
        "demo --what": ("demo", "--what"),
        "demo of odd samples": ("demo", "--data=synthetic", "--samples=5"),
        "demo of 18 networks": ("demo", "--data=synthetic", "--networks=18"),
    }.items():
        yield label, lambda words=words: _run(*map(str, words))


def _run(*words: str) -> None:
    """The command; what it refuses is an error of the package, in whose words."""
    from torch_dmft.cli import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            status = main(words)
        except SystemExit as end:  # of argparse
            status = int(end.code or 0)
    if status == 2 and said.getvalue().strip():
        raise InvalidInputError(said.getvalue().strip().splitlines()[-1], got=repr(words), remedy="--help")
