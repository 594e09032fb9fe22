"""Subject: the network under measurement and the facts of its scaling that the kernels' definitions need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from torch_dmft.architecture import Architecture, Wrapper, describe
from torch_dmft.core.errors import InvalidInputError

if TYPE_CHECKING:
    from torch_dmft.parameterization import Plan


@dataclass(frozen=True)
class Subject:
    """A network under measurement.

    Attributes:
        model: the module in which the paths and parameter names of ``architecture`` and ``multipliers`` are found.
        run: the module that maps inputs to the recorded outputs; ``model`` itself, or a wrapper around it.
        architecture: its weights and vectors.
        gamma0: effective feature-learning strength; 1/sqrt(N) for a model in the standard parameterization.
        scheme: name of the parameterization.
        multipliers: parameter name -> SGD learning rate per unit of the base rate eta.
        adam_multipliers: the same for Adam.
        origin: what legends call it.
    """

    model: nn.Module
    run: nn.Module
    architecture: Architecture
    gamma0: float
    scheme: str
    multipliers: Mapping[str, float]
    adam_multipliers: Mapping[str, float]
    origin: str

    @property
    def width(self) -> int:
        """N, the fan-in of the readout."""
        return self.architecture.width

    def rate(self, name: str) -> float:
        """Learning rate of a parameter per unit of eta; 0 if it is frozen."""
        return self.multipliers[name] if self.model.get_parameter(name).requires_grad else 0.0


def subject_of(plan_or_model: Plan | nn.Module, inputs: Tensor, *, run: nn.Module | None = None) -> Subject:
    """The subject that a plan or a bare model stands for; neither is touched.

    A bare model is taken as it is, in the standard parameterization: every learning-rate multiplier is 1 and
    gamma0 = 1/sqrt(N), so that backward kernels are O(1) in width. Of a centered model f - f_0 the outputs are recorded
    and the layers are those of f.

    Args:
        plan_or_model: what ``parameterize`` or ``infinite_width`` returned, or any module that ``describe``
            understands.
        inputs: ``(sample, ...)`` example inputs, used for a bare model only.
        run: the module whose outputs are recorded, if not the model itself: for example ``centered(plan.model)``.

    Raises:
        InvalidInputError: if ``run`` does not hold the plan's model.
    """
    if not isinstance(plan_or_model, nn.Module):
        plan = plan_or_model
        run = plan.model if run is None else run
        if all(module is not plan.model for module in run.modules()):
            raise InvalidInputError(
                "The module to run does not hold the plan's model, so its layers would not be seen.",
                got=type(run).__name__,
                remedy="pass plan.model or a wrapper around it, such as centered(plan.model)",
            )
        return Subject(
            model=plan.model,
            run=run,
            architecture=plan.architecture,
            gamma0=plan.gamma0,
            scheme=plan.scheme,
            multipliers=plan.multipliers,
            adam_multipliers={rule.name: rule.adam_lr for rule in plan.rules},
            origin=plan.origin,
        )
    model = plan_or_model if run is None else run
    inner = model
    while isinstance(inner, Wrapper):
        inner = inner.model
    architecture = describe(inner, inputs)
    ones = {name: 1.0 for name, _ in inner.named_parameters()}
    origin = f"network (N={architecture.width})"
    return Subject(inner, model, architecture, architecture.width**-0.5, "standard", ones, ones, origin)


def base_rate(subject: Subject, optimizer: Optimizer) -> float:
    """The base learning rate eta of an optimizer whose rates are eta times the plan's multipliers, else NaN.

    Raises:
        InvalidInputError: if the optimizer trains no parameter of the model.
    """
    names = {parameter: name for name, parameter in subject.model.named_parameters()}
    rates = {
        names[parameter]: float(group.get("initial_lr", group["lr"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter in names
    }
    if not rates:
        raise InvalidInputError(
            "The optimizer trains none of the recorded model's parameters.",
            remedy="build it from plan.param_groups(lr) of the same plan",
        )
    is_adam = isinstance(optimizer, Adam | AdamW)  # whose rates never are those of SGD
    for multipliers in (subject.adam_multipliers,) if is_adam else (subject.multipliers, subject.adam_multipliers):
        found = [rate / multipliers[name] for name, rate in rates.items() if multipliers[name] > 0]
        if found and math.isclose(min(found), max(found), rel_tol=1e-9):
            return found[0]
    return math.nan


def optimizer_facts(optimizer: Optimizer) -> dict[str, str | float | bool]:
    """What decides whether theory covers an optimizer's steps: its name, its momentum, and what it does to the gradient."""
    groups = optimizer.param_groups
    facts: dict[str, str | float | bool] = {
        "optimizer": type(optimizer).__name__,
        "momentum": max(float(group.get("momentum", 0.0)) for group in groups),
        "nesterov": any(bool(group.get("nesterov", False)) for group in groups),
        "weight decay": any(bool(group.get("weight_decay", 0.0)) for group in groups),
        "lr scheduler": any("initial_lr" in group for group in groups),  # which every scheduler of torch leaves there
    }
    if any("betas" in group for group in groups):
        facts["betas"] = "; ".join(sorted({", ".join(f"{beta:g}" for beta in group["betas"]) for group in groups}))
        facts["amsgrad"] = any(bool(group.get("amsgrad", False)) for group in groups)
    return facts
