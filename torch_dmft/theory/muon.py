"""Muon in a problem: hidden matrices are its own, everything else another optimizer's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch_dmft.architecture import Role
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.sight import NUMBERS
from torch_dmft.core.training import Training
from torch_dmft.parameterization import Plan
from torch_dmft.theory.chain import Chain
from torch_dmft.theory.checks import checked_training

_SHARED = {"steps", "gamma0", "batches", "temperature"}


def beside_muon(training: Training, others: Mapping[str, Any] | None, rest: Iterable[str]) -> Training:
    """A training by Muon with the other optimizer of all that is no hidden matrix.

    Args:
        training: that of the hidden matrices.
        others: settings of the rest as ``Problem.mlp`` takes them; None for AdamW at the rate of Muon.
        rest: names of the parameters that are no hidden matrices.

    Raises:
        InvalidInputError: for settings out of range, or settings of others where there is no Muon.
    """
    if training.optimizer != "Muon":
        if others is not None:
            raise InvalidInputError(
                '`others` says how parameters are trained beside Muon, and needs optimizer="muon".',
                got=f"optimizer {training.optimizer}",
                remedy='optimizer="muon", or others=None',
            )
        return training
    is_mapping = others is None or (isinstance(others, Mapping) and all(isinstance(name, str) for name in others))
    if others is not None and (not is_mapping or _SHARED & others.keys()):
        raise InvalidInputError(
            "`others` must map settings of the other optimizer to numbers; steps, batches and gamma0 are those of Muon.",
            got=f"others={others!r}",
            remedy='others={"optimizer": "adamw", "lr": 0.01}',
        )
    settings: dict[str, Any] = {"optimizer": "adamw", "lr": training.number("lr"), **(others or {})}
    if settings["optimizer"] == "muon":
        raise InvalidInputError(
            "The optimizer of what is no hidden matrix must be another than Muon.",
            got='others={"optimizer": "muon"}',
            remedy='others={"optimizer": "sgd"}, "adam" or "adamw"',
        )
    own = checked_training(
        settings.pop("lr"),
        training.steps,
        training.gamma0,
        settings.pop("momentum", None),
        settings.pop("weight_decay", 0.0),
        None,
        temperature=0.0,
        **settings,
    )
    names = list(rest)
    numbers = {**NUMBERS[own.optimizer], **own.numbers}
    return replace(training, exceptions=dict.fromkeys(names, numbers), kinds=dict.fromkeys(names, own.optimizer))


def rest_of_chain(chain: Chain, paths: tuple[str, ...]) -> list[str]:
    """The names of the parameters of a chain that are no hidden matrices.

    Args:
        chain: the chain.
        paths: names of its weights l = 0..L.

    Raises:
        InvalidInputError: if there are no hidden matrices.
    """
    if chain.depth < 2:
        raise InvalidInputError(
            "Muon needs a hidden matrix, between two hidden layers.",
            got="depth=1",
            remedy='depth=2 or more, or optimizer="adamw"',
        )
    biased = [path for path, layer in zip(paths, chain.hidden, strict=False) if layer.bias_std is not None]
    return [f"{paths[0]}.weight", f"{paths[-1]}.weight", *(f"{path}.bias" for path in biased)]


def rest_of_plan(plan: Plan) -> list[str]:
    """The names of the trained parameters of a wrapped model that are no hidden matrices.

    Raises:
        InvalidInputError: if there are no hidden matrices.
    """
    names = [rule.name for rule in plan.rules if rule.lr]
    matrices = {
        rule.name
        for rule in plan.rules
        if rule.lr and rule.role is Role.HIDDEN and plan.model.get_parameter(rule.name).ndim == 2
    }
    if not matrices:
        raise InvalidInputError(
            "Muon needs a hidden matrix that is trained.",
            got=", ".join(names) or "nothing",
            remedy='optimizer="adamw", or a model with two hidden layers or more',
        )
    return [name for name in names if name not in matrices]
