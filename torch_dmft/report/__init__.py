"""A comparison for people: tables, figures, TensorBoard logs."""

from torch_dmft.report import figures, table

__all__ = ["figures", "table"]
