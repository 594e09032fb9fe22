"""What a careless user gives to a problem, to a solver and to solve, and a word of what each is told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft.core.errors import DMFTError

INPUTS = torch.linspace(-1, 1, 30).reshape(5, 6)
TARGETS = torch.linspace(-1, 1, 5)
CLASSES = torch.tensor([0, 1, 2, 1, 0])

PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "no hidden layer": ({"depth": 0}, "at least one hidden layer"),
    "half a layer": ({"depth": 1.5}, "depth must be an integer"),
    "one ratio for all": ({"width_ratios": 1.0}, "width_ratios must be a list"),
    "a ratio that is no number": ({"width_ratios": [math.nan]}, "width_ratio must be a finite number > 0"),
    "no gain": ({"gain": 0.0}, "gain must be a finite number > 0"),
    "inputs of zero": ({"inputs": 0 * INPUTS}, "rows that differ"),
    "gain not finite": ({"gain": math.inf}, "gain must be a finite number"),
    "gain of every layer": ({"depth": 2, "gain": [1.0, 1.0]}, "gain must be a finite number"),
    "a negative standard deviation": ({"bias_std": -1.0}, "bias_std >= 0, or None"),
    "biases as a flag": ({"bias_std": True}, "bias_std must be a finite number"),
    "an activation as a function": ({"activation": torch.tanh}, "one of .*tanh"),
    "widths of another depth": ({"depth": 2, "width_ratios": [1.0]}, r"width_ratios=\[2.0, 1.0\]"),
    "last width is the unit": ({"depth": 2, "width_ratios": [1.0, 2.0]}, "relative to the last"),
    "no width": ({"depth": 2, "width_ratios": [0.0, 1.0]}, "positive"),
    "unknown activation": ({"activation": "tan"}, "one of .*tanh"),
    "inputs without features": ({"inputs": INPUTS[:, 0]}, "sample axis"),
    "inputs as a list": ({"inputs": INPUTS.tolist()}, r"torch\.as_tensor"),
    "inputs as an array": ({"inputs": INPUTS.numpy()}, r"torch\.as_tensor"),
    "no inputs": ({"inputs": None}, r"torch\.as_tensor"),
    "a number as inputs": ({"inputs": torch.tensor(1.0)}, "sample axis"),
    "rows without features": ({"inputs": INPUTS[:, :0]}, "at least one feature axis"),
    "no rows": ({"inputs": INPUTS[:0], "targets": TARGETS[:0]}, "one row for each training row"),
    "no rows of classes": ({"inputs": INPUTS[:0], "targets": CLASSES[:0]}, "one row for each training row"),
    "complex inputs": ({"inputs": INPUTS.to(torch.complex64)}, r"inputs\.float"),
    "inputs of half precision": ({"inputs": INPUTS.half()}, "float32 or float64"),
    "inputs whose squares overflow": ({"inputs": 1e20 * INPUTS}, "standardise"),
    "inputs of integers": ({"inputs": torch.ones(5, 6, dtype=torch.int64)}, "float32 or float64"),
    "inputs not finite": ({"inputs": INPUTS.masked_fill(INPUTS > 0.95, math.nan)}, "row 4"),
    "test inputs of another shape": ({"test_inputs": INPUTS[:, :3]}, "shape of training inputs"),
    "test inputs of integers": ({"test_inputs": INPUTS.long()}, "test_inputs must be float32 or float64"),
    "test inputs not finite": ({"test_inputs": INPUTS / 0}, "The test_inputs must be finite"),
    "test inputs as a list": ({"test_inputs": INPUTS.tolist()}, r"torch\.as_tensor"),
    "no targets": ({"targets": None}, r"torch\.as_tensor"),
    "a number as targets": ({"targets": torch.tensor(1.0)}, r"\(train, output\)"),
    "targets without columns": ({"targets": torch.ones(5, 0)}, r"\(train, output\)"),
    "complex targets": ({"targets": TARGETS.to(torch.complex64)}, r"targets\.float"),
    "classes of 32 bits": ({"targets": CLASSES.int()}, r"targets\.long\(\)"),
    "row numbers as classes": ({"targets": CLASSES + 10**9}, r"class numbers 0\.\.65535"),
    "targets not finite": ({"targets": TARGETS.masked_fill(TARGETS > 0.9, math.inf)}, "row 4"),
    "targets of three axes": ({"targets": torch.ones(5, 1, 1)}, r"\(train, output\)"),
    "more targets than inputs": ({"targets": torch.ones(6)}, "6 targets, 5 inputs"),
    "fewer targets than inputs": ({"targets": TARGETS[:3]}, "test_inputs"),
    "one training row": ({"inputs": INPUTS[:1], "targets": torch.ones(1)}, "a test row beside"),
    "a negative class": ({"targets": CLASSES - 1}, r"class numbers 0\.\.1 "),
    "classes of bool": ({"targets": CLASSES > 0}, r"targets\.long\(\)"),
    "gamma0 of zero": ({"gamma0": 0.0}, "StaticNTK"),
    "gamma0 not finite": ({"gamma0": math.inf}, "gamma0 must be a finite number >= 1e-15"),
    "no learning rate": ({"lr": 0.0}, "lr=0.0"),
    "learning rate not finite": ({"lr": math.inf}, "lr=inf"),
    "a schedule that is too short": ({"lr": [0.1, 0.1]}, "one rate >= 0 for every step"),
    "a schedule with a negative rate": ({"lr": [0.1, 0.1, -0.1]}, "one rate >= 0 for every step"),
    "a schedule of zeros": ({"lr": [0.0, 0.0, 0.0]}, "at least one of them > 0"),
    "a schedule by name": ({"lr": "cosine"}, "one rate >= 0 for every step"),
    "rates of two axes": ({"lr": torch.full((3, 1), 0.1)}, "one rate >= 0 for every step"),
    "Nesterov without momentum": ({"nesterov": True}, "momentum=0.9, nesterov=True"),
    "Nesterov with dampening": ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "dampening = 0"),
    "a setting that there is not": ({"beta1": 0.9}, "one of dampening, decoupled, nesterov"),
    "text as gamma0": ({"gamma0": "1"}, "gamma0='1'"),
    "half a step": ({"steps": 1.5}, "steps must be an integer >= 0"),
    "steps not a number": ({"steps": math.nan}, "steps must be an integer >= 0"),
    "momentum not a number": ({"momentum": math.nan}, "momentum=nan"),
    "negative momentum": ({"momentum": -0.1}, "momentum must be a finite number >= 0 and < 1"),
    "decay not finite": ({"weight_decay": math.inf}, "weight_decay=inf"),
    "noise not finite": ({"temperature": math.nan}, "temperature=0.0"),
    "an optimizer as a class": ({"optimizer": torch.optim.SGD}, "one of sgd, adam, adamw"),
    "negative steps": ({"steps": -1}, "steps=-1"),
    "momentum of one": ({"momentum": 1.0}, "momentum=1.0"),
    "negative decay": ({"weight_decay": -0.1}, "weight_decay=-0.1"),
    "too few batches": ({"batches": [torch.tensor([0])]}, "1 batches for 3 steps"),
    "an empty batch": ({"batches": 3 * [torch.tensor([], dtype=torch.int64)]}, "batch 0"),
    "a batch of test rows": (
        {"inputs": INPUTS[:4], "targets": TARGETS[:4], "test_inputs": INPUTS[4:], "batches": 3 * [torch.tensor([4])]},
        r"batch 0: \[4\]",
    ),
    "one batch for all steps": ({"batches": 3}, "batches must be a list"),
    "batches as lists": ({"batches": [[0, 1]] * 3}, "a tensor of integers"),
    "a batch of bytes": ({"batches": 3 * [torch.tensor([0, 1], dtype=torch.uint8)]}, r"torch\.uint8.*integers"),
    "a batch of no axis": ({"batches": 3 * [torch.tensor(0)]}, "a tensor of integers"),
    "a batch as a mask": ({"batches": 3 * [torch.ones(5, dtype=torch.bool)]}, r"nonzero\(\)"),
    "a class as the loss": ({"loss": nn.MSELoss}, r"MSELoss\(\)"),
    "a loss for every row": ({"loss": nn.MSELoss(reduction="none")}, "one finite number"),
    "a loss by name": ({"loss": "mse"}, r"nn\.MSELoss\(\)"),
    "a loss as a number": ({"loss": lambda f, y: 1.0}, "one finite number"),
    "a complex loss": ({"loss": lambda f, y: (f - y).sum() * 1j}, "one finite number"),
    "a loss that ignores outputs": ({"loss": lambda f, y: y.sum()}, r"without detach\(\)"),
    "a loss of other shapes": ({"targets": CLASSES, "loss": nn.MSELoss()}, "The loss must accept"),
    "a loss that multiplies columns": ({"loss": lambda f, y: f @ y}, "The loss must accept"),
    "a loss without gradient at zero": ({"loss": lambda f, y: (0 * f).sqrt().sum()}, "must have a finite gradient"),
    "a loss without value": ({"loss": lambda f, y: (f - y).sum() * math.nan}, "one finite number"),
}

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *[("InfiniteWidth", {"neurons": value}) for value in (15, 0, -1, 100.0, math.nan, "8192", True, None)],
    *[("InfiniteWidth", {"replicas": value}) for value in (0, -1, 1.5, None)],
    *[("InfiniteWidth", {"tolerance": value}) for value in (-1e-3, 1.0, math.nan, "1e-3")],
    *[("InfiniteWidth", {"generator": value}) for value in (0, "seed", torch.Generator)],
    ("GradientIndependence", {"neurons": 0}),
    *[("AlternatingMonteCarlo", {name: 0}) for name in ("neurons", "iterations", "replicas", "stride", "damping")],
    *[("AlternatingMonteCarlo", change) for change in ({"neurons": 7}, {"damping": 1.1}, {"tolerance": 0.0})],
    *[("FiniteWidth", change) for change in ({"width": 0}, {"width": 8.0}, {"replicas": 3}, {"tolerance": -1.0})],
    *[("WideEnsemble", {"widths": value}) for value in ((), (64,), (64, 64), (0, 64), (64, math.nan), 64, "64, 128")],
    *[("WideEnsemble", {"pairs": value}) for value in (3, 0, 4.0)],
    *[("WideEnsemble", {"starts": value}) for value in (-1, 1.5)],
    *[("Perturbation", change) for change in ({"neurons": 0}, {"replicas": 0}, {"generator": 1})],
    *[(name, {"tolerance": value}) for name in ("DeepLinear", "WhitenedLinear") for value in (0.0, -1.0, math.nan)],
    *[("StaticNTK", change) for change in ({"order": 0}, {"time": "both"}, {"time": None})],
]

MODEL = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "a model instead of its plan": (lambda: dmft.Problem.like(MODEL, _probe(), lr=0.1, steps=1), "parameterize"),
    "data instead of a probe": (lambda: dmft.Problem.like(_plan(), INPUTS, lr=0.1, steps=1), "Probe"),
    "half a step of a plan": (lambda: dmft.Problem.like(_plan(), _probe(), lr=0.1, steps=0.5), "integer >= 0"),
    "a loss of a plan by name": (lambda: dmft.Problem.like(_plan(), _probe(), lr=0.1, steps=1, loss="mse"), "MSELoss"),
    "data instead of a problem": (lambda: dmft.solve(INPUTS), r"Problem\.mlp"),
    "the name of a solver": (lambda: dmft.solve(_problem(), "StaticNTK"), r"solvers\.StaticNTK\(\)"),
    **{
        f"record={record}": (lambda record=record: dmft.solve(_problem(), record=record), r"record=range\(")
        for record in ("all", [[0, 1], [2]], True, [0.5], 3.0, {}, torch.tensor(True))
    },
}


def _plan() -> Any:
    return dmft.parameterize(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)), INPUTS)


def _probe() -> dmft.Probe:
    return dmft.Probe(INPUTS, TARGETS)


def _problem() -> dmft.Problem:
    return dmft.Problem.mlp(INPUTS, TARGETS, steps=2)


def _pose(inputs: Tensor, targets: Tensor, **settings: Any) -> dmft.Problem:
    return dmft.Problem.mlp(inputs, targets, **settings)


def mistakes() -> dict[str, tuple[Callable[[], Any], str]]:
    """All of them: what is done, and a pattern of what it must be told."""
    found = dict(CALLS)
    for name, (change, told) in PROBLEMS.items():
        settings = {"inputs": INPUTS, "targets": TARGETS, "steps": 3} | change
        found[name] = (lambda settings=settings: _pose(**settings), told)
    for solver, change in SETTINGS:
        settings = ({"width": 32} if solver == "FiniteWidth" else {}) | change
        make = getattr(dmft.solvers, solver)
        found[f"{solver} {change}"] = (lambda make=make, settings=settings: make(**settings), next(iter(change))[:-1])
    return found


if __name__ == "__main__":
    answers = {}
    for name, (mistake, _) in mistakes().items():
        try:
            mistake()
        except DMFTError as error:
            answers[name] = [type(error).__name__, str(error), error.remedy or ""]
        except Exception as error:
            answers[name] = [type(error).__name__, str(error), ""]
        else:
            answers[name] = ["", "was taken", ""]
    print(json.dumps(answers))
