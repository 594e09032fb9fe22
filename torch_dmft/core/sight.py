"""Sight: what optimizers do to a model in every step, looked at as they are, in units of its parameterization.

A look costs some microseconds: the settings of the groups, and which parameters they step. What does not change is kept once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.muon import MUON_NUMBERS, SCALES, scale_of, step_norm
from torch_dmft.core.series import Number, Numbers
from torch_dmft.core.steppers import unwrapped
from torch_dmft.core.torch_private import backward_pass, parameters_of

SGD_NUMBERS: dict[str, float] = {
    "lr": 0.0,
    "momentum": 0.0,
    "dampening": 0.0,
    "nesterov": 0.0,
    "weight_decay": 0.0,
    "decoupled": 0.0,
    "maximize": 0.0,
}
_ADAM_NUMBERS: dict[str, float] = {
    "lr": 0.0,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "amsgrad": 0.0,
    "maximize": 0.0,
}
NUMBERS: dict[str, dict[str, float]] = {
    "SGD": SGD_NUMBERS,
    "Adam": _ADAM_NUMBERS,
    "AdamW": _ADAM_NUMBERS,
    "Muon": MUON_NUMBERS,
}
"""The optimizers that theory or wide networks can follow, and torch's default of every number that decides a step."""

_HOW = {
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "initial_lr",
    "max_lr",
    "min_lr",
    "params",
    "name",
    "param_names",
}
"""Entries of a group that do not change what a step does."""


_MUON: tuple[type[Optimizer], ...] = (torch.optim.Muon,) if hasattr(torch.optim, "Muon") else ()
"""Since torch 2.9."""


@runtime_checkable
class Rule(Protocol):
    """What the parameterization says of one parameter (``parameterization.ParameterRule``)."""

    name: str
    lr: float
    adam_lr: float
    gradient: float


@runtime_checkable
class Scaled(Protocol):
    """A model with its parameterization (``parameterization.Plan``)."""

    model: nn.Module
    gamma0: float
    scheme: str

    @property
    def rules(self) -> Sequence[Any]:
        """One rule for every parameter."""


def kind_of(optimizer: Optimizer) -> str:
    """``"SGD"``, ``"Adam"``, ``"AdamW"`` or ``"Muon"`` if that is what its steps are, else the name of its class.

    Subclasses that add no method but ``__init__`` count as the class of torch.optim that they inherit.
    """
    step = getattr(type(optimizer).step, "__wrapped__", type(optimizer).step)
    bases: tuple[type[Optimizer], ...] = (SGD, Adam, *_MUON)
    for base in bases:
        if (
            isinstance(optimizer, base)
            and step is getattr(base.step, "__wrapped__", base.step)
            and _is_plain(optimizer)
        ):
            if base is not Adam:
                return base.__name__
            return "AdamW" if optimizer.param_groups[0].get("decoupled_weight_decay") else "Adam"
    return type(optimizer).__name__


def _is_plain(optimizer: Optimizer) -> bool:
    """Whether no class outside of torch adds a method to an optimizer."""
    others = [kind for kind in type(optimizer).__mro__ if kind.__module__.split(".")[0] not in ("torch", "builtins")]
    return not any(
        callable(value) and not name.startswith("__") for kind in others for name, value in vars(kind).items()
    )


def require_whole_plan(plan: Scaled) -> None:
    """Refuse a model that is no longer the one its plan was made for.

    Raises:
        InvalidInputError: naming the parameters that came or went, or that it was undone.
    """
    if getattr(plan, "is_undone", False):
        raise InvalidInputError(
            "The model is as it was before it was wrapped.",
            got="a plan after plan.undo()",
            remedy="plan = parameterize(model, example_input), and all that is made from it, anew",
        )
    planned, there = {rule.name for rule in plan.rules}, set(parameters_of(plan.model))
    came, went = sorted(there - planned), sorted(planned - there)
    if came or went:
        parts = [f"new: {', '.join(came)}"] * bool(came) + [f"gone: {', '.join(went)}"] * bool(went)
        raise InvalidInputError(
            "The model has other parameters than its plan: it was changed after it was wrapped.",
            got="; ".join(parts),
            remedy="plan.undo(), change the model, and wrap it again before the optimizer is built",
        )


