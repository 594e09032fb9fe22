"""The values of all sums of a forward pass, by where they are in autograd's graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode

from torch_dmft.core.torch_private import operator_name


class Sums(TorchDispatchMode):
    """Keeps every sum of tensors that is made in its ``with`` block.

    Attributes:
        values: copies, by node.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[Node, Tensor] = {}
        self._pending: tuple[Tensor, Tensor] | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator; autograd knows the node of its result only when the next one runs."""
        self._settle()
        result = func(*args, **(kwargs or {}))
        if operator_name(func) in ("aten::add", "aten::add_") and isinstance(result, Tensor):
            self._pending = result, result.detach().clone()
        return result

    def __exit__(self, *error: Any) -> None:
        """Note the last sum."""
        super().__exit__(*error)
        self._settle()

    def _settle(self) -> None:
        if self._pending is None:
            return
        (made, value), self._pending = self._pending, None
        if made.requires_grad:
            self.values[get_gradient_edge(made).node] = value
