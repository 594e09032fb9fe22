"""The page as one HTML file: its modules, its style, and the answers to every question it can ask."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.replacing import replacing
from torch_dmft.tab import answers
from torch_dmft.tab.runs import Library, Run
from torch_dmft.tab.static_files import static_files

KERNEL_BYTES = 2_500_000
"""Of kernels in one file; at more, evenly spaced steps are kept."""
PAIR_BYTES = 500_000
"""Of two-time kernels; at more, only their means over equal samples."""

_IMPORT = re.compile(r'(from|import) "\.{1,2}/(?:[a-z_]+/)*([A-Za-z_.]+\.js)"')


def write_page(library: Library, path: str | Path, title: str = "torch_dmft") -> None:
    """Write the runs of a library as a page that opens from disk and asks for nothing.

    Args:
        library: where the runs are.
        path: of the HTML file; an existing one is replaced.
        title: of the page.

    Raises:
        InvalidInputError: if there is no run.
        NotWrittenError: if the file system does not take the file.
    """
    runs = library.runs()
    if not runs:
        where = ", ".join(map(str, library.roots.values()))
        raise InvalidInputError(
            "There are no records to show.",
            got=where,
            remedy="a folder written by comparison.write_tensorboard, LiveScalars or torch-dmft demo",
        )
    embedded = {"runs": answers.runs(library)}
    for name, run in runs.items():
        embedded.update(_answers(library, name, run, len(runs)))
    with replacing(path) as file:
        file.write(_html(embedded, title).encode())


def _answers(library: Library, name: str, run: Run, runs: int) -> Iterator[tuple[str, answers.Answer]]:
    """Every question about a run with its answer; a question is its words with bars between."""
    whole = answers.run(library, name)
    about = run.members[0].about
    if about is not None:
        members = len(run.members)
        kept = [set(frames) for member in run.members if (frames := library.records(member).frames)]
        steps = sorted(set.intersection(*kept) or set.union(*kept)) if kept else []
        each = len(about.kernels) * about.triangle * 4 * members * 4 // 3
        steps = _some(steps, max(2, KERNEL_BYTES // runs // max(1, each)))
        for member in whole["members"]:
            if member["about"] is not None:
                member["kernel_steps"] = [step for step in member["kernel_steps"] if step in steps]
        for step in steps:
            for kernel in about.kernels:
                yield f"kernel|{name}|{kernel}|{step}", answers.kernel(library, name, kernel, str(step))
        yield from _pairs(library, name, run, whole, runs)
    yield f"run|{name}", whole


def _pairs(
    library: Library, name: str, run: Run, whole: answers.Answer, runs: int
) -> Iterator[tuple[str, answers.Answer]]:
    """Two-time kernels: their means, and pairs of samples if there is room."""
    about = next((each.about for each in run.members if each.about is not None and each.about.times), None)
    if about is None:
        return
    size = len(about.times) ** 2 * 4 * len(about.two_time_kernels) * about.triangle * len(run.members)
    has_pairs = size * runs <= PAIR_BYTES
    for member in whole["members"]:
        if member["about"] is not None:
            member["about"]["pairs"] = member["about"]["pairs"] and has_pairs
    count = len(about.rows)
    chosen = ["trace", *(f"{i},{j}" for i in range(count) for j in range(count) if has_pairs)]
    for kernel in about.two_time_kernels:
        for samples in chosen:
            yield f"pair|{name}|{kernel}|{samples}", answers.pair(library, name, kernel, samples)


def _some(steps: list[int], most: int) -> list[int]:
    """At most so many, evenly spaced, with both ends."""
    if len(steps) <= most:
        return steps
    return [steps[round(number * (len(steps) - 1) / (most - 1))] for number in range(most)]


def _html(embedded: dict[str, answers.Answer], title: str) -> str:
    """One file. Modules are data, named in an import map, because a page on a disk may not import its neighbours."""
    files = static_files()
    modules = {Path(name).name: files[name].read_text("utf-8") for name in files if name.endswith(".js")}
    # The vendored style first, as in TensorBoard: ours changes it.
    style = "\n".join(files[name].read_text("utf-8") for name in reversed(files) if name.endswith(".css"))
    imports = {f"dmft/{name}": _as_data(_IMPORT.sub(r'\1 "dmft/\2"', text)) for name, text in modules.items()}
    data = json.dumps(embedded, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    heading = title.replace("&", "&amp;").replace("<", "&lt;")
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{heading}</title>
<style>{style}</style>
<script type="importmap">{json.dumps({"imports": imports})}</script>
<script type="application/json" id="answers">{data}</script>
<body><script type="module">import {{ render }} from "dmft/index.js"; render();</script></body>
</html>
"""


def _as_data(text: str) -> str:
    return "data:text/javascript;base64," + base64.b64encode(text.encode()).decode("ascii")
