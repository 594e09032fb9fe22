"""Every function, method and dataclass of a package is checked, whatever decorates it; other packages are left alone."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import jaxtyping
import pytest
import torch

from tests.checked_imports import EVERY, FIRST, check_imports_of

MODULE = '''"""A docstring."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

import bystander

if TYPE_CHECKING:
    from nowhere import Unknown

def scaled(x: Float[Tensor, " row"], y: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    return x * y

def shortened(x: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    return x[1:]

def unknown(x: Unknown, y: int) -> None: ...

try:
    def outer(x):
        def inner(x: int) -> int:
            return x
        return inner(x)
finally:
    pass

@dataclass(frozen=True)
class Data:
    number: int

    def method(self, x: int) -> None: ...

    @classmethod
    def of_class(cls, x: int) -> None: ...

    @staticmethod
    def of_none(x: int) -> None: ...

    @property
    def wrong(self) -> str:
        return self.number

@cache
def cached(x: int) -> int:
    return x

@contextmanager
def context(x: int):
    yield x
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "some_package").mkdir()
    (tmp_path / "some_package" / "__init__.py").write_text("")
    (tmp_path / "some_package" / "inside.py").write_text(MODULE)
    (tmp_path / "bystander.py").write_text("def free(x: int) -> int:\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    check_imports_of("some_package")
    yield importlib.import_module("some_package.inside")
    for name in ("some_package.inside", "some_package", "bystander"):
        del sys.modules[name]


def test_all_that_has_annotations_is_checked(module: ModuleType) -> None:
    data = module.Data(1)
    two, three = torch.ones(2), torch.ones(3)
    assert torch.equal(module.scaled(two, two), two)
    assert module.outer(1) == module.cached(1) == 1
    for call in (
        lambda: module.scaled(two, three),
        lambda: module.scaled(two, two.int()),
        lambda: module.shortened(two),
        lambda: module.unknown(None, "y"),
        lambda: module.outer("x"),
        lambda: module.Data("x"),
        lambda: data.method("x"),
        lambda: data.of_class("x"),
        lambda: data.of_none("x"),
        lambda: data.wrong,
        lambda: module.cached("x"),
        lambda: module.context("x").__enter__(),
    ):
        for _ in range(2):  # at the first call and later
            with pytest.raises(jaxtyping.TypeCheckError):
                call()


def test_names_and_lines_are_those_of_the_file(module: ModuleType) -> None:
    assert (module.scaled.__name__, module.Data.method.__qualname__) == ("scaled", "Data.method")
    line = MODULE.splitlines().index('def shortened(x: Float[Tensor, " row"]) -> Float[Tensor, " row"]:') + 1
    assert module.shortened.__wrapped__.__code__.co_firstlineno == line


def test_other_packages_and_their_bytecode_are_left_alone(module: ModuleType, tmp_path: Path) -> None:
    assert module.bystander.free("x") == "x"
    written = {path.name.removesuffix(".pyc").rsplit(".", 1)[-1] for path in tmp_path.glob("some_package/**/*.pyc")}
    assert written == {"checked"}
    assert not [path for path in tmp_path.glob("__pycache__/*") if "checked" in path.name]
    assert list(tmp_path.glob("__pycache__/bystander.*"))


def test_later_calls_are_checked_now_and_then(module: ModuleType) -> None:
    """Also of a function inside of another, which is a new one in each call."""
    for call in (lambda: module.outer(1.5), lambda: module.unknown(None, 1.5)):
        refused = 0
        for _ in range(FIRST + 4 * EVERY):
            try:
                call()
            except jaxtyping.TypeCheckError:
                refused += 1
        assert refused == FIRST + 4
