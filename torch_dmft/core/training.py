"""Training: how a network is trained, as one value; seen once, carried, given to the theory and compared.

Numbers are in units of the parameterization, so that they mean the same at every width. With m_p the plan's learning rate of
a parameter per unit of the base rate,

    lr            eta(t) = lr_p(t) / m_p
    weight_decay  lambda, of which a step takes the share eta(t) lambda of every parameter
    eps           Adam's eps for gradients of order 1

Everything else (momentum, dampening, betas) is as torch has it. A number is a float, or a tensor ``(steps,)`` of what it was in
every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_dmft.core.arguments import typed
from torch_dmft.core.equality import by_value
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.listed import listed
from torch_dmft.core.numbers import require_choice, require_number, require_whole
from torch_dmft.core.prints import Print
from torch_dmft.core.series import Number, Numbers, constant, first_difference, is_ever, series, shown
from torch_dmft.core.sight import NUMBERS, SGD_NUMBERS, Scaled, Sight

DRAWN = ("zero", "uniform")
"""Starts other than Gaussian ones that theory draws."""

RULES = ("gradient", "feedback_alignment", "direct_feedback_alignment", "hebb")
"""What hidden weights learn by; see ``torch_dmft.parameterization.learning_rule``."""


@typed
@by_value
@dataclass(frozen=True)
class Training:
    """How a network is trained, at any width.

    Attributes:
        steps: T, the number of steps of the optimizer.
        numbers: the settings of every parameter that is not among the exceptions.
        optimizer: ``"SGD"``, ``"Adam"``, ``"AdamW"`` or ``"Muon"`` for those of torch.optim, else the name of the class.
        exceptions: parameter name -> its settings, where they differ.
        kinds: parameter name -> its optimizer, where that is another. Where there is Muon, it is ``optimizer``.
        frozen: names of the parameters that are not trained.
        gamma0: richness, 1/sqrt(N) for the schemes "ntk" and "standard".
        scheme: name of the parameterization.
        starts: parameter name -> how a weight or bias starts if not as Gaussian numbers: ``"zero"``, ``"uniform"`` (of the
            same variance), or what else it is, which no theory draws.
        loss: name of the loss.
        loss_print: what the loss makes of a fixed set of outputs and targets; two losses with one print are the same.
        data_print: length, sizes and projections of the training set; two sets with one print are the same.
        batches: the rows of the training set that each step saw, one index tensor per step; None for all of them.
        batches_known: whether ``batches`` tells what the steps saw; False for a run whose batches nobody noted.
        doubt: why they are not known.
        rule: what hidden weights learn by, ``"gradient"`` or the name of another learning rule (``learning_rule``).
        rho: of feedback alignment, the correlation of the backward weights with the initial ones.
        temperature: T of Langevin noise; in every step every parameter gets sqrt(2 T lr_p) / (gamma0 sqrt N) N(0, 1) too.
        notes: what else is known to have happened that no theory takes into account.
        assumptions: what was assumed in place of what is known or seen, such as ``"start"`` or ``"batches"``.
    """

    steps: int
    numbers: Numbers
    optimizer: str = "SGD"
    exceptions: Mapping[str, Numbers] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    gamma0: float = 1.0
    scheme: str = "mean_field"
    starts: Mapping[str, str] = field(default_factory=dict)
    loss: str = ""
    loss_print: Print = ()
    data_print: Print = ()
    batches: tuple[Tensor, ...] | None = None
    batches_known: bool = True
    doubt: str = ""
    rule: str = "gradient"
    rho: float = 0.0
    temperature: float = 0.0
    notes: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a number of steps, a richness, a learning rule or a temperature that there cannot be."""
        require_whole("steps", self.steps, at_least=0)
        require_number("gamma0", self.gamma0, above=0)
        require_number("temperature", self.temperature, at_least=0)
        require_rule(self.rule, self.rho)

    @classmethod
    def sgd(
        cls,
        lr: float | Sequence[float] | Tensor,
        steps: int,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        **others: Any,
    ) -> Training:
        """Training by ``torch.optim.SGD``.

        Args:
            lr: eta, one number or one for every step.
            steps: T.
            momentum: beta.
            weight_decay: lambda, inside of the momentum as torch has it.
            **others: other numbers (``dampening``, ``nesterov``, ``decoupled``) and fields.
        """
        require_whole("steps", steps, at_least=0)
        numbers: dict[str, Number] = {
            **SGD_NUMBERS,
            "lr": series(lr),
            "momentum": momentum,
            "weight_decay": weight_decay,
        }
        known = {*SGD_NUMBERS, *cls.__dataclass_fields__} - {"steps", "numbers", "optimizer"}
        for name in others:
            require_choice("a setting", name, sorted(known))
        numbers |= {name: float(others.pop(name)) for name in SGD_NUMBERS if name in others}
        _require_sizes(numbers)
        return cls(steps=steps, numbers=numbers, optimizer="SGD", **others)

    @classmethod
    def seen_by(cls, plan: Scaled, *optimizers: Optimizer, steps: int = 1) -> Training:
        """What optimizers are about to do to the model of a plan, as they are now, in each of so many steps.

        Args:
            plan: what ``parameterize`` or ``infinite_width`` returned.
            *optimizers: all that train it.
            steps: T.

        Raises:
            InvalidInputError: if they train none of the model's parameters, or the model is no longer that of the plan.
        """
        sight = Sight(plan, optimizers)
        for _ in range(steps):
            sight.look()
        return cls.seen(sight, gamma0=plan.gamma0, scheme=plan.scheme)

    @classmethod
    def seen(cls, sight: Sight, **fields: Any) -> Training:
        """What was seen of a run, beside what the optimizers do not know.

        Args:
            sight: what was seen; its ``steps`` are T.
            **fields: further fields.
        """
        every = {name: dict(numbers) for name, numbers in sight.numbers().items()}
        kinds, optimizer = (sight.kinds, "Muon") if sight.is_known else (dict.fromkeys(every, sight.optimizer), "")
        first = {name: numbers for name, numbers in every.items() if kinds[name] == optimizer} or every
        base = _most_common(list(first.values()), sight.steps)
        optimizer = next(kinds[name] for name, numbers in first.items() if numbers is base)
        others = {name: kind for name, kind in kinds.items() if name in every and kind != optimizer}
        exceptions = {
            name: {**NUMBERS[others[name]], **own} if name in others else own
            for name, own in every.items()
            if name in others or _differ(own, base, sight.steps)
        }
        notes = [f"{name} is trained, and was frozen when the plan was made" for name in sight.unplanned]
        notes += [f"{name} was stepped by a gradient from before it was frozen" for name in sight.stale]
        notes += [f"{name} is stepped by two optimizers" for name in sight.shared]
        if sight.joined:
            notes.append("parameters that were trained in some steps only, so that the parts of the NTK changed")
        numbers = {**NUMBERS.get(optimizer, {}), **base}
        fields["notes"] = (*fields.get("notes", ()), *notes)
        return cls(
            steps=sight.steps,
            numbers=numbers,
            optimizer=optimizer,
            exceptions=exceptions,
            kinds=others,
            frozen=sight.frozen,
            **fields,
        )

    @classmethod
    def unseen(cls, steps: int, plan: Scaled) -> Training:
        """What is known of a run that no optimizer was seen in."""
        return cls(
            steps=steps,
            numbers={"lr": math.nan},
            optimizer="unknown",
            gamma0=plan.gamma0,
            scheme=plan.scheme,
            batches_known=False,
        )

    # Optimizers

    def kind(self, parameter: str) -> str:
        """The optimizer of a parameter."""
        return self.kinds.get(parameter, self.optimizer)

    @property
    def optimizers(self) -> str:
        """All of them: ``"Muon and AdamW"``."""
        return " and ".join(dict.fromkeys([self.optimizer, *self.kinds.values()]))

    # Numbers

    def number(self, name: str, parameter: str | None = None) -> Number:
        """A setting of a parameter, or of those that are no exceptions."""
        require_choice(
            "name", name, {**self.numbers, **dict.fromkeys(known for kind in NUMBERS.values() for known in kind)}
        )
        own: Numbers = self.exceptions.get(parameter, {}) if parameter is not None else {}
        return own.get(name, self.numbers.get(name, 0.0))

    def at(self, name: str, step: int, parameter: str | None = None) -> float:
        """What a setting is in a step."""
        require_whole("step", step, at_least=0)
        value = self.number(name, parameter)
        if isinstance(value, Tensor):
            require_whole("step", step, at_least=0, at_most=len(value) - 1)
        return float(value[step]) if isinstance(value, Tensor) else value

    def constant(self, name: str) -> float | None:
        """A setting that is the same in all steps and for all parameters; None if it is not."""
        self.number(name)
        values = {constant(numbers.get(name, 0.0)) for numbers in (self.numbers, *self.exceptions.values())}
        return values.pop() if len(values) == 1 else None

    @property
    def lr(self) -> Tensor:
        """Eta, the base rate of every step: ``(steps,)`` float64."""
        value = self.number("lr")
        return (
            value if isinstance(value, Tensor) else torch.full((self.steps,), value, dtype=torch.float64, device="cpu")
        )

    @property
    def times(self) -> Tensor:
        """The paper's time at the states 0..T, the sum of the rates of all steps before: ``(steps + 1,)`` float64."""
        return torch.cat([torch.zeros(1, dtype=torch.float64, device="cpu"), self.lr.cpu().cumsum(0)])

    @property
    def rate(self) -> str:
        """The base rate in words, for legends and errors."""
        return shown(self.number("lr"))

    @property
    def traits(self) -> dict[str, str]:
        """What goes beyond plain gradient descent at one constant rate: a word for each, and how it is in this training."""
        return dict(self._traits())

    def _traits(self) -> Iterator[tuple[str, str]]:
        for kind in dict.fromkeys([self.optimizer, *self.kinds.values()]):
            if kind != "SGD":
                trait = {"Adam": "adam", "AdamW": "adam", "Muon": "muon"}.get(kind, "optimizer")
                yield trait, f"optimizer {self.optimizers}"
        every = (self.numbers, *self.exceptions.values())
        for trait, name, text in (
            ("momentum", "momentum", "momentum"),
            ("nesterov", "nesterov", "Nesterov's momentum"),
            ("dampening", "dampening", "dampening"),
            ("decay", "weight_decay", "weight decay"),
            ("maximize", "maximize", "ascent instead of descent"),
        ):
            used = [numbers[name] for numbers in every if name in numbers and is_ever(numbers[name])]
            if used:
                yield trait, text if name in ("nesterov", "maximize") else f"{text} {shown(used[0])}"
        if any(isinstance(numbers.get("lr"), Tensor) for numbers in every):
            yield "schedule", f"a learning rate that changes ({self.rate})"
        if any(isinstance(value, Tensor) for numbers in every for name, value in numbers.items() if name != "lr"):
            yield "changing numbers", "a momentum, decay or other number that changes"
        if self.exceptions:
            yield "groups", f"numbers of their own for {_listed(self.exceptions)}"
        if self.frozen:
            yield "frozen", f"frozen parameters ({_listed(self.frozen)})"
        zeros = [name for name, start in self.starts.items() if start == "zero"]
        uniform = [name for name, start in self.starts.items() if start == "uniform"]
        others = [f"{name} ({start})" for name, start in self.starts.items() if start not in DRAWN]
        if zeros:
            yield "starts", f"a start at zero of {_listed(zeros)}"
        if uniform:
            yield "uniform starts", f"a uniform start of {_listed(uniform)}"
        if others:
            yield "other starts", f"another start of {listed(others)}"
        if self.rule != "gradient":
            yield "rule", shown_rule(self.rule, self.rho)
        if self.temperature:
            yield "noise", f"temperature {self.temperature:g}"
        if self.batches is not None:
            yield "batches", "minibatches"
        elif not self.batches_known:
            yield "unknown batches", "batches that nobody noted"

    # Comparison

    def differences(
        self, other: Training, *, names: tuple[str, str] = ("network", "theory"), until: int | None = None
    ) -> list[str]:
        """Everything in which another training differs in its first steps, by value: ``"momentum: network 0.9, theory 0"``.

        Args:
            other: the other training.
            names: what the two are called.
            until: how many steps matter; default those that both have.
        """
        from torch_dmft.core.differences import differences  # it is about trainings

        if until is not None:
            require_whole("until", until, at_least=0)
        return differences(self, other, names, min(self.steps, other.steps) if until is None else until)

    def with_numbers(self, **numbers: float | Sequence[float] | Tensor) -> Training:
        """The same training with other numbers for the parameters that are no exceptions."""
        for name in numbers:
            require_choice("a number", name, {**self.numbers, **SGD_NUMBERS, **NUMBERS["Adam"]})
        given = {name: series(value) for name, value in numbers.items()}
        _require_sizes(given)
        return replace(self, numbers={**self.numbers, **given})


