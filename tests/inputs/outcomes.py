"""Runs every case and tells what came of it; in a process of its own, where annotations are not checked by the tests."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tests.inputs.calls import Set, calls
from tests.inputs.values import RIGHT_ALL_THE_SAME, parameters, wrong_values
from torch_dmft.core.errors import DMFTError

SECONDS = 2.0
"""What a case may take; a refusal takes a millisecond."""

MANY = {"others", "predictions"}
"""Parameters that any number of values is given to, by position."""


class _Late(BaseException):
    pass


def outcome(case: Callable[[], Any]) -> tuple[str, str]:
    """What came of a case: "refused", "raw", "silent" or "hanging", and in which words."""

    def late(number: int, frame: FrameType | None) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            answer = case()
    except DMFTError as error:
        return "refused", f"{type(error).__name__}: {error}"
    except _Late:
        return "hanging", f"after {SECONDS:g} s"
    except BaseException as error:
        return "raw", f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return "silent", f"a {type(answer).__name__}"


def generated(a: Set) -> Iterator[tuple[str, Callable[[], Any]]]:
    """A case for every wrong value of every parameter of every public name."""
    for name, make in calls(a).items():
        function, right = make()
        for parameter, annotation in parameters(function).items():
            for label, value in wrong_values(parameter, annotation):
                if (name, parameter, label) in RIGHT_ALL_THE_SAME:
                    continue

                def case(make: Any = make, parameter: str = parameter, value: Any = value) -> Any:
                    function, right = make()
                    if parameter in MANY:  # *others
                        return function(*right.values(), value())
                    return function(**{**right, parameter: value()})

                yield f"{name}({parameter}={label})", case


if __name__ == "__main__":
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    with tempfile.TemporaryDirectory() as folder:
        a, found, timed = Set(Path(folder)), {}, []
        for name, case in generated(a):
            if only in name:
                started = time.perf_counter()
                found[name] = outcome(case)
                timed.append((time.perf_counter() - started, name))
    for seconds, name in sorted(timed)[-12:]:
        print(f"{seconds:.2f} {name}", file=sys.stderr)
    print(json.dumps(found))