class Sight:
    """Looks at the optimizers of a model before every step and remembers what it saw.

    Args:
        plan: the model and its parameterization.
        optimizers: all that train it.

    Raises:
        InvalidInputError: if they train none of its parameters, or the model is no longer that of the plan.
    """

    def __init__(self, plan: Scaled, optimizers: Sequence[Optimizer]) -> None:
        require_whole_plan(plan)
        self._rules = {rule.name: rule for rule in plan.rules}
        self._plan, self._optimizers = plan, tuple(map(unwrapped, optimizers))
        self.steps = 0
        self._parts: list[tuple[int, Any, Any]] = []  # from which step on, who is in which group, and the raw settings
        self._stale: dict[str, None] = {}
        self._kinds: dict[str, str] = {}
        self._is_new = True
        kinds = dict.fromkeys(map(kind_of, self._optimizers))
        self.optimizer = " and ".join(kinds)
        if not any(self._structure(about_to_step=False)):
            raise InvalidInputError(
                "The optimizer trains none of the recorded model's parameters.",
                got=self.optimizer or "no optimizer",
                remedy="build it from plan.param_groups(lr) of the same plan",
            )

    def goes_on(self, earlier: Sight) -> None:
        """Continue what another sight of the same model saw before."""
        self.steps, self._parts, self._stale = earlier.steps, earlier._parts, earlier._stale
        self._kinds = dict(earlier.kinds)
        self._meet(self._structure(about_to_step=False))
        if earlier.optimizer != self.optimizer:
            self.optimizer = f"{earlier.optimizer} and then {self.optimizer}"

    def look(self, named: Mapping[str, Tensor] | None = None) -> None:
        """Note what the next step will do.

        Args:
            named: the model's parameters by name, if they are at hand.
        """
        structure, raw = self._structure(about_to_step=True, named=named), self._raw()
        if not self._parts or self._parts[-1][1:] != (structure, raw):
            self._parts.append((self.steps, structure, raw))
            self._is_new = True
        if self._is_new:
            self._meet(structure)
        self.steps += 1

    def _meet(self, structure: Sequence[Sequence[str]]) -> None:
        """Note which kind of optimizer steps which parameter."""
        for name, kind in self._steppers(structure):
            known = self._kinds.get(name, kind)
            self._kinds[name] = known if known.endswith(kind) else f"{known} and then {kind}"
        self._is_new = False

    def _steppers(self, structure: Sequence[Sequence[str]]) -> Iterator[tuple[str, str]]:
        kinds = [kind_of(optimizer) for optimizer in self._optimizers for _ in optimizer.param_groups]
        for kind, names in zip(kinds, structure, strict=True):
            for name in names:
                yield name, kind

    @property
    def kinds(self) -> dict[str, str]:
        """The optimizer of every parameter that is trained, by the name of its class."""
        return self._kinds or dict(self._steppers(self._structure(about_to_step=False)))

    @property
    def is_known(self) -> bool:
        """Whether theory or wide networks can follow all of them."""
        return all(kind in NUMBERS for kind in self.kinds.values())

    def _groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self._optimizers:
            yield from optimizer.param_groups

    def _structure(
        self, *, about_to_step: bool, named: Mapping[str, Tensor] | None = None
    ) -> tuple[tuple[str, ...], ...]:
        """The names of the parameters that every group steps."""
        there = parameters_of(self._plan.model) if named is None else named
        names = {id(parameter): name for name, parameter in there.items()}
        groups = list(self._groups())
        # Before the first backward pass nothing has a gradient, and that says nothing; within one they come one by one.
        by_gradient = (
            about_to_step
            and backward_pass() is None
            and any(p.grad is not None for group in groups for p in group["params"])
        )
        # Torch steps whatever has a gradient, also a parameter that was frozen since it got one.
        stepped = [
            [p for p in group["params"] if id(p) in names and (p.grad is not None if by_gradient else p.requires_grad)]
            for group in groups
        ]
        if by_gradient:
            self._stale |= {names[id(p)]: None for group in stepped for p in group if not p.requires_grad}
        return tuple(tuple(names[id(p)] for p in group) for group in stepped)

    def _raw(self) -> tuple[tuple[tuple[str, float], ...], ...]:
        return tuple(tuple(_settings(group)) for group in self._groups())

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the parameters that no step has moved (that would move, before the first step)."""
        moved = {name for _, structure, _ in self._seen() for names in structure for name in names}
        return tuple(name for name in self._rules if name not in moved)

    def _seen(self) -> list[tuple[int, Any, Any]]:
        return self._parts or [(0, self._structure(about_to_step=False), self._raw())]

    def numbers(self) -> dict[str, Numbers]:
        """The settings of every parameter that is trained, in units of the parameterization."""
        parts, total = self._seen(), max(self.steps, 1)
        lengths = torch.tensor(
            [stop - start for (start, *_), stop in zip(parts, [*(s for s, *_ in parts[1:]), total], strict=True)]
        )
        found: dict[str, Numbers] = {}
        tables: dict[tuple[int | None, ...], dict[str, Number]] = {}
        for name in self._rules:
            where = tuple(
                next((at for at, names in enumerate(structure) if name in names), None) for _, structure, _ in parts
            )
            if all(at is None for at in where):
                continue  # frozen
            if where not in tables:
                tables[where] = _table(parts, where, lengths)
            found[name] = self._in_units(name, tables[where])
        return found

    def _in_units(self, name: str, numbers: dict[str, Number]) -> Numbers:
        rule, kind = self._rules[name], self.kinds[name] if self.is_known else self.optimizer
        rate = rule.lr if kind == "SGD" else rule.adam_lr
        decay = rule.adam_lr if kind == "AdamW" else rule.lr
        eps = rule.gradient if kind in NUMBERS else 1.0
        units: dict[str, Number] = {"lr": rate or 1.0, "weight_decay": 1 / (decay or 1.0), "eps": eps}
        if kind == "Muon":
            shape = tuple(parameters_of(self._plan.model)[name].shape)
            plain, other = (scale_of(shape, adjust) for adjust in SCALES)
            scale = plain + (other - plain) * numbers.get("adjust", 0.0)
            norm = (step_norm(rule.adam_lr, shape) or 1.0) / scale
            units = {"lr": norm, "weight_decay": 1 / norm}
        decides = NUMBERS.get(kind, numbers)
        return {name: _rounded(value / units.get(name, 1.0)) for name, value in numbers.items() if name in decides}

    @property
    def unplanned(self) -> tuple[str, ...]:
        """Parameters that are trained although they were frozen when the plan was made, so that it has no rate for them."""
        frozen = set(self.frozen)
        return tuple(name for name, rule in self._rules.items() if rule.lr == 0 and name not in frozen)

    @property
    def stale(self) -> tuple[str, ...]:
        """Parameters that were stepped by a gradient from before they were frozen."""
        return tuple(self._stale)

    @property
    def shared(self) -> tuple[str, ...]:
        """Parameters that more than one group steps, so that they take several steps in one."""
        counts = [Counter(name for names in structure for name in names) for _, structure, _ in self._seen()]
        return tuple(name for name in self._rules if any(count[name] > 1 for count in counts))

    @property
    def joined(self) -> bool:
        """Whether parameters were stepped in some steps and not in others."""
        structures = {tuple(sorted(name for names in structure for name in names)) for _, structure, _ in self._seen()}
        return len(structures) > 1

    def state_dict(self) -> dict[str, Any]:
        """Everything seen, as plain containers."""
        known = {"optimizer": self.optimizer, "steps": self.steps, "parts": self._parts, "stale": list(self._stale)}
        return known | {"kinds": dict(self.kinds)}

    @classmethod
    def saved(cls, plan: Scaled, state: Mapping[str, Any]) -> Sight:
        """What another sight of the same model saw, to go on from; it looks at no optimizer."""
        sight = cls.__new__(cls)
        sight._rules, sight._plan, sight._optimizers = {rule.name: rule for rule in plan.rules}, plan, ()
        sight.optimizer, sight.steps = state["optimizer"], state["steps"]
        sight._parts = [tuple(part) for part in state["parts"]]
        sight._stale = dict.fromkeys(state["stale"])
        # States of older versions were of one optimizer.
        sight._kinds = dict(state.get("kinds") or dict.fromkeys(sight._rules, sight.optimizer))
        sight._is_new = True
        return sight


def _settings(group: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a group that decide its steps."""
    for name, value in group.items():
        if name in _HOW or name == "decoupled_weight_decay" or value is None:
            continue
        if name == "betas":
            for number, beta in enumerate(value, start=1):
                yield f"beta{number}", float(beta)
        elif name == "ns_coefficients":
            for letter, coefficient in zip("abc", value, strict=True):
                yield f"ns_{letter}", float(coefficient)
        elif name == "adjust_lr_fn":
            yield "adjust", float(SCALES.index(value))
        elif isinstance(value, bool | int | float) or (isinstance(value, Tensor) and value.numel() == 1):
            yield name, float(value)


def _table(parts: Sequence[tuple[int, Any, Any]], where: tuple[int | None, ...], lengths: Tensor) -> dict[str, Number]:
    """The settings of a parameter that was in these groups in turn: rate 0 where it was in none."""
    rows = [None if at is None else dict(raw[at]) for at, (_, _, raw) in zip(where, parts, strict=True)]
    known = next(row for row in rows if row is not None)
    table: dict[str, Number] = {}
    for name in known:
        last, values = known[name], []
        for row in rows:
            if row is None:
                values.append(0.0 if name == "lr" else last)
            else:
                last = row.get(name, last)
                values.append(last)
        same = all(value == values[0] for value in values)
        table[name] = (
            values[0] if same else torch.tensor(values, dtype=torch.float64, device="cpu").repeat_interleave(lengths)
        )
    return table


def _rounded(value: Number) -> Number:
    """Without the last digits, in which a rate times and divided by its multiplier differs from itself."""
    return value if isinstance(value, Tensor) else float(f"{value:.13g}")
