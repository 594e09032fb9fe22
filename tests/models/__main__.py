"""``python -m tests.models``: try every model, keep the results as they come, and write the page of them."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch

from tests.models.check import check, is_right
from tests.models.entry import Model
from tests.models.page import PAGE, RESULTS, page, versions
from tests.models.wrap import is_complete, scaled, wider
from tests.vision import make_importable

LIBRARIES = {"by hand": "handmade", "torchvision": "vision", "timm": "vision", "transformers": "language"}
SECONDS = 480
"""The longest that one model may take."""


def models() -> list[Model]:
    """Every model of the table."""
    make_importable()
    found = [
        model for room in dict.fromkeys(LIBRARIES.values()) for model in import_module(f"tests.models.{room}").MODELS
    ]
    return sorted(found, key=lambda model: list(LIBRARIES).index(model.library))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.models", description=__doc__)
    parser.add_argument("names", nargs="*", help="which models (default: those that are not right yet)")
    parser.add_argument("--again", action="store_true", help="all models")
    parser.add_argument("--only", choices=("measured", "scaled", "wider"), help="measuring; wrapping; wider networks")
    parser.add_argument(
        "--part", default="1/1", help="of several processes, which one: 1/2, 2/2; each keeps a file of its own"
    )
    parser.add_argument("--table", action="store_true", help="try nothing; merge the files and write the page")
    options = parser.parse_args(arguments)
    part, parts = map(int, options.part.split("/"))
    if options.table:
        _merge()
        PAGE.write_text(page(json.loads(RESULTS.read_text())))
        print(f"written: {PAGE}")
        return
    torch.set_num_threads(1)
    path = RESULTS if parts == 1 else RESULTS.with_suffix(f".{part}.json")
    known = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else {}
    rows: dict[str, Any] = dict(known) if parts == 1 else {}
    for number, entry in enumerate(models()):
        key = f"{entry.library}: {entry.name}"
        row = dict(known.get(key, {}))
        is_done = is_right(row) and is_complete(row.get("scaled", {}))
        wanted = entry.name in options.names if options.names else options.again or not is_done
        if not wanted or number % parts != part - 1:
            continue
        if options.only == "wider":
            again = tried(partial(wider, row=row.get("scaled", {})), entry)
            row["scaled"] = row["scaled"] if "failed" in again else again
        elif options.only != "scaled":
            row = {**tried(check, entry), **({"scaled": row["scaled"]} if "scaled" in row else {})}
        if options.only in (None, "scaled"):
            row["scaled"] = tried(scaled, entry)
        rows[key] = row
        print(f"{key:60s} {'right' if is_right(row) else 'NOT RIGHT':10s} {row}", file=sys.stderr, flush=True)
        path.write_text(json.dumps({"versions": versions(), "models": rows}, indent=1) + "\n")


def tried(try_it: Callable[[Model], dict[str, Any]], entry: Model) -> dict[str, Any]:
    """What came of trying one model, whatever happens."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        return try_it(entry)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:400]}
    finally:
        signal.alarm(0)


def _merge() -> None:
    """Bring the files of several processes into one."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"versions": versions(), "models": {}}
    for path in sorted(RESULTS.parent.glob("results.*.json")):
        found["models"] |= json.loads(path.read_text())["models"]
        path.unlink()
    order = [f"{entry.library}: {entry.name}" for entry in models()]
    found["models"] = {key: found["models"][key] for key in order if key in found["models"]}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
