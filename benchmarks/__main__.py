"""``python -m benchmarks``: run benchmarks, or write their page."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

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
    for name in options.names or NAMES:
        print(f"written: {measure(name, options.out, quick=options.quick)}")


def measure(name: str, out: Path, *, quick: bool) -> Path:
    """Run one benchmark and write ``<out>/<name>.json``, or ``<out>/quick/<name>.json``."""
    module = import_module(f"benchmarks.{name}")
    settings = module.QUICK if quick else module.FULL
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
        "spent": spent.json(),
    }
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    return path


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
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: benchmarks/results)")
    parser.add_argument("--table", action="store_true", help="run nothing; write the page from the results")
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="the page that --table writes (default: docs/benchmarks.md)"
    )
    return parser


if __name__ == "__main__":
    main()
