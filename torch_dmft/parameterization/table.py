"""A plan's rules as a table to read."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO

from rich.console import Console
from rich.table import Table

from torch_dmft.architecture import Role
from torch_dmft.parameterization.rules import ParameterRule

_OWN_INIT = (Role.VECTOR, Role.EMBEDDING)


def as_table(title: str, rules: Iterable[ParameterRule], *, own_init: bool) -> Table:
    """One row for every parameter.

    Args:
        title: the line above.
        rules: the rules.
        own_init: whether weights keep their own init too (scheme "standard").

    Returns:
        The table, to be printed by rich.
    """
    table = Table(title=title, title_justify="left")
    for heading in ("module", "parameter", "role"):
        table.add_column(heading)
    for heading in ("fan-in", "init std", "lr / eta", "Adam lr / eta"):
        table.add_column(heading, justify="right")
    for rule in rules:
        kept = own_init or rule.role in _OWN_INIT
        table.add_row(
            rule.path or "(model)",
            rule.name.rpartition(".")[2],
            str(rule.role),
            str(rule.fan_in),
            f"{rule.std:.4g}" + (" (own)" if kept else ""),
            f"{rule.lr:.4g}" if rule.lr else "frozen",
            f"{rule.adam_lr:.4g}" if rule.lr else "frozen",
        )
    return table


def as_text(table: Table, width: int = 110) -> str:
    """The table as plain text of this many columns."""
    console = Console(file=StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().rstrip()
