"""The package as a whole: cheap to name, complete, and what it says of itself is true."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import torch_dmft

ROOT = Path(__file__).parents[2]
SEEDS_THE_WORLD = {"manual_seed", "manual_seed_all", "seed_all", "seed", "set_default_dtype", "set_default_device"}
DRAWS = {"rand", "rand_like", "randn", "randn_like", "randint", "randperm", "normal", "normal_", "uniform_"}
DRAWS |= {"bernoulli", "multinomial", "kaiming_normal_", "xavier_normal_", "trunc_normal_"}
SOURCES = sorted((ROOT / "torch_dmft").rglob("*.py"))


def test_naming_the_package_does_not_import_torch():
    code = "import sys, torch_dmft; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", torch_dmft.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(torch_dmft, name)
    assert isinstance(value, str) or value.__doc__


def test_the_version_is_told_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == torch_dmft.__version__


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_random_numbers_come_from_generators_that_the_caller_owns(path):
    offenders = [
        f"line {call.lineno}: {ast.unparse(call)}"
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and (
            call.func.attr in SEEDS_THE_WORLD
            or (call.func.attr in DRAWS and "generator" not in {keyword.arg for keyword in call.keywords})
        )
        and "generator" not in ast.unparse(call.func).lower()  # generator.manual_seed is the way to do it
    ]
    assert not offenders
