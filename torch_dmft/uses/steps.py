"""The numbers that act on features in a forward pass, and the sums that run over features without a weight.

At another width a weight's scale is set by its parameterization, so that nothing else in the forward pass may change it: the
factors and the lengths of the sums of one module, such as 1/d and d of the scores q.k/d of attention, have to balance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

_MATRIX = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "mv": 0, "dot": 0}
"""Products of two tensors, and where the first is among the arguments."""


@dataclass(frozen=True, eq=False)
class Step:
    """One operator on features or weights.

    Attributes:
        path: path of the module that was running.
        operator: its plain name.
        number: the number that it multiplies with; 1 if it does not.
        summed: how many terms its sum has; 1 if it takes none, or an average.
        length: how many numbers the length is of that it takes; 1 if it takes none.
        is_tensor: whether the number is the root mean square of a tensor of constants.
        operands: of a product of features with features: where in the graph its two factors were made.
    """

    path: str
    operator: str
    number: float = 1.0
    summed: int = 1
    length: int = 1
    operands: tuple[GradientEdge | None, ...] = ()
    is_tensor: bool = False

    @property
    def scale(self) -> float:
        """The logarithm of what it multiplies features by, if the terms of sums are aligned; a length divides them later."""
        return math.log(abs(self.number)) + math.log(self.summed) - math.log(self.length) / 2


def step_of(path: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], kinds: Sequence[str | None]) -> Step:
    """The step that a call of an operator is.

    Args:
        path: path of the module that is running.
        name: plain name of the operator.
        args: its arguments.
        kwargs: its arguments by name.
        kinds: for every argument ``"data"``, ``"weight"``, or None if it is neither.
    """
    name = name.removesuffix("_")
    if name in ("mul", "div") and len(args) > 1:
        arg = next((arg for arg, kind in zip(args, kinds, strict=True) if kind is None), None)
        number = _number(arg)
        if number:
            return Step(path, name, number if name == "mul" else 1 / number)
        if isinstance(arg, Tensor) and arg.is_floating_point() and arg.ndim and name == "mul":
            size = float(arg.detach().double().square().mean().sqrt())
            return Step(path, name, size or 1.0, is_tensor=True)
    if name in _MATRIX:
        at = _MATRIX[name]
        number = _number(kwargs.get("alpha", 1.0)) or 1.0
        if kinds[at] == kinds[at + 1] == "data":
            operands = tuple(get_gradient_edge(one) if one.requires_grad else None for one in args[at : at + 2])
            return Step(path, name, number, summed=args[at].shape[-1], operands=operands)
        return Step(path, name, number)
    if name == "sum" and kinds[0] == "data" and args[0].is_floating_point():
        return Step(path, name, summed=_sizes(args[0], args[1] if len(args) > 1 else None))
    if name == "linalg_vector_norm" and kinds[0] == "data":
        return Step(path, name, length=_sizes(args[0], args[2] if len(args) > 2 else kwargs.get("dim")))
    return Step(path, name)


def _number(argument: Any) -> float | None:
    if isinstance(argument, int | float) and not isinstance(argument, bool):
        return float(argument)
    is_one = isinstance(argument, Tensor) and argument.ndim == 0 and argument.is_floating_point()
    return float(argument.detach()) if is_one else None


def _sizes(tensor: Tensor, dims: Any) -> int:
    if dims is None or dims == []:
        return tensor.numel()
    return math.prod(tensor.shape[dim] for dim in ([dims] if isinstance(dims, int) else dims))
