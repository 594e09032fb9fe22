"""Checks of a problem: each mistake is refused when the problem is posed, with its remedy."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_dmft.core.arguments import require_dense, require_finite
from torch_dmft.core.classes import is_column, places_in
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.loss import require_loss
from torch_dmft.core.numbers import LARGEST, SMALLEST, require_number, require_whole
from torch_dmft.core.series import series
from torch_dmft.core.sight import NUMBERS
from torch_dmft.core.training import Training
from torch_dmft.uses.outputs import Example, named_tensors

if TYPE_CHECKING:
    from torch_dmft.theory.problem import Problem

_FLOATS = (torch.float32, torch.float64)
_KINDS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "muon": "Muon"}
"""Names of optimizers, and of their classes in torch.optim."""
_MOST_CLASSES = 2**16
"""Largest number of classes, each of which is an output; larger class numbers are row numbers or codes."""


def check_problem(problem: Problem) -> None:
    """Refuse invalid data, numbers, batches, optimizers and losses.

    Raises:
        InvalidInputError: for the first mistake, with its remedy.
    """
    if problem.network.plan is None or (isinstance(problem.inputs, Tensor) and problem.inputs.is_floating_point()):
        _require_tensor("inputs", problem.inputs)
        check_inputs(problem.tensor)
        if not bool(problem.tensor.any()):
            raise InvalidInputError(
                "Some inputs must differ from zero.", got=f"{problem.samples} rows", remedy="rows that differ"
            )
    else:
        _check_any_inputs(problem.inputs)
    check_targets(problem.targets)
    if len(problem.targets) > problem.samples or problem.samples < 2:
        raise InvalidInputError(
            "A problem needs at least two rows of inputs, and at most one target for each.",
            got=f"{len(problem.targets)} targets, {problem.samples} inputs",
            remedy="one row of inputs for every target, and a test row beside a single training row",
        )
    _check_fit(problem.targets, problem.outputs)
    _check_batches(problem)
    _check_probe(problem)
    require_loss(problem.loss)


def check_training(
    lr: object,
    steps: object,
    gamma0: object,
    momentum: object,
    weight_decay: object,
    *,
    temperature: object,
    optimizer: object,
    **numbers: object,
) -> None:
    """Refuse invalid numbers and optimizers.

    Raises:
        InvalidInputError: for the first mistake, with its remedy.
    """
    require_number("gamma0", gamma0, at_least=SMALLEST, remedy="gamma0 > 0; the lazy limit of 0 is solvers.StaticNTK()")
    require_whole("steps", steps, at_least=0)
    _check_rates(lr, int(steps))  # type: ignore[call-overload]
    if momentum is not None:
        require_number("momentum", momentum, at_least=0, below=1)
    require_number("weight_decay", weight_decay, at_least=0)
    require_number("temperature", temperature, at_least=0, remedy="temperature=0.0: no noise")
    if not isinstance(optimizer, str) or optimizer not in _KINDS:
        raise InvalidInputError(
            "`optimizer` must be the name of one.", got=repr(optimizer), remedy=f"one of {', '.join(_KINDS)}"
        )
    if optimizer == "muon" and temperature:
        raise InvalidInputError(
            "`temperature` must be 0 with Muon: noise in its gradients is no Langevin noise.",
            got=f"temperature={temperature}",
            remedy='temperature=0.0, or optimizer="sgd"',
        )
    if optimizer in ("adam", "adamw") and (momentum or temperature):
        raise InvalidInputError(
            "`momentum` and `temperature` must be 0 with Adam, whose momentum is set by its betas.",
            got=f"optimizer={optimizer!r}, momentum={momentum}, temperature={temperature}",
            remedy='momentum=0.0 and temperature=0.0, or optimizer="sgd"',
        )
    if optimizer == "adam" and weight_decay:
        raise InvalidInputError(
            "`weight_decay` must be 0 with Adam, which normalises it together with the gradient: relative to that it grows "
            "like the square root of the width.",
            got=f"weight_decay={weight_decay}",
            remedy='optimizer="adamw", which decays alike at every width',
        )
    known = NUMBERS[_KINDS[optimizer]]
    for name, value in numbers.items():
        if name not in known or name in ("lr", "maximize"):
            raise InvalidInputError(
                "Expected a setting of the optimizer.",
                got=f"{name}={value!r}",
                remedy=f"one of {', '.join(sorted(set(known) - {'lr', 'maximize', 'momentum', 'weight_decay'}))}",
            )
        if name == "ns_steps":
            require_whole(name, value, at_least=0, at_most=99)
        number = float(value) if isinstance(value, bool) else value
        least = None if name in ("ns_a", "ns_b", "ns_c") else 0
        require_number(name, number, at_least=least, below=1 if name.startswith("beta") else None)
    if optimizer == "sgd" and numbers.get("nesterov") and (not momentum or numbers.get("dampening")):
        raise InvalidInputError(
            "Nesterov's momentum needs momentum > 0 and dampening = 0.",
            got=f"momentum={momentum}, dampening={numbers.get('dampening', 0.0)}",
            remedy="momentum=0.9, nesterov=True",
        )


def _check_rates(lr: object, steps: int) -> None:
    """Refuse learning rates unless they are a number > 0, or a list of one number >= 0 for every step."""
    remedy = "lr > 0, or a list of one rate >= 0 for every step"
    if not isinstance(lr, Tensor | Sequence) or isinstance(lr, str) or (isinstance(lr, Tensor) and lr.ndim == 0):
        require_number("lr", float(lr) if isinstance(lr, Tensor) else lr, above=0, remedy=remedy)
        return
    try:
        rates = torch.as_tensor(lr, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        rates = torch.full((1, 1), torch.nan)
    fine = rates.ndim == 1 and len(rates) >= steps and bool(((rates >= 0) & (rates <= LARGEST)).all())
    if not fine or (steps and not bool(rates[:steps].any())):
        raise InvalidInputError(
            "`lr` must hold one finite rate >= 0 for every step, at least one of them > 0.",
            got=f"{tuple(rates.shape)} rates for {steps} steps",
            remedy=remedy,
        )


def check_inputs(inputs: Tensor, name: str = "inputs") -> None:
    """Refuse inputs unless they are a finite tensor with a sample axis and features.

    Raises:
        InvalidInputError: for the first mistake, with its remedy.
    """
    _require_tensor(name, inputs)
    if inputs.ndim < 2 or inputs.dtype not in _FLOATS or inputs.shape[1:].numel() == 0:
        raise InvalidInputError(
            f"The {name} must be float32 or float64 with a sample axis and at least one feature axis.",
            got=f"shape {tuple(inputs.shape)}, {inputs.dtype}",
            remedy="inputs of shape (sample, feature), inputs.float() of numbers; tokens of a model with an "
            "nn.Embedding, wrapped with parameterize, go into Problem.like(plan, probe, ...)",
        )
    require_finite(name, inputs)
    if not bool(torch.isfinite(inputs.flatten(1).square().sum(1)).all()):
        raise InvalidInputError(
            f"The {name} must be small enough for their squares to be finite.",
            got=f"a number of size {float(inputs.abs().max()):.0e} in {inputs.dtype}",
            remedy="standardise the inputs",
        )


def _check_any_inputs(inputs: Example) -> None:
    """Refuse inputs of a model of any kind unless there are tensors, finite ones."""
    named = named_tensors(inputs)
    if not named:
        raise InvalidInputError(
            "The inputs of a problem must hold a tensor.",
            got=type(inputs).__name__,
            remedy="what forward takes: a tensor, a tuple or a mapping of its arguments",
        )
    require_finite(named[0][0], named[0][1])


def check_targets(targets: Tensor) -> None:
    """Refuse targets unless they are finite floats or classes.

    Raises:
        InvalidInputError: for the first mistake, with its remedy.
    """
    _require_tensor("targets", targets)
    if targets.ndim not in (1, 2) or is_column(targets) or targets.numel() == 0:
        raise InvalidInputError(
            "Targets must be (train, output) or (train,) floats, or (train,) or (train, place) integer classes.",
            got=f"shape {tuple(targets.shape)}, {targets.dtype}",
            remedy="one row for each training row: targets.flatten() of a class for each, targets.flatten(1) of all else",
        )
    require_finite("targets", targets)
    if not targets.is_floating_point() and targets.dtype != torch.int64:
        raise _not_classes(targets, "0, 1, ...")


def count_outputs(targets: Tensor) -> int:
    """C: columns of floats, or the largest class + 1, at every place."""
    if targets.is_floating_point():
        return 1 if targets.ndim == 1 else targets.shape[1]
    return (places_in(targets) or 1) * (int(targets.max()) + 1)


def require_generator(generator: object) -> None:
    """Refuse seeds and other sources of randomness.

    Raises:
        InvalidInputError: if it is given and is not a ``torch.Generator``.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InvalidInputError(
            "`generator` must be a torch.Generator or None.",
            got=f"generator={generator!r}",
            remedy="generator=torch.Generator().manual_seed(0)",
        )


