"""What the page asks for, as functions that return plain data: the same for the server and for a page in one file.

Arrays travel as their bytes, so that NaN needs no words and a thousand records no thousand lines of JSON.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from torch_dmft.tab.reader import Records
from torch_dmft.tab.runs import Library, Run

Answer = dict[str, Any]


class NoAnswerError(LookupError):
    """The page asked for a run, a kernel or a step that is not there."""


def runs(library: Library) -> Answer:
    """Every run with what is said of it, and a stamp that changes when it does."""
    return {"runs": [_listed(run) for run in library.runs().values()], "problems": list(library.problems)}


def run(library: Library, name: str) -> Answer:
    """The numbers of one run: of the network and of every prediction, at all records."""
    found, records = _found(library, name)
    return {**_listed(found), "members": [_member(each) for each in records], "problems": list(_problems(records))}


def kernel(library: Library, name: str, which: str, step: str) -> Answer:
    """A kernel of every member at a step, as upper triangles, row by row; null where it was not kept."""
    _, members = _found(library, name)
    return {"step": int(step), "kernels": [array(records.kernel(which, int(step))) for records in members]}


def pair(library: Library, name: str, which: str, samples: str) -> Answer:
    """A two-time kernel of every member, ``(time, time)``.

    Args:
        library: where the run is.
        name: of the run.
        which: of the kernel, such as ``"Phi/1"``.
        samples: ``"trace"`` for the mean over equal samples, or the positions of two, such as ``"0,3"``.
    """
    _, members = _found(library, name)
    parts = None if samples == "trace" else [int(part) for part in samples.split(",")]
    if parts is not None and len(parts) != 2:
        raise NoAnswerError(f"Samples must be two numbers or 'trace'. Got: {samples!r}.")
    chosen = None if parts is None else (parts[0], parts[1])
    times = [[] if records.about is None else list(records.about.times) for records in members]
    return {"times": times, "kernels": [array(records.two_time(which, chosen)) for records in members]}


QUESTIONS: dict[str, Callable[..., Answer]] = {"runs": runs, "run": run, "kernel": kernel, "pair": pair}
PARAMETERS: dict[str, tuple[str, ...]] = {
    "runs": (),
    "run": ("run",),
    "kernel": ("run", "kernel", "step"),
    "pair": ("run", "kernel", "samples"),
}


def answer(library: Library, question: str, parameters: Mapping[str, str]) -> Answer:
    """Answer a question of the page.

    Raises:
        NoAnswerError: if there is no such question, or nothing to answer it with.
    """
    if question not in QUESTIONS:
        raise NoAnswerError(f"Unknown question {question!r}.")
    if missing := [name for name in PARAMETERS[question] if name not in parameters]:
        raise NoAnswerError(f"The question {question!r} needs {', '.join(missing)}.")
    try:
        return QUESTIONS[question](library, *(parameters[name] for name in PARAMETERS[question]))
    except (ValueError, OverflowError) as error:
        raise NoAnswerError(f"Not understood: {dict(parameters)}.") from error


def array(values: ArrayLike | None) -> Answer | None:
    """An array as plain data: its shape, and its numbers as base64 of little-endian float32."""
    if values is None:
        return None
    numbers = np.ascontiguousarray(values, "<f4")
    return {"shape": list(numbers.shape), "data": base64.b64encode(numbers.tobytes()).decode("ascii")}


def _found(library: Library, name: str) -> tuple[Run, list[Records]]:
    """A run by its name; names are looked up among those there are, and never become paths."""
    found = library.runs().get(name)
    if found is None:
        raise NoAnswerError(f"There is no run {name!r}.")
    return found, [library.records(member) for member in found.members]


def _listed(run: Run) -> Answer:
    about = run.members[0].about
    return {
        "name": run.name,
        "origins": ["" if member.about is None else member.about.origin for member in run.members],
        "facts": {} if about is None else dict(about.facts),
        "stamp": "-".join(str(number) for member in run.members for number in member.stamp),
    }


def _problems(members: list[Records]) -> Iterator[str]:
    for records in members:
        where = records.folder.name if records.about is None else records.about.origin
        for problem in records.problems:
            yield f"{where}: {problem}"


def _member(records: Records) -> Answer:
    about = records.about
    if about is None:
        return {"about": None, "problems": list(records.problems)}
    return {
        "about": about.as_json(),
        "steps": records.steps.tolist(),
        "times": array(records.times),
        "columns": list(records.columns),
        "values": array(records.values.T),
        "kernel_steps": sorted(records.frames),
        "eigenvalues": array(records.eigenvalues.T),
        "shares": array(records.shares.T),
        "densities": [
            {
                "step": density.step,
                "weight": density.weight,
                "field": density.field,
                "low": density.low,
                "high": density.high,
                "heights": array(density.heights),
            }
            for density in records.densities
        ],
    }
