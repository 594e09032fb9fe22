"""Sharing: independent replicas of one method, divided among processes and kept in a folder as they are finished."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from torch_dmft.core.code import code_of
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.ranks import Ranks
from torch_dmft.core.replacing import writing
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.problem import Problem
from torch_dmft.version import __version__

_T = TypeVar("_T")

_DIGITS = 16


@dataclass(frozen=True, eq=False)
class Sharing:
    """Who computes the replicas of a method, and where finished ones are kept.

    Replica r is drawn from a generator of its own, so that it is the same whoever computes it: of those that are missing in the
    folder, process r mod R takes every R-th.

    Attributes:
        ranks: the processes.
        log: folder of finished replicas; None to keep none. Each process looks into its own, which may be the same.
    """

    ranks: Ranks
    log: Path | None = None

    def steps(self, steps: Iterable[_T]) -> Iterable[_T]:
        """The steps of a replica, which end early where another process fails."""
        return self.ranks.watched(steps) if self.ranks.size > 1 else steps

    def runs(
        self,
        problem: Problem,
        generators: Sequence[torch.Generator],
        trained: Callable[[int, torch.Generator], Trajectory],
        facts: Sequence[Any],
    ) -> list[Trajectory]:
        """All replicas, in order, in every process.

        Args:
            problem: what is solved; replicas are where its data are.
            generators: of every replica.
            trained: computes one, from its number and its generator.
            facts: all that replicas depend on beside the problem and the generator.

        Raises:
            InvalidInputError: if processes pose different problems.
        """
        if self.ranks.size == 1 and self.log is None:
            return [trained(number, own) for number, own in enumerate(generators)]
        key = fingerprint(problem, facts)
        names = [f"{key}-{own.initial_seed():x}.npz" for own in generators]
        if len({tuple(one) for one in self.ranks.gathered(names)}) > 1:
            raise InvalidInputError(
                "Every process must pose the same problem to the same solver.",
                got="data, settings or generators that differ",
                remedy="data from one file, or drawn from a generator with one seed everywhere",
            )
        mine = {number: self._kept(name) for number, name in enumerate(names)}
        there = self.ranks.gathered([number for number, path in mine.items() if path is not None])
        owners = {number: rank for rank in reversed(range(self.ranks.size)) for number in there[rank]}
        missing = [number for number in range(len(names)) if number not in owners]
        owners |= {number: place % self.ranks.size for place, number in enumerate(missing)}

        def own() -> dict[int, Trajectory]:
            runs = {}
            for number in (number for number, rank in owners.items() if rank == self.ranks.rank):
                path = mine[number]
                runs[number] = trained(number, generators[number]) if path is None else Trajectory.load(path)
                if path is None:
                    self._keep(runs[number], names[number])
            return runs

        done = self.ranks.agree(own)
        every = []
        for number in range(len(names)):
            run = done.pop(number).to("cpu") if number in done else None
            received = self.ranks.shared(run, owners[number])
            assert received is not None  # its owner had it
            every.append(received.to(problem.device))
        return every

    def _kept(self, name: str) -> Path | None:
        """The file of a replica, if it is finished."""
        return self.log / name if self.log is not None and (self.log / name).exists() else None

    def _keep(self, run: Trajectory, name: str) -> None:
        if self.log is not None:
            with writing(self.log):
                self.log.mkdir(parents=True, exist_ok=True)
            run.save(self.log / name)


def fingerprint(problem: Problem, facts: Sequence[Any]) -> str:
    """A name for all that decides a replica: two problems have one name only if they are the same, bit by bit.

    Of a model, and of the function of what it returns that is f, this is the code as well, see ``code_of``.

    Args:
        problem: the problem.
        facts: settings of the method.
    """
    network = problem.network
    plan = network.plan  # what keeps its own start begins with the run's numbers
    model = None if plan is None else (code_of(plan.model), plan.rules, plan.depth, plan.model.state_dict())
    selection = None if network.selection is None else code_of(network.selection)
    parts: list[Any] = [
        __version__,
        torch.__version__,
        problem.inputs,
        problem.targets,
        problem.training,
        problem.probe,
    ]
    parts += [
        str(problem.dtype),
        problem.device.type,
        network.chain,
        network.paths,
        model,
        selection,
        network.batch_norm,
        *facts,
    ]
    digest = hashlib.sha256()
    _add(digest, parts)
    return digest.hexdigest()[:_DIGITS]


def _add(digest: Any, value: Any) -> None:
    """Add a value to a digest, with the number of its parts, so that no two values add the same."""
    if isinstance(value, Tensor):
        tensor = value.detach().to("cpu").contiguous()
        digest.update(f"tensor {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)};".encode())
        for name in sorted(value, key=str):
            _add(digest, str(name))
            _add(digest, value[name])
    elif is_dataclass(value) and not isinstance(value, type):
        digest.update(f"{type(value).__name__};".encode())
        for field in fields(value):
            _add(digest, getattr(value, field.name))
    elif isinstance(value, str) or not isinstance(value, Iterable):
        text = repr(value).encode()
        digest.update(f"{type(value).__name__} {len(text)};".encode())
        digest.update(text)
    else:
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else list(value)
        digest.update(f"list {len(items)};".encode())
        for item in items:
            _add(digest, item)
