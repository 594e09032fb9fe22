"""Wrong values of a parameter, generated from how it is annotated."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

_NUMBER, _TEXT, _TENSOR = {"float", "int"}, {"str", "Literal"}, {"Tensor", "Example"}
_FUNCTION = {"Callable", "Callback", "Factory", "Loss", "Observable", "Schedule", "Selection", "Wider"}
_LIST = {"Example", "Iterable", "Sequence", "list", "tuple"}

POOL: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "None": (lambda: None, {"None"}),
    "True": (lambda: True, {"bool"}),
    "1.5": (lambda: 1.5, {"float", "Real"}),
    "nan": (lambda: math.nan, set()),
    "inf": (lambda: math.inf, set()),
    "-inf": (lambda: -math.inf, set()),
    "1e300": (lambda: 1e300, set()),
    "10**400": (lambda: 10**400, set()),
    "text": (lambda: "no such thing", set()),
    "empty text": (lambda: "", set()),
    "number as text": (lambda: "1", set()),
    "bytes": (lambda: b"1", set()),
    "an object": (object, set()),
    "a list of objects": (lambda: [object(), object()], set()),
    "an empty dictionary": (lambda: {}, {"Mapping", "Roles"}),
    "a class": (lambda: dict, _FUNCTION - {"Loss"}),
    "an array": (lambda: np.ones(4), set()),
    "a tensor": (lambda: torch.linspace(-1, 1, 12).reshape(4, 3), _TENSOR | {"Sequence", "Iterable"}),
    "a sparse tensor": (lambda: torch.eye(4, 3).to_sparse(), set()),
    "a tensor without numbers": (lambda: torch.empty(4, 3, device="meta"), set()),
    "a complex tensor": (lambda: torch.ones(4, 3, dtype=torch.complex64), set()),
    "a tensor of NaN": (lambda: torch.full((4, 3), math.nan), set()),
    "a tensor of one number": (lambda: torch.tensor(1.0), set()),
}
"""Name -> what makes the value, and the annotations that it is right for (in some shape, which other cases try)."""

WHOLE: dict[str, Callable[[], Any]] = {
    "-1": lambda: -1,
    "2**64": lambda: 2**64,
    "1e20": lambda: 1e20,
    "10**20": lambda: 10**20,
}
"""For integers, all of which count something."""

SIGNED: dict[str, Callable[[], Any]] = {"-1.0": lambda: -1.0}
"""For numbers: every one of the package's is a size."""

SIZES = ("nan", "inf", "-inf", "1e300", "10**400", "a tensor of NaN", "a tensor of one number")
TEXTS = ("text", "empty text", "number as text")
FREE_TEXT = {"logdir", "path", "origin", "title", "folder", "output", "data_dir", "predictions", "axis", "log"}
"""Parameters that take any text."""


_ITEMS = (
    *("bytes", "a list of objects", "an empty dictionary", "an array", "a tensor", "a sparse tensor"),
    *("a tensor without numbers", "a complex tensor", "a tensor of NaN", "a tensor of one number"),
)
RIGHT_ALL_THE_SAME = {
    **{(f"Kernel.{name}", "time", "-1"): "the last recorded time" for name in ("matrix", "between", "bound")},
    **{(f"Kernel.{name}", "other", "-1"): "likewise" for name in ("between", "bound")},
    ("figures.kernels", "time", "-1"): "the last common step",
    ("Training", "numbers", "an empty dictionary"): "all of them are 0",
    **{
        ("Training", name, text): "a name of the user's"
        for name in ("optimizer", "scheme", "loss", "doubt")
        for text in TEXTS
    },
    **{("Trajectory", "solver", text): "likewise" for text in TEXTS},
    **{
        (f"Problem.{name}", "outputs", "a tensor of NaN"): "of a network that diverged"
        for name in ("error", "kept_loss", "training_loss")
    },
    ("Probe", "inputs", "a complex tensor"): "a model may take it",
    ("Problem.mlp", "lr", "a tensor of one number"): "a number",
    ("Problem.like", "lr", "a tensor of one number"): "a number",
    ("Training.sgd", "lr", "a tensor of one number"): "a number",
    ("Training.with_numbers", "numbers", "a tensor of one number"): "a number",
    **{("Indexed", "dataset", one): "anything with items and a length" for one in _ITEMS},
    **{("Recorder", "outputs", text): "a key of what the model returns: refused at the first record" for text in TEXTS},
    **{("Projection", "of", text): "likewise" for text in TEXTS},
    **{("Training.at", "parameter", text): "of a parameter that is no exception" for text in TEXTS},
    **{("Training.number", "parameter", text): "likewise" for text in TEXTS},
}
"""What would be wrong elsewhere, by call, parameter and value, and why it is right here."""


def words(annotation: str) -> set[str]:
    """The names in an annotation."""
    return set(re.findall(r"[A-Za-z_]+", annotation))


def wrong_values(name: str, annotation: str, *, of_result: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every value that a parameter must refuse, with its name; of the numbers and words of a result only the type tells."""
    known = words(annotation)
    if not known or known <= {"Any", "object"}:
        return
    for label, (make, right) in POOL.items():
        is_text = label in TEXTS and ((name in FREE_TEXT or of_result) and "str" in known)
        is_size = of_result and label in SIZES and not known.isdisjoint({"float", "Tensor"})
        if not is_text and not is_size and not right & known and not (label == "1.5" and "float" in known):
            yield label, make
    for kind, values in (("int", WHOLE), ("float", SIGNED)):
        if kind in known and not of_result and "Mapping" not in known:
            yield from values.items()


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The annotated parameters of a function or a class, by name."""
    of = inspect.signature(function).parameters.values()
    return {one.name: one for one in of if isinstance(one.annotation, str) and one.name != "self"}
