"""Subject: the network under measurement, with the plan that scales it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor, nn

from torch_dmft.architecture import Architecture, Wrapper, describe
from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError
from torch_dmft.core.materialised import require_materialised
from torch_dmft.core.spread import inside, whole
from torch_dmft.measurement.batch_norm import require_choice
from torch_dmft.measurement.wanted import Wanted
from torch_dmft.parameterization import Plan, parameter_rules
from torch_dmft.parameterization.centered import Centered
from torch_dmft.uses.outputs import Example, Runs, Selection
from torch_dmft.uses.passes import look_at


@dataclass(frozen=True)
class Subject:
    """A network under measurement.

    Attributes:
        plan: the model in which the paths and parameter names of its architecture are found, and its scaling.
        run: the module that maps inputs to the recorded outputs; ``plan.model`` itself, or a wrapper around it.
        frozen: names of parameters that are not trained, beside those with ``requires_grad=False``.
        batch_norm: whose statistics BatchNorm is measured with, ``"probe"`` or ``"run"``.
        trained_rows: which of the inputs' rows are trained on, of which the statistics of the probe are taken; None: all.
        kernel_rows: of which of the inputs' rows everything is measured; None: all.
        wanted: what is measured of them.
    """

    plan: Plan
    run: nn.Module
    frozen: frozenset[str] = frozenset()
    batch_norm: str = "probe"
    trained_rows: tuple[int, ...] | None = None
    kernel_rows: tuple[int, ...] | None = None
    wanted: Wanted = field(default_factory=Wanted)

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
    def is_chain(self) -> bool:
        """Whether the network is known to be a plain chain, of which nothing has to be found out."""
        return self.architecture.is_chain and not (isinstance(self.run, Runs) and self.run.selects)

    @property
    def is_centered(self) -> bool:
        """Whether the outputs are those of a model f - f_0."""
        return isinstance(self.run.model if isinstance(self.run, Runs) else self.run, Centered)

    @property
    def is_sampled(self) -> bool:
        """Whether weights are sampled while the network runs, so that only its modules know what they multiply with."""
        return any(getattr(module, "keeps_what_it_reveals", False) for module in self.model.modules())

    @property
    def rates(self) -> dict[str, float]:
        """Learning rates of all parameters per unit of eta; 0 if frozen."""
        return {rule.name: self.rate(rule.name) for rule in self.plan.rules}

    def rate(self, name: str) -> float:
        """Learning rate of a parameter per unit of eta; 0 if it is frozen."""
        trained = self.model.get_parameter(name).requires_grad and name not in self.frozen
        return self._multipliers[name] if trained else 0.0


def subject_of(
    plan_or_model: Plan | nn.Module,
    inputs: Example,
    *,
    run: nn.Module | None = None,
    outputs: Selection | None = None,
    batch_norm: str = "probe",
) -> Subject:
    """The subject that a plan or a bare model stands for; neither is touched.

    A bare model is taken as it is, in the standard parameterization: every learning-rate multiplier is 1 and
    gamma0 = 1/sqrt(N), so that backward kernels are O(1) in width. Of a centered model f - f_0 the outputs are recorded
    and the layers are those of f.

    Args:
        plan_or_model: what ``parameterize`` or ``infinite_width`` returned, or any module.
        inputs: what the model will be run on: ``(sample, ...)``, or a tuple or mapping of the arguments of ``forward``.
        run: the module whose outputs are recorded, if not the model itself: for example ``centered(plan.model)``.
        outputs: which of the model's outputs is f; see ``torch_dmft.uses.outputs.select``.
        batch_norm: whose statistics BatchNorm is measured with, ``"probe"`` or ``"run"``.

    Raises:
        InvalidInputError: if ``run`` does not hold the plan's model, or a bare model fails on the inputs or is on the meta
            device.
    """
    require_choice(batch_norm)
    run = None if run is None else inside(run)
    require_materialised(plan_or_model if isinstance(plan_or_model, nn.Module) else plan_or_model.model)
    if not isinstance(plan_or_model, nn.Module):
        plan = plan_or_model
        run = plan.model if run is None else run
        if all(module is not plan.model for module in run.modules()):
            raise InvalidInputError(
                "The module to run must hold the plan's model, or its layers are not seen.",
                got=type(run).__name__,
                remedy="pass plan.model or a wrapper around it, such as centered(plan.model)",
            )
        is_plain = isinstance(inputs, Tensor) and outputs is None
        return Subject(plan, run if is_plain else Runs(run, outputs), batch_norm=batch_norm)
    model = inside(plan_or_model) if run is None else run
    with whole(model):
        return _subject_of_bare(model, inputs, outputs, batch_norm)


def _subject_of_bare(model: nn.Module, inputs: Example, outputs: Selection | None, batch_norm: str) -> Subject:
    inner = model
    while isinstance(inner, Wrapper):
        inner = inner.model
    if isinstance(inputs, Tensor) and outputs is None:
        try:
            return Subject(_as_it_is(inner, describe(inner, inputs)), model, batch_norm=batch_norm)
        except (UnsupportedModelError, InvalidInputError):  # if it fails on the inputs, the watched pass says why
            pass
    return replace(watched_subject(inner, inputs, run=Runs(model, outputs)), batch_norm=batch_norm)


def watched_subject(
    model: nn.Module, inputs: Example, *, run: nn.Module | None = None, outputs: Selection | None = None
) -> Subject:
    """The subject that any module stands for, of which nothing is known but what is seen when it runs.

    It is in the standard parameterization, with gamma0 = 1/sqrt(N) for N the fan-in of the last product that the outputs
    depend on.

    Args:
        model: the module.
        inputs: ``(sample, ...)``, or a tuple or mapping of the arguments of ``forward``.
        run: the module whose outputs are recorded, given the inputs as one argument; default ``model``.
        outputs: which of the model's outputs is f; see ``torch_dmft.uses.outputs.select``.

    Raises:
        UnsupportedModelError: if nothing is multiplied with a parameter, or parameters are complex.
        InvalidInputError: if the model fails on the inputs.
    """
    run = Runs(model, outputs) if run is None else run
    return Subject(_as_it_is(model, look_at(model, run, inputs)), run)


def _as_it_is(model: nn.Module, architecture: Architecture) -> Plan:
    rules = parameter_rules(architecture, model, scheme="standard")
    return Plan(model, architecture, rules, scheme="standard", gamma0=architecture.width**-0.5)
