"""Subject: the network under measurement, with the plan that scales it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from torch_dmft.architecture import Architecture, Wrapper, describe
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError
from torch_dmft.measurement.passes import look_at
from torch_dmft.parameterization import Plan, parameter_rules


@dataclass(frozen=True)
class Subject:
    """A network under measurement.

    Attributes:
        plan: the model in which the paths and parameter names of its architecture are found, and its scaling.
        run: the module that maps inputs to the recorded outputs; ``plan.model`` itself, or a wrapper around it.
        frozen: names of parameters that are not trained, beside those with ``requires_grad=False``.
        is_watched: whether the architecture is what was seen of one pass, so that the network is measured by watching it.
    """

    plan: Plan
    run: nn.Module
    frozen: frozenset[str] = frozenset()
    is_watched: bool = False

    @property
    def model(self) -> nn.Module:
        """The model of the plan."""
        return self.plan.model

    @property
    def architecture(self) -> Architecture:
        """What the model is made of."""
        return self.plan.architecture

    @property
    def gamma0(self) -> float:
        """Effective richness; 1/sqrt(N) for a model in the standard parameterization."""
        return self.plan.gamma0

    @property
    def width(self) -> int:
        """N, the fan-in of the readout."""
        return self.plan.width

    @cached_property
    def _multipliers(self) -> dict[str, float]:
        return self.plan.multipliers

    @property
    def rates(self) -> dict[str, float]:
        """Learning rates of all parameters per unit of eta; 0 if frozen."""
        return {rule.name: self.rate(rule.name) for rule in self.plan.rules}

    def rate(self, name: str) -> float:
        """Learning rate of a parameter per unit of eta; 0 if it is frozen."""
        trained = self.model.get_parameter(name).requires_grad and name not in self.frozen
        return self._multipliers[name] if trained else 0.0


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
                "The module to run must hold the plan's model, or its layers are not seen.",
                got=type(run).__name__,
                remedy="pass plan.model or a wrapper around it, such as centered(plan.model)",
            )
        return Subject(plan, run)
    model = plan_or_model if run is None else run
    inner = model
    while isinstance(inner, Wrapper):
        inner = inner.model
    try:
        architecture, is_watched = describe(inner, inputs), False
    except UnsupportedModelError:
        architecture, is_watched = look_at(inner, model, inputs), True
    rules = parameter_rules(architecture, inner, scheme="standard")
    plan = Plan(inner, architecture, rules, scheme="standard", gamma0=architecture.width**-0.5)
    return Subject(plan, model, is_watched=is_watched)