def require_rule(rule: str, rho: float) -> None:
    """Refuse a learning rule that there is not, or a correlation that it does not have."""
    require_choice("rule", rule, RULES)
    require_number("rho", rho, at_least=0)
    if rho > 1:
        raise InvalidInputError(
            "`rho` is a correlation.",
            got=f"rho={rho:g}",
            remedy="rho between 0 and 1; 1 for the initial weights themselves",
        )
    if rho and rule != "feedback_alignment":
        raise InvalidInputError(
            "Only feedback alignment has a correlation with the initial weights.",
            got=f"rule={rule!r}, rho={rho:g}",
            remedy='rule="feedback_alignment", or rho=0.0',
        )


def shown_rule(rule: str, rho: float) -> str:
    """A learning rule in words."""
    words = "learning by " + rule.replace("_", " ").replace("hebb", "Hebb's rule")
    return f"{words}, rho {rho:g}" if rule == "feedback_alignment" else words


def _require_sizes(numbers: Numbers) -> None:
    """Refuse settings that are not finite numbers >= 0."""
    for name, value in numbers.items():
        for one in value.tolist() if isinstance(value, Tensor) else [value]:
            require_number(name, one, at_least=None if name.startswith("ns_") else 0)


def _listed(names: Any) -> str:
    return listed(sorted(names)) or "none"


def _differ(mine: Numbers, theirs: Numbers, steps: int) -> bool:
    names = {*mine, *theirs}
    return any(
        first_difference(mine.get(name, 0.0), theirs.get(name, 0.0), max(steps, 1)) is not None for name in names
    )


def _most_common(settings: list[dict[str, Number]], steps: int) -> dict[str, Number]:
    """The settings that most parameters share."""
    kinds: list[tuple[dict[str, Number], int]] = []
    for own in settings:
        for place, (known, count) in enumerate(kinds):
            if not _differ(own, known, steps):
                kinds[place] = known, count + 1
                break
        else:
            kinds.append((own, 1))
    return max(kinds, key=lambda kind: kind[1])[0]
