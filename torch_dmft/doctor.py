"""``torch-dmft doctor``: what is installed, what computes, and what is missing, with the remedy."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, packages_distributions, requires, version

from packaging.requirements import Requirement

from torch_dmft import __version__

_FOR_USERS = ("vision", "sklearn", "lightning", "transformers", "foreign")
"""Extras that whoever uses the package may want; others are for whoever works on it."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        found: what was found.
        remedy: what to do; empty if all is well.
        needed: whether nothing works without it.
    """

    name: str
    found: str
    remedy: str = ""
    needed: bool = False

    def __str__(self) -> str:
        sign = "ok" if not self.remedy else "missing" if self.needed else "-"
        return f"{sign:8}{self.name:28}{self.found}" + (f". Remedy: {self.remedy}" if self.remedy else "")


def findings() -> Iterator[Finding]:
    """Everything that is looked at, what is needed first."""
    yield Finding("torch_dmft", f"{__version__}, {sys.modules[__package__ or ''].__path__[0]}")
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    yield from _packages()
    yield from _devices()
    yield _tab()


def run() -> int:
    """Print what was found; returns the exit status: 1 if something is missing without which nothing works."""
    missing = False
    for finding in findings():
        print(finding, flush=True)
        missing = missing or (finding.needed and bool(finding.remedy))
    return int(missing)


def _packages() -> Iterator[Finding]:
    """What the package requires, and what its extras for users do."""
    extras = {"": "pip install -U torch_dmft"} | {name: f"pip install -U 'torch_dmft[{name}]'" for name in _FOR_USERS}
    every = [Requirement(text) for text in requires("torch_dmft") or ()]
    for extra, remedy in extras.items():
        for one in every:
            if one.name == "torch_dmft" or (one.marker is None) != (extra == ""):
                continue
            if one.marker is not None and not one.marker.evaluate({"extra": extra}):
                continue
            name = one.name if not extra else f"{one.name} [{extra}]"
            found, wrong = _state(one)
            yield Finding(name, found, remedy if wrong else "", needed=not extra)


def _state(requirement: Requirement) -> tuple[str, bool]:
    """The version of a package that is installed and what is wrong with it, and whether anything is."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return "not installed", True
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{found}, not {requirement.specifier}", True
    error = _import_error(requirement.name)
    return (f"{found}, which cannot be imported ({error})", True) if error else (found, False)


def _import_error(distribution: str) -> str:
    """Why a package cannot be imported, in one line; empty if it can."""
    for module, owners in packages_distributions().items():
        if distribution in owners and module.isidentifier() and not module.startswith("_"):
            try:
                import_module(module)
            except Exception as error:
                return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _devices() -> Iterator[Finding]:
    """Where torch computes, and with how much memory."""
    try:
        import torch

        from torch_dmft.core.memory import free_memory
    except ImportError as error:
        yield Finding("torch", f"cannot be imported: {error}", "pip install -U torch", needed=True)
        return
    cpu = torch.device("cpu")
    yield Finding("cpu", f"{torch.get_num_threads()} threads, {free_memory(cpu) / 2**30:.1f} GiB free")
    for index in range(torch.cuda.device_count()):
        free = free_memory(torch.device("cuda", index))
        yield Finding(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {free / 2**30:.1f} GiB free")
    if not torch.cuda.is_available():
        yield Finding("cuda", "none; everything runs on the CPU")


def _tab() -> Finding:
    """Whether TensorBoard knows the DMFT tab."""
    known = {one.name for one in entry_points(group="tensorboard_plugins")}
    found = "known to TensorBoard" if "dmft" in known else "not known to TensorBoard"
    return Finding("DMFT tab", found, "" if "dmft" in known else "pip install -U torch_dmft", needed=True)
