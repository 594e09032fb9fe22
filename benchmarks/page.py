"""docs/benchmarks.md, written from the results; no figure in it is typed by hand."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import NAMES
from benchmarks.markdown import reflow

HEAD = """\
# Benchmarks

<!-- Written by `python -m benchmarks --table`; edit benchmarks/, not this page. -->

`./dev bench` runs them all and `./dev bench --table` writes this page from what they found. Times are CPU seconds of one
thread unless a line says otherwise; every ratio is between two methods in the same run on the same machine.
"""


def page(results: Path) -> str:
    """The whole page, from the JSON files in a folder."""
    parts = [HEAD]
    for name in NAMES:
        module = import_module(f"benchmarks.{name}")
        parts.append(f"## {module.__doc__.splitlines()[0].rstrip('.')}\n")
        path = results / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text())
            settings = type(module.FULL)(**found["settings"])
            parts.append(module.report(settings, found["result"]) + "\n")
            parts.append(_where(found["environment"], found["spent"]) + "\n")
        else:
            parts.append(f"Not measured yet: `./dev bench {name}`.\n")
    return reflow("\n".join(parts))


def _where(environment: dict[str, Any], spent: dict[str, float]) -> str:
    return (
        f"*{environment['date']}, commit {environment['commit']}, Python {environment['python']}, "
        f"torch {environment['torch']}, {environment['cpu']}, "
        f"{environment['cores']} cores, load {environment['load']:g} at the start; "
        f"this benchmark took {spent['wall'] / 60:.1f} minutes.*"
    )
