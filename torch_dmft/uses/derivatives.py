r"""Derivatives that a forward pass takes of itself: forces of an energy, residuals of a differential equation.

What autograd makes inside of a forward pass is the adjoint of what was there before. A product W x has W^T in it, with the
same numbers for the same weight, so that it is no other use of it:

.. math:: \frac{\partial e}{\partial x} = \sum_i W_{i} \cdot \frac{\partial e}{\partial h_i}, \quad h_i = W_i \cdot x.

In a mean-field network df/dh is O(1/(gamma0 N)) and has as many entries as the width; so the derivative of an output e by what
is no width, an average over N neurons divided by gamma0, is one of its kind. Its gradients by h and by W are O(1/(gamma0 N)),
too, for any depth. It starts and moves as e does, by the rates that make features move by O(gamma0).

The scale of a derivative is that of e over that of x, as both are products of powers: no operator inside of it is to be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from torch_dmft.uses.watch import Watch


@dataclass(frozen=True, eq=False)
class Derivative:
    """A derivative that was taken in a forward pass.

    Attributes:
        path: path of the module that took it.
        by: shapes of what it is taken by.
        made: where in the graph it was made; nothing if no gradient flows into it.
        of: where in the graph that was made of which it is the derivative.
    """

    path: str
    by: tuple[torch.Size, ...]
    made: frozenset[Node]
    of: frozenset[Node]


def sources(derivatives: Iterable[Derivative]) -> Mapping[Node, frozenset[Node]]:
    """For the nodes of derivatives, those of what they are derivatives of, which they depend on by definition."""
    found: dict[Node, frozenset[Node]] = {}
    for one in derivatives:
        for node in one.made:
            found[node] = found.get(node, frozenset()) | one.of
    return found


class Derivatives(TorchFunctionMode):
    """Sees every call of ``torch.autograd.grad`` in its ``with`` block.

    Args:
        watch: what notes them.
    """

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of torch."""
        kwargs = kwargs or {}
        if func is not torch.autograd.grad:
            return func(*args, **kwargs)
        outputs, inputs = _listed(args[0]), _listed(args[1])
        if not all(isinstance(one, Tensor) for one in (*outputs, *inputs)):
            return func(*args, **kwargs)
        with self._watch.differentiating():
            made = func(*args, **kwargs)
        self._watch.differentiated(outputs, inputs, _listed(kwargs.get("grad_outputs")), made)
        return made


def _listed(several: Any) -> list[Any]:
    if several is None:
        return []
    return list(several) if isinstance(several, tuple | list) else [several]
