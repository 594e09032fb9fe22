"""Solver: the protocol of every method of the theory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, Protocol, TypeGuard, TypeVar, runtime_checkable

from torch import Tensor

from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import UnsupportedProblemError
from torch_dmft.core.factors import tolerance_of
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.cost import Cost
from torch_dmft.theory.coverage import STAND_IN
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.sharing import Sharing

_T = TypeVar("_T")


@runtime_checkable
class Solver(Protocol):
    """A method: a frozen dataclass of its settings with these three functions."""

    def check(self, problem: Problem) -> None:
        """Refuse, with a reason and a remedy, a problem outside the method's assumptions."""

    def estimate(
        self, problem: Problem, record: Iterable[int] | int | Tensor | None = None, *, two_time: bool | float = False
    ) -> Cost:
        """Tell what solving a problem that ``check`` accepts will cost; ``record`` and ``two_time`` are those of ``solve``."""

    def run(self, problem: Problem, record: Tensor, *, two_time: bool | float, progress: bool) -> Trajectory:
        """Solve the problem; ``record`` is ``(time,)`` sorted steps in 0..problem.steps to keep."""


@runtime_checkable
class Shareable(Solver, Protocol):
    """A method whose replicas several processes can compute, and which can be kept one by one."""

    def run_shared(
        self, problem: Problem, record: Tensor, *, two_time: bool | float, progress: bool, sharing: Sharing
    ) -> Trajectory:
        """Solve the problem as ``run`` does, together with other processes; each returns the same."""


def shareable(solver: Solver) -> TypeGuard[Shareable]:
    """Whether replicas can be shared: not those of a subclass with a ``run`` of its own and another's ``run_shared``."""
    if not isinstance(solver, Shareable):
        return False
    own, shared = (next(one for one in type(solver).__mro__ if name in vars(one)) for name in ("run", "run_shared"))
    return issubclass(shared, own)


def method(solver: type[_T]) -> type[_T]:
    """A method of the package: ``checked``, and refusing by itself what ``solve`` asks ``check`` about, and steps outside.

    So no answer to a problem beyond its assumptions comes from calling ``run`` or ``estimate`` directly.
    """
    for name in {"estimate", "run", "run_shared"} & set(vars(solver)):
        setattr(solver, name, _asking_first(vars(solver)[name]))
    checked(solver)
    return solver


def _asking_first(answer: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(answer)
    def refusing(self: Solver, problem: Problem, record: Any = None, **settings: Any) -> Any:
        self.check(problem)
        two_time = settings.get("two_time", False)
        if answer.__name__ != "estimate" and tolerance_of(two_time) is not None:
            self.estimate(problem, record, two_time=two_time)  # which refuses it where no neurons are sampled
        return answer(self, problem, problem.recorded(record), **settings)

    return refusing


SEES = frozenset({"schedule", "changing numbers", "momentum", "nesterov", "dampening", "decay", "batches"})
"""The settings of SGD that treat all parameters alike; see ``Training.traits``."""


def require_training(problem: Problem, solver: str, covers: frozenset[str], *, remedy: str | None = None) -> None:
    """Refuse a training that a solver does not cover in full.

    Args:
        problem: what is to be solved.
        solver: its name.
        covers: the traits that it covers, beyond plain descent at one rate.
        remedy: who does better where it is SGD without noise; None for the engine.

    Raises:
        UnsupportedProblemError: naming all that it does not, by value.
    """
    traits = problem.training.traits
    beyond = {trait: text for trait, text in traits.items() if trait not in covers}
    if not beyond:
        return
    if "optimizer" in beyond or "maximize" in beyond:
        remedy = "train with torch.optim.SGD, Adam, AdamW or Muon, and descend; measuring goes on with any optimizer"
    elif "other starts" in beyond:
        remedy = f"{STAND_IN}; or assume_gaussian=True for Gaussian weights of their size"
    elif "muon" in beyond or "adam" in beyond:
        remedy = "solvers.InfiniteWidth(), or solvers.WideEnsemble(), a reference from wide networks"
    elif "noise" in beyond:
        remedy = "solvers.AlternatingMonteCarlo() for chains, or solvers.WideEnsemble() for any network"
    elif remedy is None:
        remedy = "solvers.InfiniteWidth(), or solvers.WideEnsemble(), a reference from wide networks"
    raise UnsupportedProblemError(
        f"{solver} does not cover this training.", got=", ".join(beyond.values()), remedy=remedy
    )
