"""What ``Problem.mlp`` is made of: rows of numbers, and equal hidden layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError
from torch_dmft.core.numbers import require_whole
from torch_dmft.theory.chain import MOST_LAYERS, HiddenLayer
from torch_dmft.theory.checks import check_inputs, check_targets, require_list
from torch_dmft.uses.outputs import Example, named_tensors


def chain_rows(inputs: Tensor, targets: Tensor, test_inputs: Tensor | None) -> Tensor:
    """The rows that a chain sees, training rows first, then test rows: ``(sample, D)``.

    Args:
        inputs: ``(train, ...)`` training inputs.
        targets: one for each of them.
        test_inputs: ``(test, ...)`` further rows.

    Raises:
        InvalidInputError: for values that no network takes, and for shapes that do not fit.
    """
    check_inputs(inputs)
    check_targets(targets)
    if len(targets) != len(inputs):
        raise InvalidInputError(
            "Every training input needs a target.",
            got=f"{len(targets)} targets, {len(inputs)} inputs",
            remedy="rows that are not trained on go into test_inputs",
        )
    if test_inputs is None:
        return inputs.flatten(1)
    check_inputs(test_inputs, "test_inputs")
    if test_inputs.shape[1:] != inputs.shape[1:]:
        raise InvalidInputError(
            "Test inputs must have the shape of training inputs.",
            got=f"{tuple(test_inputs.shape)} beside {tuple(inputs.shape)}",
            remedy="rows alike in both",
        )
    return torch.cat([inputs, test_inputs.to(inputs)]).flatten(1)


def numbers_of(inputs: Example) -> Tensor:
    """The inputs where they are one tensor of numbers or tokens.

    Raises:
        UnsupportedProblemError: if they are not.
    """
    if not isinstance(inputs, Tensor) or not (inputs.is_floating_point() or inputs.dtype in (torch.int64, torch.int32)):
        raise UnsupportedProblemError(
            "Theory is about networks whose data are one tensor of numbers or tokens.",
            got=", ".join(f"{name} of {leaf.dtype}" for name, leaf in named_tensors(inputs)),
            remedy="solvers.WideEnsemble(factory=...), with a function width -> model",
        )
    return inputs


def equal_layers(
    depth: int, activation: str, gain: float, bias_std: float | None, width_ratios: Sequence[float] | None
) -> tuple[HiddenLayer, ...]:
    """Hidden layers that differ at most in width.

    Args:
        depth: L, how many.
        activation: name of phi.
        gain: g of their weights.
        bias_std: standard deviation of their biases; None for none.
        width_ratios: N_l / N_L for l = 1..L; None for equal widths.

    Raises:
        InvalidInputError: for a depth below 1, and for ratios that do not fit it.
    """
    require_whole(
        "depth",
        depth,
        at_least=1,
        at_most=MOST_LAYERS,
        remedy="the number of hidden layers, at least one hidden layer",
    )
    ratios = (1.0,) * depth if width_ratios is None else require_list("width_ratios", width_ratios)
    hidden = tuple(HiddenLayer(activation, gain, bias_std, ratio) for ratio in ratios)
    if len(ratios) != depth or ratios[-1] != 1.0:
        raise InvalidInputError(
            "width_ratios needs one positive number per hidden layer, relative to the last.",
            got=f"{ratios} for depth {depth}",
            remedy="for example width_ratios=[2.0, 1.0] at depth 2",
        )
    return hidden
