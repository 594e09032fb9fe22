r"""How the scale of features changes from operator to operator, by the numbers and sums of the forward pass alone.

Every tensor that depends on data or parameters has a *scale*, the logarithm of what its entries are multiplied by beside the
weights, whose scale their parameterization sets: a factor c adds log c, a sum of n terms log n as if they were aligned, a
length half of log n, a norm layer takes everything away, and products, powers and quotients add as logarithms do. The number
itself means nothing, as activations keep no scale. But it has to be the same at every width wherever a function that is not
homogeneous is taken, where features are added, and at the outputs; see ``torch_dmft.uses.balance``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_leaves

from torch_dmft.core.torch_private import storage_key

_MATRIX = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "mv": 0, "dot": 0}
"""Products of two tensors, and where the first is among the arguments."""

_NORMS = frozenset(
    {"native_layer_norm", "native_batch_norm", "cudnn_batch_norm", "native_group_norm", "_fused_rms_norm"}
)

_NOT_HOMOGENEOUS = frozenset(
    re.findall(
        r"\w+",
        "tanh sigmoid softmax _softmax _safe_softmax _log_softmax gelu silu mish elu celu softplus erf erfc exp expm1 exp2 log "
        "log1p log2 sin cos tan hardtanh hardswish hardsigmoid log_sigmoid_forward logsumexp logit atan sinh cosh asinh glu",
    )
)
"""Functions of which f(c x) is not c^k f(x)."""

_ACTIVATIONS = frozenset(
    {
        "tanh",
        "sigmoid",
        "gelu",
        "silu",
        "mish",
        "elu",
        "celu",
        "erf",
        "sin",
        "cos",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
    }
)
"""Those of them that are taken of features, unlike a softmax of scores, which vanish, and the exponential of rates of decay."""

_ADDING = frozenset({"add", "sub", "rsub", "cat", "stack", "where", "maximum", "minimum", "lerp"})

_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0, "square": 2.0, "var": 2.0, "sign": 0.0, "sgn": 0.0}


@dataclass(frozen=True)
class Scale:
    """The scale of a tensor.

    Attributes:
        log: its logarithm.
        causes: the numbers of the steps that changed it.
    """

    log: float = 0.0
    causes: frozenset[int] = frozenset()

    def times(self, power: float) -> Scale:
        """Of a power of the tensor."""
        return Scale(self.log * power, self.causes if power else frozenset())

    def plus(self, other: Scale) -> Scale:
        """Of a product with another tensor."""
        return Scale(self.log + other.log, self.causes | other.causes)


@dataclass(frozen=True, eq=False)
class Step:
    """One operator on features or weights.

    Attributes:
        path: path of the module that was running.
        operator: its plain name.
        scales: of its arguments that are data or weights.
        must_agree: whether these have to be the same at every width.
        number: the number that it multiplies with, also as a tensor of equal entries; 1 if it does not.
        summed: how many terms its sum has; 1 if it takes none, or an average.
        length: how many numbers the length is of that it takes; 1 if it takes none.
        operands: of a product of features with features: where in the graph its two factors were made.
        size: of an activation, the root mean square of what it is taken of.
    """

    path: str
    operator: str
    scales: tuple[Scale, ...] = ()
    must_agree: bool = False
    number: float = 1.0
    summed: int = 1
    length: int = 1
    operands: tuple[GradientEdge | None, ...] = ()
    size: float | None = None

    @property
    def log(self) -> float:
        """The logarithm of what it multiplies by."""
        return math.log(abs(self.number)) + math.log(self.summed) + math.log(self.length) / 2


class Steps:
    """Collects the steps of one pass and the scales of its tensors."""

    def __init__(self) -> None:
        self.taken: list[Step] = []
        self._scales: dict[int, Scale] = {}
        self._held: list[object] = []

    def note(
        self,
        path: str,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        kinds: Sequence[str | None],
        result: Any,
        written: Iterable[Tensor],
    ) -> None:
        """Note a call of an operator.

        Args:
            path: path of the module that is running.
            name: its plain name.
            args: its arguments.
            kwargs: its arguments by name.
            kinds: for every argument ``"data"``, ``"weight"``, or None if it is neither.
            result: what it returned.
            written: the arguments that it changed.
        """
        name = name if name.startswith("_") else name.removesuffix("_")
        step, scale = self._step(path, name, args, kwargs, kinds)
        self.taken.append(step)
        for leaf in (*tree_leaves(result), *written):
            if isinstance(leaf, Tensor):
                self._scales[storage_key(leaf)] = scale
                # Else a constant could be stored where a feature was that is gone, and would have its scale.
                self._held.append(leaf.untyped_storage())

    def finish(self, outputs: Tensor) -> None:
        """Note the outputs."""
        self.taken.append(Step("", "output", (self.scale(outputs),), must_agree=True))

    def scale(self, tensor: Any) -> Scale:
        """The scale of a tensor; of lists, that of the first."""
        if isinstance(tensor, Tensor):
            return self._scales.get(storage_key(tensor), Scale())
        leaves = [leaf for leaf in tree_leaves(tensor) if isinstance(leaf, Tensor)]
        return self.scale(leaves[0]) if leaves else Scale()

    def _step(
        self, path: str, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], kinds: Sequence[str | None]
    ) -> tuple[Step, Scale]:
        number = len(self.taken)
        known = [kind is not None for kind in kinds]
        if name in ("cat", "stack"):
            parts = [leaf for leaf in args[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            scales = tuple(map(self.scale, parts))
            return Step(path, name, scales, must_agree=True), _first(scales)
        floats = [
            self.scale(arg)
            for arg, is_known in zip(args, known, strict=True)
            if is_known and (not isinstance(arg, Tensor) or arg.is_floating_point())
        ]
        scales = tuple(floats)
        if name in _NORMS:
            return Step(path, name, scales), Scale()
        if name in _NOT_HOMOGENEOUS:
            is_activation = name in _ACTIVATIONS and args[0].is_floating_point()
            size = float(args[0].detach().double().square().mean().sqrt()) if is_activation else None
            return Step(path, name, scales, must_agree=True, size=size), Scale()
        if name in ("mul", "div") and len(args) > 1:
            return self._product(path, name, number, args, known, scales)
        if name in _MATRIX:
            return self._matrix_product(path, name, number, args, kwargs, kinds)
        if name == "convolution":
            return Step(path, name, scales[:2]), self.scale(args[0]).plus(self.scale(args[1]))
        if name in ("sum", "linalg_vector_norm"):
            at = 1 if name == "sum" else 2
            count = _sizes(args[0], args[at] if len(args) > at else kwargs.get("dim"))
            step = Step(path, name, scales, summed=count) if name == "sum" else Step(path, name, scales, length=count)
            return step, self.scale(args[0]).plus(Scale(step.log, frozenset({number}) if count > 1 else frozenset()))
        power = float(args[1]) if name == "pow" and isinstance(args[1], int | float) else _POWERS.get(name)
        if power is not None:
            return Step(path, name, scales), self.scale(args[0]).times(power)
        return Step(path, name, scales, must_agree=name in _ADDING), _first(scales)

    def _product(
        self, path: str, name: str, number: int, args: Sequence[Any], known: Sequence[bool], scales: tuple[Scale, ...]
    ) -> tuple[Step, Scale]:
        sign = 1.0 if name == "mul" else -1.0
        if known[0] and known[1]:
            return Step(path, name, scales), self.scale(args[0]).plus(self.scale(args[1]).times(sign))
        is_first = known[0]
        factor = _number(args[1] if is_first else args[0])
        own = self.scale(args[0 if is_first else 1]).times(1.0 if is_first else sign)
        if not factor:
            return Step(path, name, scales), own
        step = Step(path, name, scales, number=factor ** (sign if is_first else 1.0))
        return step, own.plus(Scale(step.log, frozenset({number}) if abs(step.log) else frozenset()))

    def _matrix_product(
        self,
        path: str,
        name: str,
        number: int,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        kinds: Sequence[str | None],
    ) -> tuple[Step, Scale]:
        at = _MATRIX[name]
        left, right = args[at : at + 2]
        scales = self.scale(left), self.scale(right)
        factor = _number(kwargs.get("alpha", 1.0)) or 1.0
        if kinds[at] == kinds[at + 1] == "data":
            operands = tuple(get_gradient_edge(one) if one.requires_grad else None for one in (left, right))
            step = Step(path, name, scales, number=factor, summed=left.shape[-1], operands=operands)
        else:
            step = Step(path, name, scales, number=factor)
        change = Scale(step.log, frozenset({number}) if step.log else frozenset())
        return step, scales[0].plus(scales[1]).plus(change)


def _first(scales: Sequence[Scale]) -> Scale:
    return next((scale for scale in scales if scale.causes), Scale())


def _number(argument: Any) -> float | None:
    if isinstance(argument, int | float) and not isinstance(argument, bool):
        return float(argument)
    if not (isinstance(argument, Tensor) and argument.is_floating_point() and argument.numel()):
        return None
    number = float(argument.detach().reshape(-1)[0])
    return number if bool(torch.all(argument == number)) else None  # tables of sines and masks are no factors


def _sizes(tensor: Tensor, dims: Any) -> int:
    if dims is None or dims == []:
        return tensor.numel()
    return math.prod(tensor.shape[dim] for dim in ([dims] if isinstance(dims, int) else dims))
