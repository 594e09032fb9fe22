"""The public names, read from the documentation's reference and examples and from every ``__all__``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from torch_dmft.core.errors import DMFTError, Place

ROOT = Path(__file__).parents[2]
_DIRECTIVE = re.compile(r"^::: ([\w.]+)", re.M)
_IMPORT = re.compile(r"^from (torch_dmft[\w.]*) import ([\w, ]+)", re.M)
_SPACES = {
    "torch_dmft.report.figures": "figures.",
    "torch_dmft.report.dynamics": "dynamics.",
    "torch_dmft.architecture.describe": "architecture.",
    "torch_dmft.integrations.lightning": "integrations.lightning.",
    "torch_dmft.integrations.transformers": "integrations.transformers.",
}
"""Modules whose names need theirs before them, as others have the same."""
_OPERATORS = {"__call__", "__getitem__", "__matmul__"}


def documented() -> set[str]:
    """Full names in the documentation: what its reference lists, and what its examples import."""
    names: set[str] = set()
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        names |= set(_DIRECTIVE.findall(text))
        for module, imported in _IMPORT.findall(text):
            names |= {f"{module}.{name.split(' as ')[0].strip()}" for name in imported.split(",")}
    return names


def exported() -> set[str]:
    """Full names in the ``__all__`` of the package and of its rooms."""
    rooms = [".".join(init.parent.relative_to(ROOT).parts) for init in (ROOT / "torch_dmft").rglob("__init__.py")]
    return {f"{room}.{name}" for room in rooms for name in getattr(import_module(room), "__all__", ())}


def public() -> dict[str, Callable[..., Any]]:
    """Every public function, class and method that takes anything: name -> itself."""
    found: dict[str, Callable[..., Any]] = {}
    for full in sorted(documented() | exported()):
        found.update(_callables(_resolved(full)))
    return found


def _resolved(full: str) -> Any:
    room, _, name = full.rpartition(".")
    above = import_module(room)
    return getattr(above, name) if hasattr(above, name) else import_module(full)


def _callables(thing: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """What can be called of a module, a class or a function of the package."""
    if isinstance(thing, ModuleType):
        for value in vars(thing).values():
            own = getattr(value, "__module__", None) == thing.__name__ and callable(value)
            if own and not value.__name__.startswith("_"):
                yield from _callables(value)
    elif str(getattr(thing, "__module__", "")).startswith("torch_dmft"):
        if thing is Place or (inspect.isclass(thing) and issubclass(thing, DMFTError)):
            return  # the package raises errors, and users catch them
        name = _SPACES.get(thing.__module__, "") + thing.__qualname__
        members = _methods(thing) if inspect.isclass(thing) else {}
        for label, function in {name: thing, **{f"{name}.{each}": method for each, method in members.items()}}.items():
            if set(inspect.signature(function).parameters) - {"self", "cls"}:
                yield label, function


def _methods(thing: type) -> dict[str, Callable[..., Any]]:
    """The public methods of a class, those of its bases in the package among them."""
    found: dict[str, Callable[..., Any]] = {}
    for base in reversed(thing.__mro__):
        if not base.__module__.startswith("torch_dmft"):
            continue
        for name, member in vars(base).items():
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if inspect.isfunction(function) and (not name.startswith("_") or name in _OPERATORS):
                found[name] = function
    return found
