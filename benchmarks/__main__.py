"""``python -m benchmarks``: run benchmarks, or write their page."""

from __future__ import annotations

import argparse
import json
import sys
import time
from ast import literal_eval
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks import NAMES
from benchmarks.clock import Say, timed
from benchmarks.environment import ROOT, environment
from benchmarks.page import page

RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "benchmarks.md"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = _parser().parse_args(arguments)
    if options.table:
        options.page.write_text(page(options.out))
        print(f"written: {options.page}")
        return
    torch.set_num_threads(1)
    names = options.names or NAMES
    if options.set and len(names) != 1:
        raise SystemExit("--set is for one benchmark; name it.")
    for name in names:
        print(f"written: {measure(name, options.out, quick=options.quick, changes=options.set)}")


def measure(name: str, out: Path, *, quick: bool, changes: Sequence[str] = ()) -> Path:
    """Run one benchmark and write ``<out>/<name>.json``, or ``<out>/quick/<name>.json``."""
    module = import_module(f"benchmarks.{name}")
    settings = _changed(module.QUICK if quick else module.FULL, changes)
    path = (out / "quick" if quick else out) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    where = environment()  # before the load is our own
    result, spent = timed(lambda: module.run(settings, _say(name)))
    found = {
        "benchmark": name,
        "quick": quick,
        "environment": where,
        "settings": asdict(settings),
        "result": result,
        "spent": result.get("spent", spent.json()),  # a run that goes on from a log knows better
    }
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    return path


def _changed(settings: Any, changes: Sequence[str]) -> Any:
    """Settings of which some are others, each given as ``name=value``; values are those of python, or words."""
    known = {field.name for field in fields(settings)}
    given = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in known:
            raise SystemExit(f"--set {change}: the settings are {', '.join(sorted(known))}.")
        is_word = isinstance(getattr(settings, name), str)
        try:
            given[name] = text if is_word else literal_eval(text)
        except (ValueError, SyntaxError):
            raise SystemExit(f"--set {change}: give a value such as {getattr(settings, name)!r}.") from None
    return replace(settings, **given)


def _say(name: str) -> Say:
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{name} {time.perf_counter() - started:5.0f} s] {text}", file=sys.stderr, flush=True)

    return say


def _parser() -> argparse.ArgumentParser:
    lines = [f"  {name:12s}{import_module(f'benchmarks.{name}').__doc__.splitlines()[0]}" for name in NAMES]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure accuracy and speed; results are JSON files with the environment beside them.",
        epilog="benchmarks:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], metavar="NAME", help="which ones (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="tiny settings, in seconds: shows that it runs, not how fast"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=(),
        metavar="NAME=VALUE",
        help="other settings, such as `referee --set count=100 first=2000`",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: benchmarks/results)")
    parser.add_argument("--table", action="store_true", help="run nothing; write the page from the results")
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="the page that --table writes (default: docs/benchmarks.md)"
    )
    return parser


if __name__ == "__main__":
    main()
