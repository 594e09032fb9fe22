"""A comparison as one HTML file: the page of the DMFT tab."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from torch_dmft.comparison import Comparison
from torch_dmft.core.arguments import checked
from torch_dmft.report.events import run_directory
from torch_dmft.report.hparams import Setting
from torch_dmft.report.recorded import write_records
from torch_dmft.report.scalars import run_scalars
from torch_dmft.tab.page import write_page
from torch_dmft.tab.runs import Library

if TYPE_CHECKING:
    from torch_dmft.parameterization import Plan


@checked
def write_html(
    comparison: Comparison,
    path: str | Path,
    plan: Plan | None = None,
    *,
    hparams: Mapping[str, Setting] | None = None,
) -> None:
    """Write a comparison as one page that opens from disk.

    Args:
        comparison: what ``compare`` returned.
        path: of the HTML file; an existing one is replaced.
        plan: the plan of the measured model, to show its table of parameters.
        hparams: further settings that a run does not know of itself.
    """
    with TemporaryDirectory() as folder:
        for run, deviations in zip(comparison.runs, (None, *comparison.deviations), strict=True):
            values = run_scalars(comparison, run, deviations)
            write_records(run_directory(folder, run.origin), comparison, run, values, plan, hparams)
        write_page(Library({"": Path(folder)}), path, title=f"{comparison.measured.origin} · torch_dmft")
