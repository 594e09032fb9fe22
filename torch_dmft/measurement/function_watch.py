"""Whether a model computes the same function of its parameters as before: held against a copy of it from the start."""

from __future__ import annotations

import copy
import warnings
from collections import deque
from contextlib import suppress
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from torch_dmft.core.spread import is_spread
from torch_dmft.core.threads import own_turn
from torch_dmft.core.torch_private import NormBase, has_weights_of_hooks, is_compiled, own_buffers, without_hooks
from torch_dmft.core.undisturbed import undisturbed
from torch_dmft.uses.outputs import Example, count, rows

_ROWS = 32
"""Rows of the probe on which the model and its copy are run."""
_LARGE, _MANY = 2**22, 1000
"""Entries of a tensor, and of a container, that is not copied: it is data."""
_CLOSE = 1e-4
"""Relative difference of outputs that are the same: two passes on one device may round differently."""


class FunctionWatch:
    """Keeps a copy of a model as it was, with the very parameters of the model, and runs both on a few rows.

    Whatever the forward pass depends on beside the parameters is found so: annealed gates, swapped activations, replaced
    modules and methods, buffers. Of buffers those of norm layers are the model's own in the copy too, as training changes them.
    A model that cannot be copied or run twice tells nothing. Hooks are left out: they are watched by the gradients.

    Args:
        model: the model, as it begins to be trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self._before: nn.Module | None = None
        # Compiled again it would be in another mode, and weights that a hook makes are stale without it; those that are spread
        # over processes are other tensors whenever they are gathered.
        if is_spread(model) or any(is_compiled(module) or has_weights_of_hooks(module) for module in model.modules()):
            return
        with suppress(Exception):  # objects that refuse to be made without their arguments
            self._before = _as_it_is(model, {})

    def changed(self, model: nn.Module, inputs: Example) -> tuple[str, ...]:
        """What changed and changes the outputs.

        Args:
            model: the same model now.
            inputs: the probe.

        Returns:
            Names as they are called from the model, ``"gate.alpha"``; ``"(model)"`` for what has no name; () if nothing did.
        """
        if self._before is None:
            return ()
        some = rows(
            inputs, torch.linspace(0, count(inputs) - 1, min(count(inputs), _ROWS), device="cpu").round().long()
        )
        try:
            with own_turn(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                now, before = _outputs(model, some), _outputs(self._before, some)
                if _same(now, before) or not _same(now, _outputs(model, some)):
                    return ()
        except Exception:  # the copy cannot be run beside the model: it was moved, sharded or converted since
            return ()
        return tuple(_names(model, self._before)) or ("(model)",)


def _outputs(model: nn.Module, inputs: Any) -> Tensor:
    with undisturbed(model), without_hooks(model):  # with gradients, of which a model may make its outputs
        return model(inputs).detach().double()


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether outputs are the same up to rounding; what is not finite is so in both."""
    finite = one.isfinite() & other.isfinite()
    if one.shape != other.shape or not torch.equal(one.isfinite(), other.isfinite()):
        return False
    a, b = one[finite], other[finite]
    return bool((a - b).norm() <= _CLOSE * b.norm())


def _as_it_is(value: Any, made: dict[int, Any]) -> Any:
    """A copy of a module with its submodules, containers, tensors and plain objects, but with the same parameters.

    Of other objects only the attributes are copied, and not what is behind these: a trainer holds half the world.
    """
    if id(value) in made:
        return made[id(value)]
    if isinstance(value, MethodType) and id(value.__self__) in made:
        return MethodType(value.__func__, made[id(value.__self__)])
    if isinstance(value, nn.Parameter) or (callable(value) and not isinstance(value, nn.Module)):
        return value
    if isinstance(value, Tensor):
        new: Any = value.detach().clone() if value.numel() <= _LARGE else value
    elif isinstance(value, nn.Module):
        new = value.__class__.__new__(value.__class__)
        made[id(value)] = new
        own = isinstance(value, NormBase) or any(name.startswith(("weight_u", "_u")) for name in own_buffers(value))
        for name, part in vars(value).items():
            vars(new)[name] = dict(part) if name == "_buffers" and own else _as_it_is(part, made)
    elif isinstance(value, dict | list | set | deque) and len(value) <= _MANY:
        new = copy.copy(value)  # of its own kind
        made[id(value)] = new
        new.clear()
        if isinstance(value, dict):
            new.update({key: _as_it_is(part, made) for key, part in value.items()})
        elif isinstance(value, set):
            new.update(value)
        else:
            new.extend(_as_it_is(part, made) for part in value)
    elif type(value) is tuple:
        new = tuple(_as_it_is(part, made) for part in value)
    else:
        new = value
        with suppress(Exception):  # locks, loaders
            new = copy.copy(value) if hasattr(value, "__dict__") else value
    made[id(value)] = new
    return new


def _names(model: nn.Module, before: nn.Module) -> list[str]:
    """What of a model is not what it was, as far as it can be named."""
    then, found = dict(before.named_modules()), []
    for path, module in model.named_modules():
        if path not in then or type(then[path]) is not type(module):
            found.append(path or "(model)")
            continue
        old, new = ({**vars(one), **own_buffers(one)} for one in (then[path], module))
        for name in dict.fromkeys([*new, *old]):
            if name not in _OF_MODULES and not _equal(old.get(name), new.get(name)):
                found.append(f"{path}.{name}" if path else name)
    return found


_OF_MODULES = frozenset(vars(nn.Module()))


def _equal(one: Any, other: Any) -> bool:
    """Whether two attributes are equal, as far as that can be told; objects of no known kind count as equal."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other.to(one))
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(_equal, one, other))
    if hasattr(one, "__dict__") and not callable(one):
        return vars(one).keys() == vars(other).keys() and all(
            _equal(vars(one)[key], vars(other)[key]) for key in vars(one)
        )
    try:
        return one is other or bool(one == other)
    except Exception:  # objects that cannot be compared
        return True
