"""A comparison for people: figures, TensorBoard logs."""

from torch_dmft.report import figures, tensorboard
from torch_dmft.report.check import write_check
from torch_dmft.report.html import write_html
from torch_dmft.report.live import LiveComparison, LiveScalars
from torch_dmft.report.sheet import write_sheet
from torch_dmft.report.tensorboard import write_comparison

__all__ = [
    "LiveComparison",
    "LiveScalars",
    "figures",
    "tensorboard",
    "write_check",
    "write_comparison",
    "write_html",
    "write_sheet",
]