def require_list(name: str, values: Sequence[Any]) -> tuple[Any, ...]:
    """The values as a tuple.

    Raises:
        InvalidInputError: if they are a single value.
    """
    try:
        return tuple(values)
    except TypeError:
        raise InvalidInputError(
            f"{name} must be a list.", got=f"{name}={values!r}", remedy=f"{name}=[...], one entry for each"
        ) from None


def _require_tensor(name: str, values: object) -> None:
    if not isinstance(values, Tensor):
        raise InvalidInputError(
            f"The {name} of a problem must be a tensor.", got=type(values).__name__, remedy="torch.as_tensor(...)"
        )
    require_dense(name, values)


def _check_fit(targets: Tensor, outputs: int) -> None:
    """Refuse targets that do not fit the outputs, for which torch would fail late or broadcast."""
    if targets.is_floating_point():
        if count_outputs(targets) != outputs:
            raise InvalidInputError(
                "Float targets need one column per output.",
                got=f"shape {tuple(targets.shape)} for {outputs} outputs",
                remedy="targets of shape (sample, output), or a model with as many outputs",
            )
        return
    places = places_in(targets) or 1
    classes = min(outputs // places, _MOST_CLASSES)
    if int(targets.min()) < 0 or int(targets.max()) >= classes or outputs % places or outputs > _MOST_CLASSES:
        of = f" at each of {places} places of {outputs} outputs" if places > 1 else ""
        raise _not_classes(targets, f"0..{classes - 1}{of}")


def _not_classes(targets: Tensor, numbers: str) -> InvalidInputError:
    return InvalidInputError(
        f"Targets that are not floats must be class numbers {numbers} of type torch.int64.",
        got=f"{targets.tolist()[:8]} of {targets.dtype}",
        remedy="targets.long() for classes, targets.float() for numbers and for one-hot rows",
    )


def _check_probe(problem: Problem) -> None:
    """Refuse a probe that does not select at least two rows."""
    rows = problem.probe
    if rows is None:
        return
    is_index = isinstance(rows, Tensor) and rows.dtype == torch.int64 and rows.ndim == 1 and len(rows) > 1
    if not is_index or int(rows.min()) < 0 or int(rows.max()) >= problem.samples:
        raise InvalidInputError(
            "The probe of a problem must hold at least two row numbers.",
            got=_shown(rows),
            remedy=f"a tensor of integers 0..{problem.samples - 1}, or None for all rows",
        )


def _check_batches(problem: Problem) -> None:
    if problem.batches is None:
        return
    if len(problem.batches) < problem.steps:
        raise InvalidInputError(
            "batches needs one index tensor per step.",
            got=f"{len(problem.batches)} batches for {problem.steps} steps",
            remedy="list the batches of every epoch, in the order of training",
        )
    for step, rows in enumerate(problem.batches):
        if isinstance(rows, Tensor):
            require_dense("batches", rows)
        is_index = isinstance(rows, Tensor) and rows.dtype in (torch.int64, torch.int32) and rows.ndim == 1
        if not is_index or len(rows) == 0 or int(rows.min()) < 0 or int(rows.max()) >= problem.train_samples:
            raise InvalidInputError(
                "A batch must hold row numbers of training rows.",
                got=f"batch {step}: {_shown(rows)}",
                remedy=f"a tensor of integers 0..{problem.train_samples - 1}; mask.nonzero().flatten() of a mask",
            )


def _shown(rows: object) -> str:
    return f"{rows.flatten().tolist()[:8]}, {rows.dtype}" if isinstance(rows, Tensor) else repr(rows)


def check_loss(problem: Problem) -> None:
    """Evaluate the loss once, at outputs of zero, which is where training starts.

    Raises:
        InvalidInputError: if it fails, or its value or its gradient is not finite.
    """
    form = (
        "loss(outputs, targets) -> scalar, with outputs (train, output) and targets alike, or (train,) classes, or "
        "(train, place) classes of outputs (train, place * class)"
    )
    outputs = problem.zeros(problem.samples).requires_grad_()
    with torch.enable_grad():
        try:
            value = problem.training_loss(outputs)
        except Exception as error:
            raise InvalidInputError(
                "The loss must accept the outputs and the targets.", got=f"{error}", remedy=form
            ) from error
        is_one = isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()
        if not is_one or not bool(torch.isfinite(value)):
            raise InvalidInputError("The loss must return one finite number.", got=f"{value}", remedy=form)
        if not value.requires_grad:
            raise InvalidInputError(
                "The loss must depend on the outputs.",
                got=f"{value}",
                remedy="a loss made of torch functions, without detach() or item()",
            )
        (gradient,) = torch.autograd.grad(value, outputs, allow_unused=True)
        of_floats = problem.targets.is_floating_point()  # of a single class the loss is flat, and nothing is learned
        if of_floats and gradient is not None and not bool(gradient.any()) and _is_flat(problem, outputs):
            raise InvalidInputError(
                "The loss must depend on the outputs.",
                got=f"gradients of zero at all outputs, for targets {tuple(problem.targets.shape)} of {problem.targets.dtype}",
                remedy="integer classes for nn.CrossEntropyLoss(): targets.long()",
            )
    if gradient is None or not bool(torch.isfinite(gradient).all()):
        raise InvalidInputError(
            "The loss must have a finite gradient at outputs of zero, where training starts.",
            got=f"{gradient if gradient is None else gradient.flatten().tolist()[:8]}",
            remedy="a loss that is differentiable there, such as nn.MSELoss()",
        )


def _is_flat(problem: Problem, zeros: Tensor) -> bool:
    """Whether a loss is flat elsewhere, too, where it is defined there."""
    some = torch.linspace(-1, 1, zeros.numel(), dtype=zeros.dtype, device=zeros.device).reshape(zeros.shape)
    with suppress(Exception):
        (gradient,) = torch.autograd.grad(problem.training_loss(some.requires_grad_()), some)
        return not bool(gradient.any())
    return False


def checked_training(
    lr: float | Sequence[float] | Tensor,
    steps: int,
    gamma0: float,
    momentum: float | None,
    weight_decay: float,
    batches: Sequence[Tensor] | None,
    *,
    temperature: float,
    optimizer: str,
    **numbers: float | int | bool,
) -> Training:
    """The training with these settings; a momentum of None is torch's default.

    Raises:
        InvalidInputError: for one that is out of range.
    """
    check_training(lr, steps, gamma0, momentum, weight_decay, temperature=temperature, optimizer=optimizer, **numbers)
    name = _KINDS[optimizer]
    given = {"weight_decay": weight_decay, **numbers}
    if momentum is not None and "momentum" in NUMBERS[name]:
        given["momentum"] = momentum
    settings = {**NUMBERS[name], **{key: float(value) for key, value in given.items()}, "lr": series(lr)}
    return Training(
        steps=steps,
        numbers=settings,
        optimizer=name,
        gamma0=gamma0,
        batches=None if batches is None else require_list("batches", batches),
        temperature=temperature,
    )
