"""Differences: everything in which two trainings differ, by value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_dmft.core.listed import listed
from torch_dmft.core.prints import prints_agree
from torch_dmft.core.series import CLOSE, at_step, first_difference, is_ever

if TYPE_CHECKING:
    from torch_dmft.core.training import Training


def differences(mine: Training, theirs: Training, names: tuple[str, str], horizon: int) -> list[str]:
    """What differs in the first steps; see ``Training.differences``.

    Args:
        mine: a training.
        theirs: another one.
        names: what the two are called.
        horizon: how many steps matter.
    """
    both = mine, theirs
    assumed = {*mine.assumptions, *theirs.assumptions}

    def line(what: str, one: str, other: str) -> str:
        return f"{what}: {names[0]} {one}, {names[1]} {other}"

    found: list[str] = [line(*each) for each in _other_optimizers(mine, theirs)]
    same_optimizers = not found
    if mine.scheme != theirs.scheme and "standard" in (mine.scheme, theirs.scheme):
        found.append(line("parameterization", mine.scheme, theirs.scheme))
    # Runs of one lazy scheme at two widths have two gamma0, as they should.
    by_width = mine.scheme == theirs.scheme != "mean_field"
    if not by_width and not math.isclose(mine.gamma0, theirs.gamma0, rel_tol=CLOSE):
        found.append(line("gamma0", f"{mine.gamma0:g}", f"{theirs.gamma0:g}"))
    if same_optimizers:
        found += [line(*each) for each in _other_numbers(mine, theirs, horizon)]
    if set(mine.frozen) != set(theirs.frozen):
        found.append(line("frozen parameters", _listed(mine.frozen), _listed(theirs.frozen)))
    if "start" not in assumed:
        for name in sorted({*mine.starts, *theirs.starts}):
            one, other = (each.starts.get(name, "Gaussian") for each in both)
            if one != other:
                found.append(line(f"start of {name}", one, other))
    if "loss" not in assumed and not prints_agree(mine.loss_print, theirs.loss_print):
        found.append(line("loss", mine.loss, theirs.loss))
    if not prints_agree(mine.data_print, theirs.data_print):
        rows = [f"{each.data_print[0]:.0f} rows" for each in both]
        found.append("training set: the two have other rows" if rows[0] == rows[1] else line("training set", *rows))
    if (mine.rule, mine.rho) != (theirs.rule, theirs.rho):
        rules = [each.rule.replace("_", " ") + f" with rho {each.rho:g}" * (each.rho > 0) for each in both]
        found.append(line("learning rule", *rules))
    if not math.isclose(mine.temperature, theirs.temperature, rel_tol=CLOSE):
        found.append(line("temperature", f"{mine.temperature:g}", f"{theirs.temperature:g}"))
    if "batches" not in assumed and horizon:
        one, other = (_batches_shown(each, horizon) for each in both)
        step = None
        if mine.batches_known and theirs.batches_known:
            step = _first_other_batch(_rows(mine, theirs), _rows(theirs, mine), horizon)
        if step is not None and one == other:
            found.append(f"batches: the two saw other rows at step {step}")
        elif step is not None or mine.batches_known != theirs.batches_known:
            found.append(line("batches", one, other))
    for name, notes in zip(names, (mine.notes, theirs.notes), strict=True):
        found += [f"{name}: {note}" for note in notes]
    return found


def _other_optimizers(mine: Training, theirs: Training) -> Iterator[tuple[str, str, str]]:
    if mine.optimizers != theirs.optimizers:
        yield "optimizer", mine.optimizers, theirs.optimizers
        return
    frozen = {*mine.frozen, *theirs.frozen}
    for name in sorted({*mine.kinds, *theirs.kinds} - frozen):
        if mine.kind(name) != theirs.kind(name):
            yield f"optimizer of {name}", mine.kind(name), theirs.kind(name)


def _other_numbers(mine: Training, theirs: Training, horizon: int) -> Iterator[tuple[str, str, str]]:
    both = mine, theirs
    exceptions = sorted({*mine.exceptions, *theirs.exceptions})
    for parameter in (None, *exceptions):
        if parameter in mine.frozen or parameter in theirs.frozen:
            continue
        own = [each.exceptions.get(parameter or "", each.numbers) for each in both]
        for name in dict.fromkeys(known for numbers in own for known in numbers):
            one, other = (each.number(name, parameter) for each in both)
            has_momentum = [is_ever(each.number("momentum", parameter)) for each in both]
            if name in ("dampening", "nesterov") and not any(has_momentum):
                continue  # without momentum they mean nothing
            if name == "decoupled" and not all(has_momentum):
                continue  # nor does this
            step = first_difference(one, other, horizon)
            if step is None:
                continue
            what = _TITLES.get(name, name) + ("" if parameter is None else f" of {parameter}")
            if isinstance(one, Tensor) or isinstance(other, Tensor):
                yield f"{what} at step {step}", f"{at_step(one, step):.6g}", f"{at_step(other, step):.6g}"
            else:
                yield what, f"{one:.6g}", f"{other:.6g}"


_TITLES = {"lr": "learning rate", "weight_decay": "weight decay", "decoupled": "weight decay outside of the momentum"}


def _rows(training: Training, other: Training) -> Sequence[Tensor] | None:
    """The rows of every step; None for all rows, unless the other training says what all rows are."""
    count = (training.data_print or other.data_print or (0,))[0]
    if training.batches is None and other.batches is not None and count:
        return [torch.arange(int(count), device="cpu")] * training.steps
    return training.batches


def _batches_shown(training: Training, horizon: int) -> str:
    if not training.batches_known:
        return f"unknown ({training.doubt})" if training.doubt else "unknown"
    if training.batches is None:
        return "all rows"
    return f"of {_listed({str(len(rows)) for rows in training.batches[:horizon]})} rows"


def _listed(names: Any) -> str:
    return listed(sorted(names)) or "none"


def _first_other_batch(mine: Sequence[Tensor] | None, theirs: Sequence[Tensor] | None, horizon: int) -> int | None:
    """The first step in which two trainings saw other rows; None stands for all rows."""
    if mine is None or theirs is None:
        return None if mine is theirs else 0
    for step, (a, b) in enumerate(zip(mine[:horizon], theirs[:horizon], strict=False)):
        if not torch.equal(a.cpu().long().sort().values, b.cpu().long().sort().values):
            return step
    return None
