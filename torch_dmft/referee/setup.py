"""A set-up as its author made it: model, optimizers, loss and batches of one width and one seed."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import require_seed, require_whole
from torch_dmft.core.random_state import random_state_kept
from torch_dmft.core.users_functions import called
from torch_dmft.referee.losses import BatchLoss, loss_on_batches
from torch_dmft.referee.random_data import random_batch
from torch_dmft.uses.outputs import moved

Factory = Callable[[int], Any]
"""``factory(width)`` -> model, or (model, optimizer), or (model, optimizer, loss); see ``set_up``."""

Batches = Callable[..., Any] | Iterable[Any]
"""``data(seed)`` or ``data()`` -> batches, or (batches, loss); or the batches themselves; see ``set_up``."""

_MADE = "factory(width) -> model, or (model, optimizer), or (model, optimizer, loss) with loss(model, batch) -> scalar"
_DATA = "a function data(seed) -> batches, or (batches, loss); or a list or a DataLoader of batches"


@dataclass(frozen=True, eq=False)
class Setup:
    """What one width and one seed are trained with.

    Attributes:
        model: as the factory made it.
        optimizers: every one of them steps at every step.
        loss: ``(model, batch)`` -> scalar, what training minimises.
        batches: ``seed`` -> an endless iterator of batches, on the device of the model and the same at every width.
        width: N.
        seed: what initial weights, batches and dropout follow from, together with the width.
        notes: what was chosen for the user, as he gave nothing: one sentence each.
    """

    model: nn.Module
    optimizers: tuple[Optimizer, ...]
    loss: BatchLoss
    batches: Callable[[int], Iterator[Any]]
    width: int
    seed: int
    notes: tuple[str, ...]

    def draws(self) -> AbstractContextManager[None]:
        """The random state that this set-up trains in (dropout), a function of its width and seed; put back afterwards."""
        return random_state_kept({one.device for one in self.model.parameters()}, seed=_key(self.seed, self.width, 1))

    def step(self, batch: Any) -> float:
        """One step of training on a batch, with every optimizer; returns the loss before it."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        value = self.loss(self.model, batch)
        if value.requires_grad:
            called("loss", value.backward, remedy="a loss that gradients flow through")
        for optimizer in self.optimizers:
            called("optimizer", optimizer.step, remedy="an optimizer whose step() takes no arguments")
        return float(value.detach())


@checked
def set_up(factory: Factory, width: int, seed: int, data: Batches | None = None) -> Setup:
    """Make the set-up of a width and a seed; the user's random states are put back.

    What the factory draws from the random states of python, numpy or torch is a function of (width, seed). Without an optimizer
    the model's own (``configure_optimizers`` of Lightning) is taken, else Adam at PyTorch's default rate. Without data a batch
    is made of the model's ``example_input()``, ``example_input_array`` or ``dummy_inputs``, else of random rows or tokens that
    fit the first layer, with random targets. Everything that was chosen in this way is in ``notes``.

    Args:
        factory: ``width -> model``, ``(model, optimizer)`` or ``(model, optimizer, loss)``. In place of an optimizer, a list of
            them. A loss is ``loss(model, batch) -> scalar``; one of ``torch.nn`` or ``torch.nn.functional`` is taken of
            (outputs, targets).
        width: N.
        seed: any integer >= 0.
        data: ``data(seed)`` or ``data()``, which returns the batches, any iterable that can be gone through again and again,
            or ``(batches, loss)``; or the batches themselves. A batch is what the loss takes: without a loss
            ``(inputs, targets)``, or a mapping of the arguments of ``forward`` for a model that returns its loss.

    Raises:
        InvalidInputError: if the factory or the data fail, or return anything else.
    """
    require_whole("width", width, at_least=1)
    require_seed("seed", seed)
    with random_state_kept(seed=_key(seed, width, 0)):
        made = called("factory", factory, width, remedy=_MADE)
    model, optimizers, loss, notes = _parts(made)
    device = next(iter(model.parameters())).device
    source, own_loss = _source(data, seed)
    if source is not None:
        of_batch, said = loss_on_batches(model, loss if loss is not None else own_loss)
        notes += said
    else:
        with random_state_kept(seed=_key(seed, 0)):
            batch, of_batch, said = random_batch(model, loss, torch.Generator().manual_seed(_key(seed, 0)))
        source = [batch]
        notes += said

    def batches(seed: int) -> Iterator[Any]:
        for batch in _endless(source, seed):
            yield moved(batch, device)

    return Setup(model, optimizers, of_batch, batches, width, seed, notes)


