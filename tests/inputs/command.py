"""Wrong arguments of the command: every flag of every sub-command with values that it must refuse."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

from tests.inputs.calls import Set
from torch_dmft.core.errors import InvalidInputError

SMALL = {
    "data": "synthetic",
    "samples": "4",
    "width": "4",
    "depth": "1",
    "steps": "1",
    "neurons": "64",
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
    "list of rates": ("x", ",", "0.1,", "0.1,x", "0,0.1", "-1,0.1", "nan,0.1", "inf,0.1", "1e300,0.1"),
    "str": ("no such thing", "\0"),
    "path": ("", "\0", "{file}/below", "{folder}/" + 300 * "x"),
}
RIGHT_ALL_THE_SAME = {
    ("transfer", "axis", "no such thing"),
    ("demo", "data_dir", "{file}/below"),
    ("demo", "data_dir", "{folder}/" + 300 * "x"),
}
"""Of data that lie nowhere it is not asked where they lie."""

Case = tuple[Callable[[], Any], str]
"""What is run, and a word of the error."""


def flags() -> dict[str, dict[str, argparse.Action]]:
    """Every flag and argument but ``--help``, by command and by the name of its setting."""
    from torch_dmft.cli import _parser

    commands = next(one for one in _parser()._actions if isinstance(one, argparse._SubParsersAction))
    return {
        command: {one.dest: one for one in parser._actions if one.dest != "help"}
        for command, parser in commands.choices.items()
    }


def right_words(a: Set) -> dict[str, dict[str, str]]:
    """Of every command the values of a right call; a flag that takes none has the empty word."""
    runs, logs = a.folder / "runs", a.folder / "commanded"
    for name, run in (("measured", a.measured), ("predicted", a.static)):
        runs.mkdir(exist_ok=True)
        run.save(runs / f"{name}.npz")
    a.comparison.write_tensorboard(logs)
    return {
        "demo": {**SMALL, "logdir": str(a.folder / "demo")},
        "compare": {
            "measured": str(runs / "measured.npz"),
            "predicted": str(runs / "predicted.npz"),
            "details": "",
            "logdir": str(a.folder / "compared"),
        },
        "doctor": {},
        "check": {
            "factory": "tests.inputs.calls:network",
            "widths": "4,8",
            "steps": "1",
            "seeds": "1",
            "most_seeds": "1",
            "details": "",
            "json": str(a.folder / "check.json"),
            "report": str(a.folder / "check.html"),
        },
        "transfer": {
            "factory": "tests.inputs.calls:at_rate",
            "widths": "4,8",
            "lrs": "0.1",
            "steps": "2",
            "seeds": "1",
            "processes": "1",
            "json": str(a.folder / "transfer.json"),
            "report": str(a.folder / "transfer.html"),
        },
        "solve": {
            "problem": "tests.inputs.calls:tiny_problem",
            "neurons": "64",
            "replicas": "1",
            "every": "1",
            "two_time": "0.05",
            "output": str(a.folder / "theory.npz"),
        },
        "report": {"logdir": str(logs), "output": str(a.folder / "page.html")},
    }


def right_commands(a: Set) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The commands that wrong ones are made of."""
    for command, values in right_words(a).items():
        yield command, lambda command=command, values=values: _run(*_words(command, values))  # type: ignore[misc]


def command_cases(a: Set) -> dict[str, Case]:
    """A case for every flag and wrong value, and for what is wrong with the whole."""
    file, folder, right = a.folder / "a file", a.folder / "a folder", right_words(a)
    file.write_text("no archive")
    folder.mkdir(exist_ok=True)
    cases: dict[str, Case] = {}
    for command, actions in flags().items():
        for name, action in actions.items():
            for value in VALUES[getattr(action.type, "__name__", "str")] if action.nargs != 0 else ("x",):
                if (command, name, value) not in RIGHT_ALL_THE_SAME:
                    words = _words(command, {**right[command], name: value.format(file=file, folder=folder)})
                    cases[f"{command} {name}={value[:40]!r}"] = (lambda words=words: _run(*words)), _told(name, value)  # type: ignore[misc]
    nothing, text = folder / "nothing.npz", folder / "text.npz"
    text.write_text("no archive")
    for label, told, words in (
        ("compare nothing", "exist", ("compare", nothing, nothing)),
        ("compare text", "saved", ("compare", text, text)),
        ("compare a folder", "regular", ("compare", folder, folder)),
        ("compare a device", "regular", ("compare", "/dev/zero", "/dev/zero")),
        ("compare one run", "required", ("compare", nothing)),
        ("compare --what", "--what", ("compare", nothing, nothing, "--what")),
        ("compare the wrong way round", "first", ("compare", *reversed(_words("compare", right["compare"])[1:3]))),
        ("compare to a file", "file", (*_words("compare", {**right["compare"], "logdir": str(file)}),)),
        ("report nothing", "records", ("report", folder / "missing", "-o", folder / "page.html")),
        ("report an empty folder", "records", ("report", folder, "-o", folder / "page.html")),
        ("report a file", "records", ("report", file, "-o", folder / "page.html")),
        ("report onto a folder", "folder", ("report", right["report"]["logdir"], "-o", folder)),
        ("report into nothing", "folder", ("report", right["report"]["logdir"], "-o", folder / "no" / "page.html")),
        ("no command", "required", ()),
        ("another command", "choose", ("train",)),
        ("demo --what", "--what", ("demo", "--what")),
        ("demo of odd samples", "samples", ("demo", "--data=synthetic", "--samples=5")),
        ("demo of 18 networks", "networks", ("demo", "--data=synthetic", "--networks=18")),
        ("demo into a file", "file", _words("demo", {**right["demo"], "logdir": str(file)})),
        ("demo on no device", "device", _words("demo", {**right["demo"], "device": "cuda:99"})),
    ):
        cases[label] = (lambda words=words: _run(*map(str, words))), told  # type: ignore[misc]
    return cases


def _told(name: str, value: str) -> str:
    """What the error must name: the setting, or the path."""
    if value.startswith("{"):
        return "x{200}" if value.endswith("x") else "below"
    return name.replace("_", "[-_]")


def _words(command: str, values: dict[str, str]) -> tuple[str, ...]:
    """The words of a command line; what has no flag comes first."""
    actions = flags()[command]
    first = [value for name, value in values.items() if not actions[name].option_strings]
    others = (
        f"{actions[name].option_strings[-1]}={value}"
        if value or actions[name].nargs != 0
        else actions[name].option_strings[-1]
        for name, value in values.items()
        if actions[name].option_strings
    )
    return command, *first, *others


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
        raise InvalidInputError(said.getvalue().strip().splitlines()[-1], got=f"exit status {status}", remedy="--help")
