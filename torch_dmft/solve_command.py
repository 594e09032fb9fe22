"""The command ``torch-dmft solve``: its options, and what it writes; in one process, or in several that torchrun starts."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_dmft.subcommand import add_command, console
from torch_dmft.written import folder

if TYPE_CHECKING:
    from torch_dmft.core.ranks import Ranks
    from torch_dmft.theory import Problem, Solver

_DESCRIPTION = """\
Predict what an infinitely wide network does, and save the trajectory. Under torchrun the replicas of the prediction are divided
among its processes, on one machine or several, with the same numbers as in one.
"""
_EPILOG = """\
  module:function   function() returns a Problem, or (Problem, solver); modules of the current folder are found. With several
                    GPUs it puts its data on the one of its process, os.environ["LOCAL_RANK"]

Finished replicas are kept in OUTPUT.replicas until the answer is written: after a kill the same command goes on from them.

example: torchrun --nproc-per-node 2 --no-python torch-dmft solve train:problem --replicas 8 -o theory.npz
"""
_MADE = "return Problem.mlp(...), or (problem, solvers.InfiniteWidth(...))"


def add(commands: Any, path: Any) -> None:
    """Add the command.

    Args:
        commands: what ``add_subparsers`` returned.
        path: reads the path of a file.
    """
    parser = add_command(
        commands,
        "solve",
        run,
        says="predict an infinitely wide network, with several processes too",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("problem", metavar="module:function", help="poses the problem")
    parser.add_argument("--neurons", type=int, metavar="N", help="sampled neurons of InfiniteWidth (default: 8192)")
    parser.add_argument("--replicas", type=int, metavar="N", help="independent runs of InfiniteWidth (default: 4)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="keep every N-th step (default: %(default)s)")
    parser.add_argument(
        "--two-time",
        nargs="?",
        type=float,
        const=True,
        default=False,
        metavar="TOLERANCE",
        help="keep kernels at pairs of times; to a tolerance, such as 0.01, for long runs",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=path,
        default=Path("theory.npz"),
        metavar="FILE",
        help="the trajectory (default: %(default)s)",
    )


def run(
    problem: str, neurons: int | None, replicas: int | None, every: int, two_time: bool | float, output: Path
) -> int:
    """Solve, print and save; returns the exit status. Of several processes the first one prints and writes."""
    from torch_dmft.core.errors import DMFTError, LostProcessError
    from torch_dmft.core.ranks import ranks

    with ranks(several=int(os.environ.get("WORLD_SIZE", "1")) > 1) as processes:
        try:
            _solve(problem, neurons, replicas, every, two_time, output, processes)
        except DMFTError as error:
            if processes.is_first or isinstance(error, LostProcessError):
                raise
            return 2
    return 0


def _solve(
    name: str,
    neurons: int | None,
    replicas: int | None,
    every: int,
    two_time: bool | float,
    output: Path,
    processes: Ranks,
) -> None:
    from torch_dmft.core.numbers import require_whole
    from torch_dmft.theory import solve
    from torch_dmft.theory.solvers import InfiniteWidth

    kept = output.with_name(f"{output.name}.replicas")

    def posed() -> tuple[Problem, Solver | None]:
        require_whole("every", every, at_least=1)
        problem, solver = _posed(name)
        given: dict[str, Any] = {"neurons": neurons, "replicas": replicas}
        given = {setting: number for setting, number in given.items() if number is not None}
        return problem, InfiniteWidth(**given) if given else solver

    problem, solver = processes.agree(posed)
    processes.agree(lambda: folder(output.parent) if processes.is_first else None)
    answer = solve(
        problem,
        solver,
        record=range(0, problem.steps + 1, every),
        two_time=two_time,
        progress=sys.stderr.isatty(),
        distributed=processes.size > 1,
        log=kept,
    )

    def written() -> None:
        if not processes.is_first:
            return
        answer.save(output)
        shutil.rmtree(kept, ignore_errors=True)
        terminal = console()
        terminal.print(answer)
        terminal.print(f"Written: {output}", soft_wrap=True, highlight=False, markup=False)

    processes.agree(written)


def _posed(name: str) -> tuple[Problem, Solver | None]:
    """What the function that is named returns."""
    from torch_dmft.core.errors import InvalidInputError
    from torch_dmft.core.users_functions import called
    from torch_dmft.referee.setup import named
    from torch_dmft.theory import Problem, Solver

    made = called("problem", named(name, "problem"), remedy=_MADE)
    problem, solver = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(problem, Problem) or not (solver is None or isinstance(solver, Solver)):
        raise InvalidInputError(
            "`problem` must return a Problem, or a Problem and a solver.", got=type(made).__name__, remedy=_MADE
        )
    return problem, solver
