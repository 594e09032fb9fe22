"""Runs every case and tells what came of it; in a process of its own, where annotations are not checked by the tests."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import re
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from tests.inputs.calls import Set
from tests.inputs.command import command_cases, right_commands
from tests.inputs.handmade import handmade
from tests.inputs.nouns import RESULTS, every_call
from tests.inputs.public import public
from tests.inputs.uses import right_uses, wrong_uses
from tests.inputs.values import RIGHT_ALL_THE_SAME, parameters, wrong_values
from tests.vision import make_importable
from torch_dmft.core.arguments import _Argument
from torch_dmft.core.errors import DMFTError, UnsupportedModelError

SECONDS, RIGHT = 5.0, 120.0
"""What a wrong call may take, whose refusal takes a millisecond, and what a right one may on a busy machine."""

SLOW = (
    "torch._dynamo",
    "torch_dmft.integrations.lightning",
    "torch_dmft.integrations.transformers",
    "scipy.sparse.linalg",
)
"""What cases import, and takes seconds."""


SOME = ("parameterize", "empirical_ntk", "alignment", "LiveScalars", "Chain")
"""Names that are tried without the check."""


class _Late(BaseException):
    pass


def outcome(case: Callable[[], Any], seconds: float = SECONDS) -> tuple[str, str]:
    """What came of a case: "refused", "without a remedy", "raw", "silent" or "hanging", and in which words."""

    def late(number: int, frame: FrameType | None) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            answer = case()
    except DMFTError as error:
        helps = bool(error.places) if isinstance(error, UnsupportedModelError) else bool(error.got and error.remedy)
        return "refused" if helps else "without a remedy", f"{type(error).__name__}: {error}"
    except _Late:
        return "hanging", f"after {seconds:g} s"
    except BaseException as error:
        return "raw", f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return "silent", f"a {type(answer).__name__}"


def generated(a: Set, only: tuple[str, ...] = ()) -> Iterator[tuple[str, Callable[[], Any]]]:
    """A case for every wrong value of every parameter of every public name, or of some."""
    for name, make in every_call(a).items():
        if only and name not in only:
            continue
        function, right = make()  # for all cases: what refuses a value has done nothing yet
        for parameter, told in parameters(function).items():
            for label, value in wrong_values(parameter, told.annotation, of_result=name in RESULTS):
                if (name, parameter, label) in RIGHT_ALL_THE_SAME:
                    continue

                def case(
                    function: Any = function, right: Any = right, told: inspect.Parameter = told, value: Any = value
                ) -> Any:
                    if told.kind is told.VAR_POSITIONAL:
                        return function(*right.values(), value())
                    return function(**{**right, told.name: value()})

                yield f"{name}({parameter}={label})", case


def right_calls(a: Set) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The calls that the wrong ones are made of; they must go through."""
    for name, make in every_call(a).items():

        def call(make: Any = make) -> Any:
            function, right = make()
            return function(**right)

        yield name, call


def worded(cases: Mapping[str, tuple[Callable[[], Any], str]]) -> dict[str, tuple[str, str]]:
    """What came of cases with a word that the error must have; "misworded" if it has not."""
    found = {}
    for name, (case, pattern) in cases.items():
        what, words = outcome(case)
        found[name] = ("misworded" if what == "refused" and not re.search(pattern, words) else what), words
    return found


@contextlib.contextmanager
def without_the_check() -> Iterator[None]:
    """A version that does not look at annotations."""
    check = _Argument.check
    _Argument.check = lambda self, name, value: None  # type: ignore[method-assign]
    yield
    _Argument.check = check  # type: ignore[method-assign]


def main() -> None:
    """Print the outcomes of all cases, by their kind, as JSON."""
    make_importable()  # of torchvision
    for library in SLOW:  # an import that is interrupted is not made up for
        import_module(library)
    with tempfile.TemporaryDirectory() as folder:
        a = Set(Path(folder))
        kinds = {
            "right": right_calls(a),
            "right commands": right_commands(a),
            "right uses": right_uses(a).items(),
            "generated": generated(a),
        }
        found = {
            kind: {name: outcome(case, RIGHT if kind.startswith("right") else SECONDS) for name, case in cases}
            for kind, cases in kinds.items()
        }
        found["handmade"] = worded({**handmade(a), **wrong_uses(a)})
        found["command"] = worded(command_cases(a))
        found["public"] = dict.fromkeys(public(), ("", ""))
        with without_the_check():
            found["unchecked"] = {name: outcome(case) for name, case in generated(a, SOME)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
