r"""How the scale of features changes from operator to operator, by the numbers, sums and weights of the forward pass alone.

Every tensor that depends on data or parameters has a *scale* (``torch_dmft.uses.scale``): a factor c multiplies it by c, a sum
of n terms by n as if they were aligned, a length by the root of n, a weight by its size, a norm layer takes everything away,
and products, powers and quotients act on scales as on numbers. The number itself means nothing, as activations keep no scale.
But it has to be the same at every width wherever a function that is not homogeneous is taken, and at the outputs, and features
that are added have to have one scale; see ``torch_dmft.uses.balance``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from torch_dmft.core.torch_private import storage_key
from torch_dmft.uses.scale import Scale

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


_LINEAR = frozenset(
    re.findall(
        r"\w+",
        "view _unsafe_view reshape _reshape_alias permute transpose t numpy_T expand squeeze unsqueeze select slice narrow "
        "split split_with_sizes chunk unbind unfold unflatten flatten as_strided alias clone detach contiguous _to_copy repeat "
        "roll flip index index_select gather mean amax amin max min neg abs relu leaky_relu dropout cumsum tril triu "
        "native_dropout pixel_shuffle pixel_unshuffle diagonal movedim embedding view_as_real view_as_complex std lift_fresh "
        "avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices _adaptive_avg_pool2d "
        "_adaptive_avg_pool3d upsample_nearest2d upsample_bilinear2d reflection_pad1d reflection_pad2d repeat_interleave",
    )
)
"""Functions of which f(c x) is c f(x) for positive c."""


_NONE = Scale()


@dataclass(frozen=True, eq=False)
class Step:
    """One operator on features or weights.

    Attributes:
        path: path of the module that was running.
        operator: its plain name.
        scales: of its arguments that are data or weights.
        must_agree: whether each of these has to be the same at every width.
        equal: pairs of scales that have to be equal at every width, of what is added.
        opaque: those of which is not known what becomes of them, or not to the last digit.
        number: the number that it multiplies with, also as a tensor of equal entries; 1 if it does not.
        summed: how many terms its sum has; 1 if it takes none, or an average.
        length: how many numbers the length is of that it takes; 1 if it takes none.
        size: of an activation, the root mean square of what it is taken of.
        made: the scale of what comes out.
    """

    path: str
    operator: str
    scales: tuple[Scale, ...] = ()
    must_agree: bool = False
    equal: tuple[tuple[Scale, Scale], ...] = ()
    opaque: tuple[Scale, ...] = ()
    number: float = 1.0
    summed: int = 1
    length: int = 1
    size: float | None = None
    made: Scale = _NONE

    @property
    def log(self) -> float:
        """The logarithm of what it multiplies by."""
        return math.log(abs(self.number)) + math.log(self.summed) + math.log(self.length) / 2


class Steps:
    """Collects the steps of one pass and the scales of its tensors.

    Args:
        weights: parameters that have a storage of their own, by its key.
    """

    def __init__(self, weights: Mapping[int, str] | None = None) -> None:
        self.taken: list[Step] = []
        self._scales = {key: Scale.of_weight(name) for key, name in (weights or {}).items()}
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
        *,
        is_derived: bool = False,
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
            is_derived: whether autograd called it inside of the forward pass: scales balance there as they do where they came
                from.
        """
        name = name if name.startswith("_") else name.removesuffix("_")
        if name == "detach":
            return  # autograd detaches what it saves, torch 2.6 now and then twice; the scale is that of the storage
        step, scale = self._step(path, name, args, kwargs, kinds)
        # What stands in a part of a storage has the scale of all of it.
        is_part = any(leaf.numel() * leaf.element_size() < leaf.untyped_storage().nbytes() for leaf in written)
        opaque = step.scales if is_part else step.opaque
        if is_derived:
            self.taken.append(replace(step, made=scale, must_agree=False, equal=(), opaque=()))
        else:
            self.taken.append(replace(step, made=scale, opaque=opaque))
        for leaf in (*tree_leaves(result), *written):
            if isinstance(leaf, Tensor):
                self._scales[storage_key(leaf)] = scale
                # Else a constant could be stored where a feature was that is gone, and would have its scale.
                self._held.append(leaf.untyped_storage())

    def differentiated(
        self,
        path: str,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        given: Sequence[Tensor | None],
        made: Sequence[Tensor | None],
    ) -> None:
        """Note a derivative, whose scale is that of the outputs over that of an input; see ``Watch.differentiated``."""
        scales = [self.scale(one) for one in outputs]
        for at, factor in enumerate(given):
            scales[at] = scales[at].plus(self.scale(factor))
        pairs = tuple((scales[0], one) for one in scales[1:])
        self.taken.append(Step(path, "derivative", tuple(scales), equal=pairs, made=scales[0]))
        for leaf, one in zip(inputs, made, strict=True):
            if one is not None:
                self._scales[storage_key(one)] = replace(scales[0].minus(self.scale(leaf)), last=scales[0].last)
                self._held.append(one.untyped_storage())

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
        known = [kind is not None for kind in kinds]
        if name in ("cat", "stack"):
            return self._sum(
                path, name, [leaf for leaf in args[0] if _is_numeric(leaf) and leaf.numel()]
            )  # caches start empty
        floats = [
            self.scale(arg)
            for arg, is_known in zip(args, known, strict=True)
            if is_known and (not isinstance(arg, Tensor) or _is_numeric(arg))
        ]
        scales = tuple(floats)
        if name in _NORMS:
            return self._norm(path, name, args, scales)
        if name in _NOT_HOMOGENEOUS:
            is_activation = name in _ACTIVATIONS and args[0].is_floating_point()
            size = float(args[0].detach().double().square().mean().sqrt()) if is_activation else None
            return Step(path, name, scales, must_agree=True, size=size), Scale()
        if name in ("mul", "div") and len(args) > 1:
            return self._product(path, name, args, kinds, scales)
        if name in _MATRIX or name == "convolution":
            return self._matrix_product(path, name, args, kwargs, kinds)
        if name in ("sum", "linalg_vector_norm"):
            at = 1 if name == "sum" else 2
            count = _sizes(args[0], args[at] if len(args) > at else kwargs.get("dim"))
            step = Step(path, name, scales, summed=count) if name == "sum" else Step(path, name, scales, length=count)
            return step, self.scale(args[0]).plus(self._own(step))
        power = float(args[1]) if name == "pow" and isinstance(args[1], int | float) else _POWERS.get(name)
        if power is not None:
            return Step(path, name, scales), self.scale(args[0]).times(power)
        if name in _ADDING:
            added = [arg for arg in args if isinstance(arg, int | float) or _is_numeric(arg)]
            is_known = all(
                is_there for arg, is_there in zip(args, known, strict=True) if any(arg is one for one in added)
            )
            return (
                self._sum(path, name, added)
                if is_known
                else (Step(path, name, scales, must_agree=True), _first(scales))
            )
        if name.endswith("_like") or name.startswith("new_"):
            return Step(path, name), Scale()
        is_linear = name in _LINEAR or (name == "constant_pad_nd" and not any(args[2:3]))
        return Step(path, name, scales, opaque=() if is_linear and len(scales) < 2 else scales), _first(scales)

    def _own(self, step: Step) -> Scale:
        """The scale of the number that the next step multiplies with."""
        return Scale.of_step(len(self.taken)) if step.log else Scale()

    def _sum(self, path: str, name: str, added: Sequence[Tensor]) -> tuple[Step, Scale]:
        """Of features that are added, or joined, which have to have one scale."""
        scales = tuple(map(self.scale, added))
        return Step(path, name, scales, equal=tuple((scales[0], one) for one in scales[1:])), _first(scales)

    def _norm(self, path: str, name: str, args: Sequence[Any], scales: tuple[Scale, ...]) -> tuple[Step, Scale]:
        at = (2, 3) if name in ("native_layer_norm", "_fused_rms_norm") else (1, 2)
        gain, shift = (args[n] if n < len(args) and isinstance(args[n], Tensor) else None for n in at)
        made = Scale() if gain is None else self.scale(gain)
        equal = () if shift is None else ((made, self.scale(shift)),)
        return Step(path, name, scales, equal=equal, opaque=scales[:1]), made  # it adds eps to what it divides by

    def _product(
        self, path: str, name: str, args: Sequence[Any], kinds: Sequence[str | None], scales: tuple[Scale, ...]
    ) -> tuple[Step, Scale]:
        sign = 1.0 if name == "mul" else -1.0
        if kinds[0] and kinds[1]:
            factors = self.scale(args[0]), self.scale(args[1]).times(sign)
            return Step(path, name, scales), _multiplied(factors, kinds[:2])
        is_first = kinds[0] is not None
        factor = _number(args[1] if is_first else args[0])
        own = self.scale(args[0 if is_first else 1]).times(1.0 if is_first else sign)
        if not factor:
            return Step(path, name, scales), own
        step = Step(path, name, scales, number=factor ** (sign if is_first else 1.0))
        return step, own.plus(self._own(step))

    def _matrix_product(
        self, path: str, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], kinds: Sequence[str | None]
    ) -> tuple[Step, Scale]:
        at = _MATRIX.get(name, 0)
        left, right = args[at : at + 2]
        scales = self.scale(left), self.scale(right)
        factor = _number(kwargs.get("alpha", 1.0)) or 1.0
        are_features = all(_is_made(scale, kind) for scale, kind in zip(scales, kinds[at : at + 2], strict=True))
        summed = left.shape[-1] if are_features and name != "convolution" else 1
        step = Step(path, name, scales, number=factor, summed=summed)
        made = _multiplied(scales, kinds[at : at + 2]).plus(self._own(step))
        added = args[2] if name == "convolution" else args[0] if at and kwargs.get("beta", 1) else None
        return replace(step, equal=((made, self.scale(added)),) if isinstance(added, Tensor) else ()), made


def _multiplied(scales: tuple[Scale, Scale], kinds: Sequence[str | None]) -> Scale:
    """Of a product of features with features, or of features with a weight, which is then the last one."""
    found = scales[0].plus(scales[1])
    weights = [scale for scale, kind in zip(scales, kinds, strict=True) if not _is_made(scale, kind)]
    return replace(found, last=weights[0].last) if len(weights) == 1 else found


def _is_made(scale: Scale, kind: str | None) -> bool:
    """Whether a factor is features, or was made like them of parameters alone, as the queries of a latent are."""
    return kind == "data" or (kind == "weight" and len(scale.weights) > 1)


def _first(scales: Sequence[Scale]) -> Scale:
    return next(filter(None, scales), Scale())


def _is_numeric(argument: Any) -> bool:
    return isinstance(argument, Tensor) and (argument.is_floating_point() or argument.is_complex())


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
