"""What a look sees beside the uses of weights: what every softmax takes, and the numbers that features are multiplied by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from torch_dmft.core.torch_private import operator_name
from torch_dmft.uses.forms import Product
from torch_dmft.uses.parts import parts
from torch_dmft.uses.watch import Use, Watch


@dataclass(frozen=True, eq=False)
class _Scaled:
    """What numbers were multiplied with: kept, so that nothing else has its id.

    Attributes:
        tensor: the product.
        use: whose output they were multiplied with; None for that of an operator without weights.
        factor: all numbers since.
        view: use of whose output they were multiplied with a view, as a linear layer of sequences puts one out.
    """

    tensor: Tensor
    use: Use | None
    factor: float
    view: Use | None = None


class Eyes(Watch):
    """Sees, beside the uses of weights, what every softmax takes, and numbers that outputs are multiplied by."""

    def __init__(self, model: nn.Module, inputs: Iterable[Tensor]) -> None:
        super().__init__(model, inputs)
        self.scores: list[tuple[str, Tensor, int]] = []
        self.places: list[int] = []
        self._terms: dict[str, int] = {}
        self._scaled: dict[int, _Scaled] = {}
        self.factors: dict[int, float] = {}
        self._behind_views: dict[int, float] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator."""
        name = operator_name(func).removeprefix("aten::")
        is_of_model = bool(self.running)
        if is_of_model and name in ("bmm", "baddbmm", "mm"):
            self._terms[self.path] = int(args[-1].shape[-2])
        if is_of_model and name in ("_softmax", "_safe_softmax"):
            self.finish()
            self.scores.append((self.path, args[0].detach().clone(), self._terms.get(self.path, 0)))
            self.places.append(len(self._uses))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if is_of_model and name in _SCALING and isinstance(result, Tensor):
            self._scale(name, args, result)
        elif is_of_model and name in _SAME and isinstance(result, Tensor):
            before = self._scaled.get(id(args[0]))
            if before is not None:
                self._scaled[id(result)] = replace(before, tensor=result)
        return result

    def _scale(self, name: str, args: tuple[Any, ...], result: Tensor) -> None:
        """Note a number that multiplies the output of a use."""
        self.finish()
        data, other = args[0], args[1]
        if not isinstance(data, Tensor) or data.ndim == 0:
            data, other = other, data
        if not isinstance(data, Tensor) or (
            isinstance(other, Tensor) and (other.ndim or self.label(other) is not None)
        ):
            return
        near = self._uses[: -_NEAR - 1 : -1]
        use = next((use for use in near if use.output is data), None)
        view = next((use for use in near if use.output is not data and _is_whole(data, use.output)), None)
        before = self._scaled.get(id(data)) or _Scaled(data, use, 1.0, view)
        number = abs(float(other))
        factor = 1 / number if name.startswith("div") and number else number
        if before.use is not None:
            self.factors[id(before.use)] = self.factors.get(id(before.use), 1.0) * factor
        if before.view is not None:
            self._behind_views[id(before.view)] = self._behind_views.get(id(before.view), 1.0) * factor
        self._scaled[id(result)] = _Scaled(result, before.use, before.factor * factor, before.view)

    def factor_of(self, use: Use) -> float:
        """What the output of a use was multiplied by; behind a view that of the last product alone, as queries are scaled."""
        last = next(
            (one for one in reversed(self._uses) if any(isinstance(part, Product) for part in parts(one))), None
        )
        behind = self._behind_views.get(id(use), 1.0) if use is last else 1.0
        return self.factors.get(id(use), 1.0) * behind

    def scale_of(self, use: Use) -> float:
        """What the data of a product were multiplied by, if they come from no other product; its number then, not a norm's."""
        data = next((use.argument(part.data) for part in parts(use) if isinstance(part, Product)), None)
        scaled = None if data is None else self._scaled.get(id(data))
        if scaled is None or not scaled.factor:
            return 1.0
        if scaled.use is not None:
            if any(isinstance(part, Product) for part in parts(scaled.use)):
                return 1.0
            self.factors[id(scaled.use)] = 1.0
        return scaled.factor


def _is_whole(data: Tensor, output: Tensor) -> bool:
    """Whether data are a view of all of an output, with its features in the last axis."""
    return (
        data.numel() == output.numel() and data.data_ptr() == output.data_ptr() and data.shape[-1] == output.shape[-1]
    )


_SAME = frozenset(
    {
        "view",
        "_unsafe_view",
        "reshape",
        "t",
        "transpose",
        "permute",
        "expand",
        "clone",
        "_to_copy",
        "unsqueeze",
        "squeeze",
    }
)
"""Operators that put out the numbers that they take."""
_SCALING = frozenset({"mul", "mul_", "div", "div_"})
_NEAR = 4
"""Among how many of the last uses the one is looked for whose output is multiplied."""
