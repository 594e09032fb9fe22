"""Whether one model is wrapped by comparing two widths, undone bit for bit, moves alike at every width, and is predicted."""

from __future__ import annotations

import statistics
import time
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import torch_dmft as dmft
from tests.models.check import seeded
from tests.models.entry import Model
from torch_dmft.core.errors import DMFTError
from torch_dmft.parameterization import coordinate_check
from torch_dmft.parameterization.optimizer import OPTIMIZERS
from torch_dmft.uses.outputs import Runs

SAMPLES, STEPS, SEEDS = 4, 4, 4
RATES = {"sgd": 0.1, "adamw": 0.05}
"""Base learning rates, from which on smaller ones are tried until outputs move little."""
LITTLE = 0.1
"""How far outputs may move, whose targets are one away."""
MEDIAN = 0.1
"""Largest median |exponent| that counts as none."""
LARGE = 0.25
"""The |exponent| of a weight from which on it is looked at."""
CLEAR = 0.03
"""The standard error of a median from which on there are more seeds."""
WIDER = 4
"""What widths are multiplied by to tell what vanishes at large widths."""


def wrapped(entry: Model) -> dict[str, Any]:
    """Whether ``parameterize`` takes the model with a second width, and what became of it after ``undo``.

    Returns:
        ``refused``: the first line of the refusal, or empty; ``undone``: whether all parameters, buffers and plain attributes
        of the modules are what they were, bit for bit, after a step of training; ``roles``: how many weights have which role;
        ``notes``: what the plan says of the model.
    """
    with warnings.catch_warnings(), seeded(0):
        warnings.simplefilter("ignore")
        scale = entry.scales[0] if entry.scales else 1
        model, inputs = entry.build(scale).eval(), _singles(entry.inputs(SAMPLES))
        before = _state(model)
        try:
            plan = dmft.parameterize(model, inputs, wider=lambda: entry.build(2 * scale).eval(), outputs=entry.outputs)
        except DMFTError as error:
            return {"refused": " ".join(str(error).split()), "undone": None, "roles": {}, "notes": []}
        optimizer = torch.optim.SGD(plan.param_groups(1e-3))
        Runs(model, entry.outputs)(inputs).square().mean().backward()
        optimizer.step()
        model.zero_grad()
        moved = _state(model)
        plan.undo()
        roles: dict[str, int] = {}
        for layer in plan.architecture.layers:
            roles[layer.role.value] = roles.get(layer.role.value, 0) + 1
        after = _state(model)
        changed = any(not _same(before[name], moved[name]) for name in before)
        undone = before.keys() == after.keys() and all(_same(before[name], after[name]) for name in before)
        return {"refused": "", "undone": changed and undone, "roles": roles, "notes": list(plan.notes)}


def _state(model: nn.Module) -> dict[str, Any]:
    """Every tensor and number that a model holds, by name; tensors are copied."""
    tensors = {name: tensor.detach().clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    numbers = {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float | str)
    }
    return {**tensors, **numbers}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())
    return bool(one == other)


def coordinate(entry: Model, optimizer: str, seeds: int = SEEDS) -> dict[str, Any]:
    """How the movement of features depends on the width, for one optimizer.

    Returns:
        ``lr``: the base rate; ``exponents`` and ``errors``: for each weight the exponent of its output's change in the width,
        and its standard error from the scatter of the seeds; ``verdicts``: what is no number (did not move, diverged).
    """
    with warnings.catch_warnings(), seeded(0):
        warnings.simplefilter("ignore")
        inputs = _singles(entry.inputs(SAMPLES))
        f = Runs(entry.build(entry.scales[0]).eval(), entry.outputs)(inputs)  # with gradients: it may take some itself
        targets = torch.randn(f.shape).sign()
        lr = _rate(entry, inputs, targets, optimizer)
        check = coordinate_check(
            lambda scale: entry.build(scale).eval(),
            inputs,
            targets,
            widths=entry.scales,
            lr=lr,
            optimizer=optimizer,
            steps=STEPS,
            seeds=seeds,
            outputs=entry.outputs,
        )
    slopes, errors, verdicts = check.exponents, check.exponent_errors, check.verdicts
    still = {name: verdict for name, verdict in verdicts.items() if slopes[name] != slopes[name]}
    return {
        "lr": lr,
        "seeds": seeds,
        "exponents": {name: round(slope, 3) for name, slope in slopes.items() if name not in still},
        "errors": {name: round(error, 3) for name, error in errors.items() if name not in still},
        "still": still,
    }


def _coordinate(entry: Model, optimizer: str) -> dict[str, Any]:
    """With four times the seeds where exponents are not zero and it is not clear that it is not by chance."""
    found = coordinate(entry, optimizer)
    if found["exponents"] and not is_alike(found) and median(found)[1] > CLEAR:
        return coordinate(entry, optimizer, 4 * SEEDS)
    return found


