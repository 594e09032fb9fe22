"""docs/scale.md: what predictions of common sizes cost, by the solvers' own estimates.

``python -m benchmarks.scale`` writes the page; nothing is measured, so it takes a second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from benchmarks.environment import ROOT
from benchmarks.markdown import percent, reflow, table
from torch_dmft import Problem, solvers
from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.theory import Solver
from torch_dmft.theory.cost import Cost

PAGE = ROOT / "docs" / "scale.md"
DEPTH, INPUTS, RECORDS = 3, 64, 20


@dataclass(frozen=True)
class Size:
    """A question to the theory.

    Attributes:
        samples: P, rows that are trained on.
        outputs: C.
        steps: T.
        activation: of all hidden layers.
        batch: rows of a step; None for all.
        probe: rows on which kernels are kept; None for all.
    """

    samples: int
    outputs: int
    steps: int
    activation: str
    batch: int | None = None
    probe: int | None = None

    def problem(self) -> Problem:
        """A chain of three hidden layers with 64 Gaussian inputs and random signs."""
        generator = torch.Generator().manual_seed(0)  # estimates look at the data
        inputs = torch.randn(self.samples, INPUTS, generator=generator)
        targets = torch.sign(torch.randn(self.samples, self.outputs, generator=generator))
        batches = None if self.batch is None else [torch.arange(self.batch)] * self.steps
        posed = Problem.mlp(
            inputs, targets, depth=DEPTH, activation=self.activation, steps=self.steps, lr=0.1, batches=batches
        )
        return posed if self.probe is None else replace(posed, probe=torch.arange(self.probe))


FULL_BATCH = [
    *(Size(samples, 1, 100, kind) for samples in (16, 64, 256) for kind in ("tanh", "relu")),
    Size(64, 1, 1000, "tanh"),
    Size(64, 1, 1000, "relu"),
    Size(16, 10, 100, "tanh"),
    Size(16, 10, 100, "relu"),
    Size(64, 10, 100, "tanh"),
    Size(64, 10, 100, "relu"),
    Size(1000, 1, 100, "tanh"),
]
MINIBATCHES = [
    Size(1000, 1, 300, "tanh", batch=32, probe=32),
    Size(1000, 1, 300, "relu", batch=32, probe=32),
    Size(1000, 10, 300, "relu", batch=64, probe=32),
    Size(1000, 10, 3000, "relu", batch=64, probe=32),
]
SOLVERS = {
    "8192 neurons": solvers.InfiniteWidth(8192),
    "2048 neurons": solvers.InfiniteWidth(2048),
    "networks": solvers.WideEnsemble(),
}

HEAD = f"""\
# What it costs

<!-- Written by `python -m benchmarks.scale`; edit benchmarks/scale.py, not this page. -->

Before a solver begins it estimates memory, time and the sampling error of its worst kernel. This page lists such
**estimates**, not measurements, for chains of {DEPTH} hidden layers with {INPUTS} inputs, of which {RECORDS + 1} steps are
recorded. P is the number of rows, C that of outputs. Memory is meant as an upper bound, time as right within a factor of
three. Time is that of one core of a current CPU; a second core at most halves it, and does so only in the larger rows.

Ask for your own problem, which takes no time:

```python
import torch

import torch_dmft as dmft

inputs, targets = torch.randn(64, 20), torch.randn(64, 1)
problem = dmft.Problem.mlp(inputs, targets, depth=3, activation="relu", lr=0.1, steps=100)
cost = dmft.solvers.InfiniteWidth(neurons=2048).estimate(problem, range(0, 101, 5))
print(cost)
print(cost.memory / 2**30, cost.seconds / 60, cost.error, cost.saturated)
```
"""

KEY = """\
Each cell has **minutes · GiB · error**; the columns are `InfiniteWidth(8192)`, `InfiniteWidth(2048)` and `WideEnsemble()`.
A dash stands where rows and their gradients need more directions than there are neurons, P (1 + C) > S / 4.
"""

READ = """\
`solve(problem)` without a solver [chooses](theory.md#how-solve-chooses) by these numbers.
`solve` refuses what does not fit in memory, and names the largest P, C, steps or neurons that do.

**S** marks a twin that meets about as many [directions](glossary.md#direction) as it has neurons. From then on it is an
ordinary network of that width, and what a finite width does, of order 1/neurons, is in its answer and in no error bar.
`WideEnsemble` extrapolates several widths to the limit.

## What to do when it is too much

- **A smaller probe.** Kernels are kept of the probe only: memory of the answer goes with the square of its rows times classes,
  see [batches](batches.md).
- **Fewer recorded steps**: `Recorder(..., every=...)` or `schedule=dmft.log_spaced(...)`, and
  `solve(..., record=measured.steps)`.
- **Fewer neurons**: the error grows like 1/√neurons, and time falls in proportion.
- **Strides**: `InfiniteWidth(strides=True)` for [smooth chains in full batches](theory.md#strides) takes fewer passes,
  18 to 29 for 100 steps and 23 to 34 for 500 where it was measured, which the estimates above leave out.
- **Networks**: where the twin is marked S, `WideEnsemble` with smaller widths.
"""


def cell(cost: Cost) -> str:
    """Minutes, GiB and error."""
    mark = " **S**" if cost.saturated else ""
    return f"{_short(cost.seconds / 60)} · {_short(cost.memory / 2**30)} · {percent(cost.error or 0.0)}{mark}"


def answered(solver: Solver, problem: Problem, record: range) -> str:
    """A cell; a dash where the solver refuses the problem."""
    try:
        return cell(solver.estimate(problem, record))
    except UnsupportedProblemError:
        return "–"


def rows(sizes: list[Size]) -> list[list[object]]:
    """A row for each size, a cell for each solver."""
    found: list[list[object]] = []
    for size in sizes:
        problem = size.problem()
        record = range(0, size.steps + 1, size.steps // RECORDS)
        costs = [answered(solver, problem, record) for solver in SOLVERS.values()]
        start = [size.activation, size.samples, size.outputs, size.steps]
        found.append([*start, *([] if size.batch is None else [size.batch, size.probe]), *costs])
    return found


def page() -> str:
    """The whole page."""
    names = ["activation", "P", "C", "steps"]
    text, code = HEAD.split("\n```python\n")
    full = table([*names, *SOLVERS], rows(FULL_BATCH))
    small = table([*names, "batch", "probe", *SOLVERS], rows(MINIBATCHES))
    tables = f"## Full batches\n\n{KEY}\n{full}\n\n## Minibatches\n\n{small}\n\n## How to read it\n\n{READ}"
    return f"{reflow(text)}\n```python\n{code}\n{_lists(tables)}"


def _short(value: float) -> str:
    """Two significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _lists(text: str) -> str:
    """Reflowed, but for lists."""
    start = text.index("\n- **")
    return f"{reflow(text[:start])}{text[start:]}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
