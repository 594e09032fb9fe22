"""Plans as plain numbers and strings: what ``Plan.state_dict`` makes and ``Plan.load_state_dict`` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_dmft.architecture import Role
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import SMALLEST, require_choice, require_number, require_whole
from torch_dmft.parameterization.rules import ParameterRule
from torch_dmft.parameterization.scheme import DEPTHS, SCHEMES

if TYPE_CHECKING:
    from torch_dmft.parameterization.plan import Plan

_VERSION = 1


def saved(plan: Plan) -> dict[str, Any]:
    """The scaling of a plan as plain containers."""
    return {
        "version": _VERSION,
        "scheme": plan.scheme,
        "gamma0": plan.gamma0,
        "depth": plan.depth,
        "rules": [{**asdict(rule), "role": rule.role.value} for rule in plan.rules],
        "drawn": {name: entries.tolist() for name, entries in plan.drawn.items()},
    }


def read(state: Mapping[str, Any]) -> tuple[tuple[ParameterRule, ...], dict[str, Tensor]]:
    """The rules of a saved plan, and the entries that it has seen.

    Raises:
        InvalidInputError: if it is not what ``saved`` makes, or was saved in another version of the format.
    """
    if state.get("version") != _VERSION:
        raise InvalidInputError(
            "The plan must be saved in the format of this version.",
            got=f"version {state.get('version')}",
            remedy="load it with the version of torch_dmft that saved it",
        )
    try:
        rules = tuple(ParameterRule(**{**rule, "role": Role(rule["role"])}) for rule in state["rules"])
        drawn = {
            name: torch.tensor(entries, dtype=torch.float64, device="cpu")
            for name, entries in state.get("drawn", {}).items()
        }
        for rule in rules:
            for name in ("std", "lr", "adam_lr", "gradient", "gain", "start"):
                require_number(f"{name} of {rule.name}", getattr(rule, name), at_least=0)
            require_whole(f"fan_in of {rule.name}", rule.fan_in, at_least=1)
        require_number("gamma0", state["gamma0"], at_least=SMALLEST)
        require_choice("scheme", state["scheme"], SCHEMES)
        if state.get("depth") is not None:
            require_choice("depth", state["depth"], DEPTHS)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            "This is not a saved plan, or it was changed since.",
            got=f"{type(error).__name__}: {error}".rstrip("."),
            remedy="plan.load_state_dict(...) of what plan.state_dict() made",
        ) from error
    return rules, drawn


def refuse_other(saved: Sequence[ParameterRule], here: Sequence[ParameterRule]) -> None:
    """Refuse the rules of another model, or of the model at another width.

    Raises:
        InvalidInputError: naming the parameters.
    """
    if [rule.name for rule in saved] != [rule.name for rule in here]:
        raise InvalidInputError(
            "The saved plan must have the parameters of this plan.",
            got=", ".join(sorted({rule.name for rule in saved} ^ {rule.name for rule in here})),
            remedy="load it into a plan of the same model",
        )
    other = [
        f"{new.name} (fan-in {new.fan_in}, here {old.fan_in})"
        for new, old in zip(saved, here, strict=True)
        if new.fan_in != old.fan_in
    ]
    if other:
        raise InvalidInputError(
            "The saved plan must have the width of this plan.",
            got=", ".join(other),
            remedy="wrap the model of this width anew; gamma0 and the base learning rate carry over",
        )