def _rate(entry: Model, inputs: Any, targets: Tensor, optimizer: str) -> float:
    """The largest of some base rates at which outputs of the narrowest model move little in so many steps."""
    rate = RATES[optimizer]
    narrow, wide = entry.scales[:2]
    for _ in range(8):
        model = entry.build(narrow).eval()
        run = Runs(model, entry.outputs)
        plan = dmft.parameterize(model, inputs, wider=lambda: entry.build(wide).eval(), outputs=entry.outputs)
        stepper = OPTIMIZERS[optimizer](plan.param_groups(rate, optimizer=optimizer))
        start = run(inputs).detach()
        for _ in range(STEPS):
            stepper.zero_grad()
            (run(inputs) - start - targets).square().mean().backward()
            stepper.step()
        if float((run(inputs) - start).square().mean().sqrt()) <= LITTLE:
            break
        rate /= 4
    return rate


def median(found: dict[str, Any]) -> tuple[float, float]:
    """The median |exponent| of a model's weights, and its standard error as that of the weight in the middle."""
    middle = sorted(found["exponents"], key=lambda name: abs(found["exponents"][name]))[len(found["exponents"]) // 2]
    return statistics.median(map(abs, found["exponents"].values())), found["errors"][middle]


def worst(found: dict[str, Any]) -> str:
    """The weight with the largest |exponent|."""
    return max(found["exponents"], key=lambda name: abs(found["exponents"][name]))


def stands_out(found: dict[str, Any]) -> list[str]:
    """The weights whose exponent is large, and more than two standard errors above what counts as none."""
    slopes = found["exponents"].items()
    return [name for name, e in slopes if abs(e) > LARGE and abs(e) - 2 * found["errors"][name] > MEDIAN]


def is_alike(found: dict[str, Any]) -> bool:
    """Whether the median |exponent| counts as none."""
    return bool(found.get("exponents")) and median(found)[0] <= MEDIAN


def predicted(entry: Model) -> dict[str, Any]:
    """Which reference predicts the training of the model: the theory's twin, plain wide networks, or none and why.

    Each is run, with so few neurons that it takes a moment.
    """
    from torch_dmft.theory import solvers

    reasons = []
    with warnings.catch_warnings(), seeded(0):
        warnings.simplefilter("ignore")
        inputs = _singles(entry.inputs(SAMPLES))
        model = entry.build(1)
        try:
            plan = dmft.parameterize(model, inputs, wider=lambda: entry.build(2), outputs=entry.outputs)
            targets = torch.zeros_like(Runs(model, entry.outputs)(inputs))
            problem = dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=0.1, steps=2)
        except Exception as error:
            return {"by": "", "why": _first(error)}
        for solver in (solvers.InfiniteWidth(neurons=512), solvers.WideEnsemble(widths=(16, 32), pairs=4)):
            try:
                dmft.solve(problem, solver)
            except Exception as error:
                reasons.append(_first(error))
                continue
            return {"by": type(solver).__name__, "why": "; ".join(reasons)}
    return {"by": "", "why": "; ".join(dict.fromkeys(reasons))}


def scaled(entry: Model) -> dict[str, Any]:
    """The row of a model: ``wrapped``, ``predicted`` and, for each optimizer, ``coordinate``; see there."""
    if entry.fixed:
        return {"fixed": entry.fixed}
    started = time.perf_counter()
    row: dict[str, Any] = {"wrapped": wrapped(entry), "predicted": predicted(entry)}
    row["is_checked"] = bool(entry.scales)
    if not row["wrapped"]["refused"] and entry.scales:
        row |= {optimizer: _coordinate(entry, optimizer) for optimizer in RATES}
    return {**row, "seconds": round(time.perf_counter() - started, 1)}


def is_by_chance(found: dict[str, Any]) -> bool:
    """Whether the median may be none within two standard errors, and no weight stands out."""
    size, error = median(found)
    return size - 2 * error <= MEDIAN and not stands_out(found)


def is_complete(row: dict[str, Any]) -> bool:
    """Whether everything was tried that there is to try."""
    if "fixed" in row or row.get("wrapped", {}).get("refused"):
        return True
    return "wrapped" in row and (not row["is_checked"] or all(optimizer in row for optimizer in RATES))


def wider(entry: Model, row: dict[str, Any]) -> dict[str, Any]:
    """The row with the coordinate check at larger widths, for the optimizers with exponents that are not zero."""
    wide = replace(entry, scales=tuple(WIDER * scale for scale in entry.scales))
    for optimizer in RATES:
        found = row.get(optimizer)
        if found and found["exponents"] and (not is_alike(found) or stands_out(found)) and "wider" not in found:
            row = {**row, optimizer: {**found, "wider": coordinate(wide, optimizer)}}
    return row


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _singles(inputs: Any) -> Any:
    """Inputs in float32, in which models are trained."""
    return tree_map(
        lambda one: one.float() if isinstance(one, Tensor) and one.is_floating_point() else one,
        inputs,
    )
