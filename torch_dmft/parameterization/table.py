"""A plan's rules as a table to read."""

from __future__ import annotations

from collections.abc import Iterable

from torch_dmft.core.grid import Grid
from torch_dmft.parameterization.rules import OWN_INIT, ParameterRule


def as_table(title: str, rules: Iterable[ParameterRule], *, own_init: bool) -> Grid:
    """One row for every parameter.

    Args:
        title: the line above.
        rules: the rules.
        own_init: whether weights keep their own init too (scheme "standard").

    Returns:
        The table, to be printed.
    """
    rows = []
    for rule in rules:
        kept = own_init or rule.role in OWN_INIT
        rows.append(
            (
                rule.path or "(model)",
                rule.name.rpartition(".")[2],
                str(rule.role),
                str(rule.fan_in),
                f"{rule.std:.4g}" + (" (own)" if kept else ""),
                f"{rule.lr:.4g}" if rule.lr else "frozen",
                f"{rule.adam_lr:.4g}" if rule.lr else "frozen",
            )
        )
    numbers = (("", "fan-in"), ("", "init std"), ("", "lr / eta"), ("Adam", "lr / eta"))
    return Grid(title, ("module", "parameter", "role"), numbers, tuple(rows))
