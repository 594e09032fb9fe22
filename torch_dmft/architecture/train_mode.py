"""Where the forward pass in train mode is random, or another than the one in evaluation mode."""

from __future__ import annotations

from collections import defaultdict
from itertools import zip_longest

from torch_dmft.architecture.steps import DROPOUTS, Step, Steps
from torch_dmft.core.errors import Place


def differences(evaluated: Steps, passes: list[Steps]) -> tuple[Place, ...]:
    """Every place where train mode is random or does something else, norm layers apart.

    Args:
        evaluated: the steps in evaluation mode.
        passes: those in train mode, of several passes if they may be random.
    """
    places: dict[str, Place] = {}

    def add(path: str, reason: str, fix: str) -> None:
        places.setdefault(path, Place(path or "(model)", reason, fix))

    for trained in passes:
        for path, name in trained.random:
            add(path, f"`{name}` draws random numbers in train mode", "set its probability or size to 0")
        for path, reason in trained.wrong:
            add(path, reason, _ALIKE)
        if trained.wrong or (evaluated.taken, evaluated.outputs) == (trained.taken, trained.outputs):
            continue
        for path in _paths(evaluated, trained, set(places)):
            add(path, "its forward pass in train mode is another than in evaluation mode", _ALIKE)
    if not places and _draws_of_others(evaluated, passes):
        add("", "it draws random numbers of python or numpy in train mode", "draw none in forward")
    return tuple(places.values())


def is_dropout_alone(evaluated: Steps, passes: list[Steps], dropouts: int) -> bool:
    """Whether train mode differs by dropout on features and by nothing else, and evaluation mode is not random.

    Args:
        evaluated: the steps in evaluation mode.
        passes: those in train mode.
        dropouts: how many calls of dropout on features there are.
    """
    if evaluated.random or _draws_of_others(evaluated, passes):
        return False
    return all(
        not trained.wrong
        and {name for _, name in trained.random} <= set(DROPOUTS)
        and trained.dropouts == dropouts
        and (evaluated.taken, evaluated.outputs) == (trained.taken, trained.outputs)
        for trained in passes
    )


def _draws_of_others(evaluated: Steps, passes: list[Steps]) -> bool:
    """Whether every pass in train mode, and none in evaluation mode, draws random numbers of python or numpy.

    What draws in some of them only is no part of the model: a type checker that looks at a call now and then, another thread.
    """
    return all(trained.draws for trained in passes) and not evaluated.draws


_ALIKE = "let forward do the same in both modes"


def _paths(evaluated: Steps, trained: Steps, known: set[str]) -> list[str]:
    """Paths of the modules whose own steps differ; otherwise of the first module whose steps act on other values."""
    own: tuple[dict[str, list[object]], ...] = (defaultdict(list), defaultdict(list))
    for steps, by_path in zip((evaluated, trained), own, strict=True):
        for step in steps.taken:
            by_path[step.path].append((step.name, step.numbers))
    found = [path for path in dict.fromkeys((*own[0], *own[1])) if own[0][path] != own[1][path]]
    if found or known:
        return found
    pairs = zip_longest(evaluated.taken, trained.taken)
    differ = (step for pair in pairs if pair[0] != pair[1] for step in pair if step is not None)
    first: Step | None = next(differ, None)
    return [first.path if first is not None else ""]
