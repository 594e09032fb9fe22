"""Tables as markdown, for TensorBoard's Text page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch_dmft.comparison import Comparison
from torch_dmft.comparison.table import text

if TYPE_CHECKING:
    from torch_dmft.parameterization import Plan


def comparison_text(comparison: Comparison) -> str:
    """The verdict as text, the facts of every run as a table, and the printed comparison as it is."""
    keys = sorted({key for run in comparison.runs for key in run.metadata})
    rows = [[run.origin, *(_shown(run.metadata.get(key)) for key in keys)] for run in comparison.runs]
    printed = "\n".join(f"    {line}" for line in text(comparison).splitlines())
    return f"{comparison.verdict}\n\n{_table(['run', *keys], rows)}\n\n{printed}\n"


def plan_table(plan: Plan) -> str:
    """Every parameter with its role, fan-in, initial standard deviation and learning-rate multiplier."""
    rows = [[f"`{rule.name}`", str(rule.role), *map(_shown, (rule.fan_in, rule.std, rule.lr))] for rule in plan.rules]
    head = f"scheme **{plan.scheme}**, gamma0 = {plan.gamma0:.4g}, width N = {plan.width}"
    return f"{head}\n\n{_table(['parameter', 'role', 'fan-in', 'initial std', 'SGD lr / eta'], rows)}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