def is_reproducible(setup: Setup, factory: Factory) -> bool:
    """Whether the factory makes the same initial weights once more, of the same width and seed."""
    with random_state_kept(seed=_key(setup.seed, setup.width, 0)):
        again = _parts(called("factory", factory, setup.width, remedy=_MADE))[0].state_dict()
    first = setup.model.state_dict()
    return first.keys() == again.keys() and all(
        not isinstance(value, Tensor) or torch.equal(value, again[name]) for name, value in first.items()
    )


@checked
def load(name: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; modules of the current folder are found.

    Raises:
        InvalidInputError: if there is none.
    """
    return named(name, "name")


def named(name: str, argument: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; modules of the current folder are found.

    Args:
        name: ``"module:function"``.
        argument: what errors call it.

    Raises:
        InvalidInputError: if there is none.
    """
    module_name, colon, attribute = name.partition(":")
    remedy = "module:function, such as train:make for `def make(width)` in train.py of this folder"
    if not (module_name and colon and attribute):
        what = f"`{argument}` must be a function, named by its module and its name."
        raise InvalidInputError(what, got=repr(name), remedy=remedy)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    if module_name.endswith(".py"):
        module_name = module_name.removesuffix(".py").strip("./").replace("/", ".")
    try:
        found: Any = importlib.import_module(module_name)
    except SystemExit as error:  # its status, often 0, would be taken for an answer
        raise InvalidInputError(
            f"The module of `{argument}`, {module_name!r}, ends the program when it is imported.",
            got=f"sys.exit({error.code!r})",
            remedy='arguments parsed, and networks trained, below `if __name__ == "__main__":`',
        ) from error
    except Exception as error:
        raise InvalidInputError(
            f"The module of `{argument}`, {module_name!r}, cannot be imported from {here}.",
            got=f"{type(error).__name__}: {error}".rstrip(".\n"),
            remedy=remedy,
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, [one for one in vars(found) if not one.startswith("_")], n=3, cutoff=0.4)
            raise InvalidInputError(
                f"The module of `{argument}`, {module_name!r}, has nothing of this name.",
                got=repr(attribute),
                remedy=" or ".join(f"{module_name}:{one}" for one in near) or remedy,
            )
        found = getattr(found, part)
    if not callable(found):
        raise InvalidInputError(f"`{argument}`, {name!r}, must be a function.", got=type(found).__name__, remedy=remedy)
    function: Callable[..., Any] = found
    return function


def _key(*numbers: int) -> int:
    """A seed that follows from several numbers, different for any others."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _parts(made: Any) -> tuple[nn.Module, tuple[Optimizer, ...], Any, tuple[str, ...]]:
    """Model, optimizers, loss and notes of what a factory returned."""
    parts = made if isinstance(made, tuple | list) and not isinstance(made, nn.Module) else (made,)
    if not 1 <= len(parts) <= 3 or not isinstance(parts[0], nn.Module):
        names = [type(part).__name__ for part in parts]
        raise InvalidInputError("`factory` must return a model first.", got=", ".join(names) or "()", remedy=_MADE)
    model, optimizer, loss = (*parts, None, None)[:3]
    if not any(one.requires_grad for one in model.parameters()):
        raise InvalidInputError(
            "The model must have a parameter that is trained.",
            got=f"{sum(1 for _ in model.parameters())} parameters, none of which requires a gradient",
            remedy="requires_grad_(True) for what is trained",
        )
    if loss is not None and (isinstance(loss, type) or not callable(loss)):
        raise InvalidInputError("The loss must be callable.", got=repr(loss)[:80], remedy=_MADE)
    notes: tuple[str, ...] = ()
    if optimizer is None and callable(getattr(model, "configure_optimizers", None)):
        configured = called("configure_optimizers", model.configure_optimizers, remedy="an optimizer")
        optimizer = _configured(configured)
        notes += _UNSTEPPED if _has_schedulers(configured) else ()
    elif optimizer is None:
        optimizer = torch.optim.Adam(one for one in model.parameters() if one.requires_grad)
        notes = ("optimizer: Adam at PyTorch's default rate 0.001 for all parameters, as the factory returns none",)
    optimizers = tuple(optimizer) if isinstance(optimizer, tuple | list) else (optimizer,)
    if not optimizers or not all(hasattr(one, "step") and hasattr(one, "param_groups") for one in optimizers):
        names = [type(one).__name__ for one in optimizers]
        raise InvalidInputError(
            "The second thing that `factory` returns must be an optimizer, or a list of them.",
            got=", ".join(names) or "an empty list",
            remedy=_MADE,
        )
    own = {id(one) for one in model.parameters()}
    if not any(id(one) in own for each in optimizers for group in each.param_groups for one in group["params"]):
        raise InvalidInputError(
            "The optimizer holds no parameter of the model, so that nothing would be trained.",
            remedy="make the optimizer of the parameters of the model that is returned",
        )
    held = {id(one) for each in optimizers for group in each.param_groups for one in group["params"]}
    left = [name for name, one in model.named_parameters() if one.requires_grad and id(one) not in held]
    if left:
        rest = f" and {len(left) - 3} more" if len(left) > 3 else ""
        notes += (f"parameters: no optimizer holds {', '.join(left[:3])}{rest}, so that nothing of them is trained",)
    return model, optimizers, loss, notes


def _configured(made: Any) -> Any:
    """The optimizers among what Lightning's ``configure_optimizers`` returns."""
    if isinstance(made, dict):
        return made["optimizer"]
    if isinstance(made, tuple | list) and made and isinstance(made[0], tuple | list):
        made = made[0]  # (optimizers, schedulers)
    if isinstance(made, tuple | list):
        return [one["optimizer"] if isinstance(one, dict) else one for one in made]
    return made


_UNSTEPPED = ("schedulers: those of configure_optimizers are not stepped, and rates stay what they are at the start",)


def _has_schedulers(made: Any) -> bool:
    """Whether Lightning's ``configure_optimizers`` returns schedulers beside optimizers."""
    if isinstance(made, tuple | list) and len(made) == 2 and isinstance(made[1], tuple | list):
        return bool(made[1])
    several = made if isinstance(made, tuple | list) else (made,)
    return any(isinstance(one, dict) and one.get("lr_scheduler") is not None for one in several)


def _source(data: Batches | None, seed: int) -> tuple[Callable[[int], Iterable[Any]] | Iterable[Any] | None, Any]:
    """Where batches come from, a function of the seed or an iterable; and the loss that came with them."""
    if data is None:
        return None, None
    if not callable(data):
        _require_batches(data)
        return data, None
    takes_seed = _takes_an_argument(data)

    def call(seed: int) -> Any:
        with random_state_kept(seed=_key(seed, 0)):
            return called("data", data, *([seed] if takes_seed else []), remedy=_DATA)

    first = call(seed)
    has_loss = isinstance(first, tuple) and len(first) == 2 and callable(first[1]) and not isinstance(first[1], type)
    _require_batches(first[0] if has_loss else first)

    def source(seed: int) -> Iterable[Any]:
        made = call(seed)
        batches: Iterable[Any] = made[0] if has_loss else made
        return batches

    return source, first[1] if has_loss else None


def _takes_an_argument(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(0)
    except TypeError:
        return False
    except ValueError:  # a builtin that tells nothing
        return True
    return True


def _holds_no_batch(batches: Any) -> bool:
    """Whether the first thing in a list is nothing that a loss could be taken of."""
    is_list = isinstance(batches, list | tuple) and len(batches) > 0
    return is_list and not isinstance(batches[0], Tensor | tuple | list | Mapping)


def _require_batches(batches: Any) -> None:
    if (
        isinstance(batches, Tensor | str | dict | np.ndarray)
        or not hasattr(batches, "__iter__")
        or _holds_no_batch(batches)
    ):
        raise InvalidInputError(
            "`data` must give batches to go through.",
            got=type(batches).__name__,
            remedy=f"{_DATA}; [batch] for one batch",
        )


def _endless(source: Callable[[int], Iterable[Any]] | Iterable[Any], seed: int) -> Iterator[Any]:
    """Batches, again from the start when they end; what is drawn for them follows from the seed and the batch's number."""
    number = 0
    while True:
        with random_state_kept(seed=_key(seed, number, 2)):
            passing = iter(source(seed) if callable(source) else source)
        first = number
        while True:
            with random_state_kept(seed=_key(seed, number, 3)):
                try:
                    batch = next(passing)
                except StopIteration:
                    break
            number += 1
            yield batch
        if number == first:
            raise InvalidInputError(
                "`data` must give batches each time that it is gone through.",
                got=f"none after {number} batches",
                remedy="a list, a DataLoader, or a function that makes a new iterator when it is called",
            )
