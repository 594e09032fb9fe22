"""Modules of the package whose functions check the annotations of what they are given and return, shapes included.

``jaxtyping.install_import_hook`` does the same with two costs, which together are a third of the time it takes to collect the
tests: it lets beartype build the checks of every function, of which a run of some tests calls few; and it gives the name of its
own bytecode to that of every library which a module of the package is the first to import, so that those are compiled anew.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Sequence
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from random import Random
from types import CodeType, ModuleType
from typing import Any

from beartype import beartype
from beartype._check.code import codemain
from jaxtyping import jaxtyped

# Which entry of a list is looked at is drawn. The package looks at whether a model draws python's random numbers, and would
# take those of its own checks for the model's.
codemain.getrandbits = Random(0).getrandbits

_DECORATOR = "_checked_"
FIRST, EVERY = 100, 25
"""How many calls of a function are checked, and which of those that follow."""


def check_imports_of(package: str) -> None:
    """Check the annotations in every module of a package that is imported from now on.

    Args:
        package: its name; it must not have been imported before.
    """
    assert package not in sys.modules
    sys.meta_path.insert(0, _Finder(package))


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.split(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Decorates every function and class of a module, and keeps the bytecode of that apart from the ordinary one."""

    def source_to_code(self, data: Any, path: Any, **options: Any) -> Any:  # type: ignore[override]
        tree = ast.parse(data, path)
        _decorate(tree.body)
        return super().source_to_code(tree, path, **options)  # type: ignore[arg-type]

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, _DECORATOR, _checked)
        super().exec_module(module)

    def get_data(self, path: str) -> bytes:
        return super().get_data(_apart(path))

    def set_data(self, path: str, data: Any, **options: Any) -> None:
        super().set_data(_apart(path), data, **options)


def _apart(path: str) -> str:
    return path.removesuffix(".pyc") + ".checked.pyc" if path.endswith(".pyc") else path


def _decorate(statements: Iterable[Any]) -> None:
    """Put the decorator nearest to each function, whose annotations other decorators may hide, and around each class."""
    for statement in statements:
        if isinstance(statement, ast.FunctionDef):
            statement.decorator_list.append(_decorator_at(statement))
        elif isinstance(statement, ast.ClassDef):
            statement.decorator_list.insert(0, _decorator_at(statement))
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            _decorate(getattr(statement, block, ()))


def _decorator_at(statement: ast.stmt) -> ast.Name:
    return ast.copy_location(ast.Name(_DECORATOR, ast.Load()), statement)


def _checked(function_or_class: Any) -> Any:
    """The class, or the function, with checks: of a function its first calls, and one in so many of the later ones.

    Checking takes more time than everything else that the tests do, and what passes a hundred times is seldom wrong later.
    Calls are counted by the code, so that functions inside of others, which are made anew each time, are no exception.
    """
    if isinstance(function_or_class, type):
        return jaxtyped(function_or_class, typechecker=beartype)
    function, checked = function_or_class, None
    _, calls = _CALLS.setdefault(id(function.__code__), (function.__code__, [0]))

    @wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        calls[0] += 1
        if calls[0] > FIRST and calls[0] % EVERY:
            return function(*args, **kwargs)
        if checked is None:  # of functions that no test calls no check is built
            checked = jaxtyped(function, typechecker=beartype)
        return checked(*args, **kwargs)

    return check


_CALLS: dict[int, tuple[CodeType, list[int]]] = {}  # by identity: equal code in two places is counted twice
