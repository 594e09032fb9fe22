"""Tables as markdown, for TensorBoard's Text page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch_dmft.comparison import Comparison
from torch_dmft.comparison.table import details, summary
from torch_dmft.core.grid import Grid

if TYPE_CHECKING:
    from torch_dmft.parameterization import Plan


def comparison_text(comparison: Comparison) -> dict[str, str]:
    """The report in three texts by name: the verdict with its table, the details, and the facts of every run."""
    return {
        "1 report": summary(comparison).markdown(),
        "2 details": details(comparison).markdown(),
        "3 runs": runs_table(comparison).markdown(),
    }


def runs_table(comparison: Comparison) -> Grid:
    """What is known of every run: a line for each fact, a column for each run."""
    runs = comparison.runs
    facts: dict[str, list[object]] = {
        "optimizer": [run.training.optimizers for run in runs],
        "learning rate": [run.lr for run in runs],
        "steps": [run.training.steps for run in runs],
        "recorded steps": list(comparison.recorded),
        "solver": [run.solver or None for run in runs],
        "width": [run.width for run in runs],
        "gamma0": [run.training.gamma0 for run in runs],
        "scheme": [run.training.scheme for run in runs],
    }
    for key in dict.fromkeys(key for run in runs for key in run.metadata):
        facts[key] = [run.metadata.get(key) for run in runs]
    rows = tuple((name, *map(_shown, values)) for name, values in facts.items())
    return Grid("What is known of the runs", ("",), tuple(("", run.origin) for run in runs), rows)


def plan_table(plan: Plan) -> str:
    """Every parameter with its role, fan-in, initial standard deviation and learning-rate multiplier."""
    rules = plan.rules
    rows = tuple((f"`{r.name}`", str(r.role), *map(_shown, (r.fan_in, r.std, r.lr))) for r in rules)
    numbers = tuple(("", name) for name in ("fan-in", "initial std", "SGD lr / eta"))
    head = f"scheme **{plan.scheme}**, gamma0 = {plan.gamma0:.4g}, width N = {plan.width}"
    return f"{head}\n\n{Grid('', ('parameter', 'role'), numbers, rows).markdown()}"


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
