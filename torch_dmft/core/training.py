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
from torch_dmft.core.listed import listed
from torch_dmft.core.numbers import require_choice, require_number, require_whole
from torch_dmft.core.prints import Print, prints_agree
from torch_dmft.core.series import CLOSE, Number, Numbers, at_step, constant, first_difference, is_ever, series, shown
from torch_dmft.core.sight import NUMBERS, SGD_NUMBERS, Scaled, Sight


@typed
@by_value
@dataclass(frozen=True)
class Training:
    """How a network is trained, at any width.

    Attributes:
        steps: T, the number of steps of the optimizer.
        numbers: the settings of every parameter that is not among the exceptions.
        optimizer: ``"SGD"``, ``"Adam"`` or ``"AdamW"`` for those of torch.optim, else the name of the class.
        exceptions: parameter name -> its settings, where they differ.
        frozen: names of the parameters that are not trained.
        gamma0: richness, 1/sqrt(N) for the schemes "ntk" and "standard".
        scheme: name of the parameterization.
        starts: parameter name -> how a weight starts if not as Gaussian numbers: ``"zero"``, or what else it is.
        loss: name of the loss.
        loss_print: what the loss makes of a fixed set of outputs and targets; two losses with one print are the same.
        data_print: length, sizes and projections of the training set; two sets with one print are the same.
        batches: the rows of the training set that each step saw, one index tensor per step; None for all of them.
        batches_known: whether ``batches`` tells what the steps saw; False for a run whose batches nobody noted.
        doubt: why they are not known.
        temperature: T of Langevin noise; in every step every parameter gets sqrt(2 T lr_p) / (gamma0 sqrt N) N(0, 1) too.
        notes: what else is known to have happened that no theory takes into account.
        assumptions: what was assumed in place of what is known or seen, such as ``"start"`` or ``"batches"``.
    """

    steps: int
    numbers: Numbers
    optimizer: str = "SGD"
    exceptions: Mapping[str, Numbers] = field(default_factory=dict)
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
    temperature: float = 0.0
    notes: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a number of steps, a richness or a temperature that there cannot be."""
        require_whole("steps", self.steps, at_least=0)
        require_number("gamma0", self.gamma0, above=0)
        require_number("temperature", self.temperature, at_least=0)

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
    def seen(cls, sight: Sight, **others: Any) -> Training:
        """What was seen of a run, beside what the optimizers do not know.

        Args:
            sight: what was seen; its ``steps`` are T.
            **others: further fields.
        """
        every = {name: dict(numbers) for name, numbers in sight.numbers().items()}
        base = _most_common(list(every.values()), sight.steps)
        exceptions = {name: own for name, own in every.items() if _differ(own, base, sight.steps)}
        notes = [f"{name} is trained, and was frozen when the plan was made" for name in sight.unplanned]
        notes += [f"{name} was stepped by a gradient from before it was frozen" for name in sight.stale]
        notes += [f"{name} is stepped by two optimizers" for name in sight.shared]
        if sight.joined:
            notes.append("parameters that were trained in some steps only, so that the parts of the NTK changed")
        numbers = {**NUMBERS.get(sight.optimizer, {}), **base}
        others["notes"] = (*others.get("notes", ()), *notes)
        return cls(
            steps=sight.steps,
            numbers=numbers,
            optimizer=sight.optimizer,
            exceptions=exceptions,
            frozen=sight.frozen,
            **others,
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
        if self.optimizer != "SGD":
            yield "adam" if self.optimizer in NUMBERS else "optimizer", f"optimizer {self.optimizer}"
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
        others = [f"{name} ({start})" for name, start in self.starts.items() if start != "zero"]
        if zeros:
            yield "starts", f"a start at zero of {_listed(zeros)}"
        if others:
            yield "other starts", f"another start of {listed(others)}"
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
        if until is not None:
            require_whole("until", until, at_least=0)
        horizon = min(self.steps, other.steps) if until is None else until
        assumed = {*self.assumptions, *other.assumptions}

        def line(what: str, mine: str, theirs: str) -> str:
            return f"{what}: {names[0]} {mine}, {names[1]} {theirs}"

        found: list[str] = []
        if self.optimizer != other.optimizer:
            found.append(line("optimizer", self.optimizer, other.optimizer))
        if self.scheme != other.scheme and "standard" in (self.scheme, other.scheme):
            found.append(line("parameterization", self.scheme, other.scheme))
        # Runs of one lazy scheme at two widths have two gamma0, as they should.
        by_width = self.scheme == other.scheme != "mean_field"
        if not by_width and not math.isclose(self.gamma0, other.gamma0, rel_tol=CLOSE):
            found.append(line("gamma0", f"{self.gamma0:g}", f"{other.gamma0:g}"))
        if self.optimizer == other.optimizer:
            found += [line(*each) for each in self._different_numbers(other, horizon)]
        if set(self.frozen) != set(other.frozen):
            found.append(line("frozen parameters", _listed(self.frozen), _listed(other.frozen)))
        if "start" not in assumed:
            for name in sorted({*self.starts, *other.starts}):
                mine, theirs = (each.starts.get(name, "Gaussian") for each in (self, other))
                if mine != theirs:
                    found.append(line(f"start of {name}", mine, theirs))
        if "loss" not in assumed and not prints_agree(self.loss_print, other.loss_print):
            found.append(line("loss", self.loss, other.loss))
        if not prints_agree(self.data_print, other.data_print):
            rows = [f"{each.data_print[0]:.0f} rows" for each in (self, other)]
            found.append("training set: the two have other rows" if rows[0] == rows[1] else line("training set", *rows))
        if not math.isclose(self.temperature, other.temperature, rel_tol=CLOSE):
            found.append(line("temperature", f"{self.temperature:g}", f"{other.temperature:g}"))
        if "batches" not in assumed and horizon:
            mine, theirs = (each._batches_shown(horizon) for each in (self, other))
            step = None
            if self.batches_known and other.batches_known:
                step = _first_other_batch(self._rows(other), other._rows(self), horizon)
            if step is not None and mine == theirs:
                found.append(f"batches: the two saw other rows at step {step}")
            elif step is not None or self.batches_known != other.batches_known:
                found.append(line("batches", mine, theirs))
        for mine_, notes in zip(names, (self.notes, other.notes), strict=True):
            found += [f"{mine_}: {note}" for note in notes]
        return found

    def _different_numbers(self, other: Training, horizon: int) -> Iterator[tuple[str, str, str]]:
        exceptions = sorted({*self.exceptions, *other.exceptions})
        for parameter in (None, *exceptions):
            if parameter in self.frozen or parameter in other.frozen:
                continue
            for name in dict.fromkeys([*self.numbers, *other.numbers]):
                mine, theirs = (each.number(name, parameter) for each in (self, other))
                if name in ("dampening", "nesterov") and not any(
                    is_ever(each.number("momentum", parameter)) for each in (self, other)
                ):
                    continue  # without momentum they mean nothing
                if name == "decoupled" and not all(
                    is_ever(each.number("momentum", parameter)) for each in (self, other)
                ):
                    continue  # nor does this
                step = first_difference(mine, theirs, horizon)
                if step is None:
                    continue
                what = _TITLES.get(name, name) + ("" if parameter is None else f" of {parameter}")
                if isinstance(mine, Tensor) or isinstance(theirs, Tensor):
                    yield f"{what} at step {step}", _one(at_step(mine, step)), _one(at_step(theirs, step))
                else:
                    yield what, _one(mine), _one(theirs)

    def _rows(self, other: Training) -> Sequence[Tensor] | None:
        """The rows of every step; None for all rows, unless the other training says what all rows are."""
        count = (self.data_print or other.data_print or (0,))[0]
        if self.batches is None and other.batches is not None and count:
            return [torch.arange(int(count), device="cpu")] * self.steps
        return self.batches

    def _batches_shown(self, horizon: int) -> str:
        if not self.batches_known:
            return f"unknown ({self.doubt})" if self.doubt else "unknown"
        return (
            "all rows"
            if self.batches is None
            else f"of {_listed({str(len(rows)) for rows in self.batches[:horizon]})} rows"
        )

    def with_numbers(self, **numbers: float | Sequence[float] | Tensor) -> Training:
        """The same training with other numbers for the parameters that are no exceptions."""
        for name in numbers:
            require_choice("a number", name, {**self.numbers, **SGD_NUMBERS, **NUMBERS["Adam"]})
        given = {name: series(value) for name, value in numbers.items()}
        _require_sizes(given)
        return replace(self, numbers={**self.numbers, **given})


def _require_sizes(numbers: Numbers) -> None:
    """Refuse settings that are not finite numbers >= 0."""
    for name, value in numbers.items():
        for one in value.tolist() if isinstance(value, Tensor) else [value]:
            require_number(name, one, at_least=0)


_TITLES = {"lr": "learning rate", "weight_decay": "weight decay", "decoupled": "weight decay outside of the momentum"}


def _one(value: float) -> str:
    return f"{value:.6g}"


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
