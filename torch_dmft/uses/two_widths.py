"""The roles of a model's parameters by comparing two instances of different width: what differs is a width.

One instance cannot say which of its sizes grow. Two can: an axis of a weight whose size differs is a width, and the operators
that use the weight say over which axis it sums. That settles the role of every weight whatever module it is in, fixed inner
sizes (the rank of LoRA, the code of an autoencoder, a gate) included, and shows numbers in the forward pass that depend on
the width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_dmft.architecture import Architecture, Attribute
from torch_dmft.core.errors import InvalidInputError, Place, UnsupportedModelError
from torch_dmft.core.listed import listed
from torch_dmft.core.undisturbed import all_graded
from torch_dmft.uses.balance import Imbalance
from torch_dmft.uses.folds import Balance
from torch_dmft.uses.forward_check import Instance, grown
from torch_dmft.uses.outputs import Example, moved
from torch_dmft.uses.ownership import are_alike
from torch_dmft.uses.passes import Seen, draws_in_train_mode, prepared, see
from torch_dmft.uses.two_seen import Comparison

_FAR = 1.5
"""The factor between two widths from which on a power of the width shows itself beside chance."""

REFUSAL = "This model cannot be scaled by comparing two widths:"


def by_two_widths(
    model: nn.Module,
    run: nn.Module,
    other: nn.Module,
    other_run: nn.Module,
    inputs: Example,
    *,
    checks_sizes: bool = True,
) -> Architecture:
    """The architecture of a model, with the roles that follow from a second instance of it at another width.

    Args:
        model: the model; it is left as it was.
        run: maps the inputs to its outputs.
        other: the same model at another width.
        other_run: maps the inputs to the outputs of that.
        inputs: what both are run on.
        checks_sizes: whether features must be seen to have one size at both widths.

    Raises:
        UnsupportedModelError: if a parameter cannot be scaled, or a number in the forward pass depends on the width.
        InvalidInputError: if they are not one model at two widths, or fail on the inputs.
    """
    _require_one_model(model, other)
    one, two = _see(model, run, inputs), _see(other, other_run, inputs)
    if not are_alike(one.taken, two.taken) or _steps(one) != _steps(two):
        raise UnsupportedModelError(REFUSAL, [_first_difference(one, two)])
    comparison = Comparison(model, other, one, two)
    places = comparison.places()
    balanced = comparison.balance(one, two)
    attributes = comparison.own_scales(balanced.left)
    if attributes:
        with _set(model, [first for first, _ in attributes]), _set(other, [second for _, second in attributes]):
            balanced = comparison.balance(_see(model, run, inputs), _see(other, other_run, inputs))
    places += [_scores(found) if found.is_of_scores else found.place() for found in balanced.left]
    if places:
        raise UnsupportedModelError(REFUSAL, places)
    is_far = abs(math.log(comparison.growth)) > math.log(_FAR) - 1e-9
    if checks_sizes and is_far:
        with _ready(model, run), _ready(other, other_run):
            place = grown(
                _instance(model, run, inputs, comparison, balanced, 0),
                _instance(other, other_run, inputs, comparison, balanced, 1),
                comparison.growth,
            )
        if place is not None:
            raise UnsupportedModelError(REFUSAL, [place])
    found = comparison.architecture(balanced)
    close = (
        f"the two widths differ by a factor of {comparison.growth:.3g} only: whether features have one size at both was not "
        f"looked at; a factor of {_FAR} or more tells"
    )
    return replace(
        found,
        notes=found.notes if is_far else (*found.notes, close),
        attributes=tuple(first for first, _ in attributes),
        train_differs=draws_in_train_mode(run, inputs),
    )


def _see(model: nn.Module, run: nn.Module, inputs: Example) -> Seen:
    given = moved(inputs, next(model.parameters()).device)
    with _ready(model, run):
        return see(model, run, given, notes_steps=True)


@contextmanager
def _ready(model: nn.Module, run: nn.Module) -> Iterator[None]:
    with prepared(model, run), all_graded(model), sdpa_kernel(SDPBackend.MATH):
        yield


def _instance(
    model: nn.Module, run: nn.Module, inputs: Example, comparison: Comparison, balanced: Balance, which: int
) -> Instance:
    given = moved(inputs, next(model.parameters()).device)
    values = comparison.fixed() if which else {}
    shifts = comparison.shifts(which, balanced)
    return Instance(model, run, given, comparison.laws(which, balanced.folds), values, shifts)


def _steps(seen: Seen) -> list[tuple[str, str]]:
    return [(step.path, step.operator) for step in seen.taken.steps]


def _require_one_model(model: nn.Module, other: nn.Module) -> None:
    names, others = ([name for name, _ in one.named_parameters()] for one in (model, other))
    if names != others:
        different = sorted(set(names) ^ set(others))
        raise InvalidInputError(
            "`wider` must be the same model at another width.",
            got=f"other parameters: {listed(different) or 'in another order'}",
            remedy="let the width change sizes only",
        )
    if all(a.shape == b.shape for a, b in zip(model.parameters(), other.parameters(), strict=True)):
        raise InvalidInputError(
            "`wider` must be the model at another width.",
            got="parameters of the same shapes",
            remedy="build the second instance with other widths",
        )


def _first_difference(one: Seen, two: Seen) -> Place:
    path = next((a[0] for a, b in zip(_steps(one), _steps(two), strict=False) if a != b), "")
    remedy = "let the width change sizes only, and no count that is 1 (of heads, groups, windows), which takes a way of its own"
    return Place(path or "(model)", "the forward pass takes other steps at the other width", remedy)


def _scores(found: Imbalance) -> Place:
    sizes = [one.summed for one, _ in found.products]
    reason = (
        f"scores are dot products over {sizes[0]} neurons divided by their square root, and no weight can hold the factor that "
        "is missing: what makes queries and keys is used elsewhere, too, or norms without gains stand behind it"
    )
    remedy = (
        "let the number of heads grow with the width at a fixed size of heads; or, if it is your own code, divide by the size "
        "of a head instead of its root"
    )
    return Place(found.path or "(model)", reason, remedy)


@contextmanager
def _set(model: nn.Module, attributes: Sequence[Attribute]) -> Iterator[None]:
    with ExitStack() as stack:
        for one in attributes:
            module = model.get_submodule(one.path)
            stack.callback(setattr, module, one.name, getattr(module, one.name))
            setattr(module, one.name, one.value)
        yield
