"""Initial weights of plain networks with matched moments: the same limit of infinite width, seen through less noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_dmft.architecture import Role, Vector
from torch_dmft.parameterization import ParameterRule, Plan
from torch_dmft.theory.gaussian.rows import orthonormal_
from torch_dmft.theory.tables import as_it_is, by_neuron

_SHARE = 1 / 4
"""Largest number of columns per neuron whose moments are matched; the last moments stay free."""


@dataclass(frozen=True)
class _Columns:
    """A parameter that brings each of N neurons one number per column.

    Attributes:
        parameter: the parameter.
        rule: its rule.
        rows: ``(column, neuron)``, its entries in units of their standard deviation; rows of zeros (padding) left out.
        vector: what it is if it belongs to no layer.
    """

    parameter: Tensor
    rule: ParameterRule
    rows: Tensor
    vector: Vector | None = None

    def put(self, rows: Tensor) -> None:
        """Write these rows into the parameter."""
        if self.rule.role is Role.EMBEDDING:
            self.parameter[self.parameter.any(1)] = rows * self.rule.std
            return
        if self.vector is not None:
            self.parameter.copy_(as_it_is(self.vector, rows, self.parameter) * self.rule.std)
            return
        entries = rows if self.rule.role is Role.READOUT else rows.T
        self.parameter.copy_(entries.reshape(self.parameter.shape) * self.rule.std)


def matchable(plan: Plan) -> tuple[bool, ...]:
    """For every population of N neurons whether its columns are few, at most N / 4.

    Ask the smallest of several widths and match the same populations at all of them: two laws have two corrections b / N.
    """
    return tuple(sum(len(part.rows) for part in parts) <= _SHARE * size for size, parts in _populations(plan))


@torch.no_grad()
def match_moments(plan: Plan, which: Sequence[bool]) -> None:
    """Whiten, in place, the initial columns of input weights, embeddings, biases and readout over the neurons they belong to.

    The columns of one population are made mean-zero, mutually orthogonal and of second moment one, so that these moments do
    not fluctuate: w -> sqrt(N) (w w^T)^(-1/2) w, without the mean, for rows w of Gaussians. Any few entries stay independent
    Gaussians up to O(1/N). Weights between widths stay as they are, since orthogonal matrices have another limit.

    Args:
        plan: a network as ``initialise`` left it.
        which: the populations to match, see ``matchable``.
    """
    for (size, parts), wanted in zip(_populations(plan), which, strict=True):
        alive = [part for part in parts if bool(part.rows.any())]  # what starts at zero stays there
        if wanted and alive:
            rows = torch.cat([part.rows for part in alive])
            constant = rows.new_full((1, size), size**-0.5)
            matched = orthonormal_(rows, constant) * size**0.5
            for part, own in zip(alive, matched.split([len(part.rows) for part in alive]), strict=True):
                part.put(own)


def _populations(plan: Plan) -> list[tuple[int, list[_Columns]]]:
    """Number of neurons and columns of every width axis, in the order of the forward pass."""
    rules = {rule.name: rule for rule in plan.rules}
    columns_of: dict[tuple[int | None, int], list[_Columns]] = {}

    def add(name: str, axis: int | None) -> None:
        parameter, rule = plan.model.get_parameter(name), rules[name]
        if rule.std:
            by_row = rule.role in (Role.READOUT, Role.EMBEDDING)
            entries = parameter if by_row else parameter.reshape(len(parameter), -1).T
            entries = entries[entries.any(1)] if rule.role is Role.EMBEDDING and bool(entries.any()) else entries
            columns_of.setdefault((axis, entries.shape[1]), []).append(_Columns(parameter, rule, entries / rule.std))

    for layer in plan.architecture.layers:
        if layer.role in (Role.INPUT, Role.EMBEDDING):
            add(layer.weight, layer.out_axis)
        elif layer.role is Role.READOUT and layer.multiplier is None:  # else its weights are the rows of an embedding
            add(layer.weight, layer.in_axis)
        if layer.bias is not None and rules[layer.bias].role is Role.VECTOR:
            add(layer.bias, layer.out_axis)
    for name, vector in plan.architecture.bare.items():
        parameter, rule = plan.model.get_parameter(name), rules[name]
        if rule.std and vector.start is None:
            rows = by_neuron(vector, parameter) / rule.std
            columns_of.setdefault((vector.axis, rows.shape[1]), []).append(_Columns(parameter, rule, rows, vector))
    return [(size, parts) for (_, size), parts in columns_of.items()]
