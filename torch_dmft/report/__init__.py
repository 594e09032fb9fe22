"""A comparison for people: tables, figures, TensorBoard logs."""

from torch_dmft.report import figures, table, tensorboard
from torch_dmft.report.tensorboard import LiveScalars, write_comparison

__all__ = ["LiveScalars", "figures", "table", "tensorboard", "write_comparison"]
