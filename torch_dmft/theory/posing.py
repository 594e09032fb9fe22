"""From a wrapped model, or a run of it, to the problem that the theory is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_dmft.core.errors import InvalidInputError, UnsupportedModelError, UnsupportedProblemError
from torch_dmft.core.loss import Loss, default_loss
from torch_dmft.core.prints import prints_agree
from torch_dmft.core.training import DRAWN, Training
from torch_dmft.measurement import Probe
from torch_dmft.measurement.rows import TrainingSet, row_places
from torch_dmft.measurement.snapshot import returns_one_number
from torch_dmft.measurement.subject import Subject
from torch_dmft.parameterization import Plan
from torch_dmft.parameterization.centered import Centered
from torch_dmft.parameterization.start import starts_of
from torch_dmft.theory.checks import require_list
from torch_dmft.theory.coverage import readouts_of_own_size
from torch_dmft.theory.engine.course import require_optimizer
from torch_dmft.theory.network import network_in
from torch_dmft.theory.problem import Problem
from torch_dmft.uses.outputs import Example, Runs, Selection, tensors
from torch_dmft.uses.outputs import rows as rows_of


@dataclass(frozen=True)
class OfOneNumber:
    """The loss of a model that returns ``(row,)``, asked about outputs ``(row, 1)``.

    Attributes:
        loss: the loss as the user's loop calls it.
    """

    loss: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of the squeezed outputs."""
        return self.loss(outputs.squeeze(1), targets)


def _refuse_random(plan: Plan) -> None:
    """Refuse a model whose training is random at any width.

    Raises:
        UnsupportedModelError: naming every place.
    """
    if plan.architecture.random:
        what = "A training that is random at any width has no prediction; measuring it goes on:"
        raise UnsupportedModelError(what, plan.architecture.random)


def problem_like(plan: Plan, probe: Probe, training: Training, loss: Loss | None, *, assume_gaussian: bool) -> Problem:
    """The problem that a wrapped model is going to be trained on, all training rows of the probe and nothing else.

    Args:
        plan: the model and its scaling.
        probe: the data.
        training: how it is going to be trained; gamma0, what is frozen and how weights start are the plan's.
        loss: the loss; None for the usual one.
        assume_gaussian: whether to take other starts for Gaussian ones.

    Raises:
        InvalidInputError: if plan or probe have another type, or the probe has no targets.
        UnsupportedProblemError: if there is no limit, or weights start otherwise.
        UnsupportedModelError: if training is random at any width.
    """
    _require_plan_and_probe(plan, probe)
    _refuse_random(plan)
    frozen = tuple(
        rule.name for rule in plan.rules if not rule.lr or not plan.model.get_parameter(rule.name).requires_grad
    )
    seen = replace(training, gamma0=plan.gamma0, frozen=frozen, starts=starts_of(plan, untrained=False))
    inputs, targets, rows = _rows_of_probe(probe, None)
    selection = plan.wrapping.outputs
    return _posed(plan, inputs, targets, rows, seen, loss, selection, assume_gaussian=assume_gaussian)


def problem_of_run(
    subject: Subject,
    training: Training,
    probe: Probe,
    loss: Loss,
    data: TrainingSet | None,
    *,
    batches: int | Sequence[Tensor] | None,
    assume_gaussian: bool,
    generator: torch.Generator | None,
) -> Problem:
    """A run that was recorded, as a question; see ``Recorder.problem``."""
    plan = subject.plan
    _require_plan_and_probe(plan, probe)
    run = subject.run.model if isinstance(subject.run, Runs) else subject.run
    selection = subject.run.selection if isinstance(subject.run, Runs) else None
    if run is not plan.model and not isinstance(run, Centered):
        raise UnsupportedProblemError(
            "The recorded module must be the plan's model, which is what theory knows.",
            got=f"{type(run).__name__} around it",
            remedy="wrap the whole module with parameterize, or record plan.model; measuring goes on with any",
        )
    if isinstance(run, Centered) and plan.architecture.readout.multiplier is not None:
        raise UnsupportedProblemError(
            "A readout with the weights of an embedding does not start at zero in the limit, so that f - f_0 is no limit of f.",
            got=f"a centered model whose {plan.architecture.readout.path} is tied",
            remedy="train the model itself, or untie its readout; measuring goes on with either",
        )
    _refuse_random(plan)
    require_optimizer(training)
    if training.notes:
        raise UnsupportedProblemError(
            "This run did what no theory takes into account.",
            got="; ".join(training.notes),
            remedy=f"record a run without it{_of_loss(*training.notes)}; measuring goes on with anything",
        )
    recorded = subject.kernel_rows
    if data is None:
        inputs, targets, rows = _rows_of_probe(probe, recorded)
    else:
        inputs, targets, rows = _rows_of_data(probe, recorded, data)
    training = _with_batches(training, len(targets), batches, generator, knows_data=data is not None)
    return _posed(
        plan, inputs, targets, rows, training, loss, selection, subject.batch_norm, assume_gaussian=assume_gaussian
    )


def _rows_of_probe(probe: Probe, recorded: Sequence[int] | None) -> tuple[Example, Tensor, Tensor | None]:
    """Training rows of a probe, then its other rows that are recorded; targets; where the recorded rows are."""
    train = probe.train_rows
    kept = torch.arange(len(probe), device="cpu") if recorded is None else torch.tensor(recorded, device="cpu")
    seen = torch.zeros_like(train).index_fill(0, kept, True)
    order = torch.cat([train.nonzero().flatten(), (~train & seen).nonzero().flatten()])
    assert probe.targets is not None  # required
    targets = probe.targets[train.to(probe.targets.device)]
    everything = torch.arange(len(order), device="cpu")
    where = torch.zeros(len(probe), dtype=torch.int64, device="cpu").index_copy(0, order, everything)
    places = where[kept]
    inputs = (
        probe.inputs if torch.equal(order, torch.arange(len(probe), device="cpu")) else rows_of(probe.inputs, order)
    )
    in_order = torch.equal(places, everything)
    return inputs, targets, None if in_order else places.to(tensors(inputs)[0].device)


def _rows_of_data(
    probe: Probe, recorded: Sequence[int] | None, data: TrainingSet
) -> tuple[Example, Tensor, Tensor | None]:
    """Training rows, then the rows of the probe that are not among them; their targets; where the probe's rows are."""
    inputs, targets = data.rows()
    if not isinstance(inputs, Tensor) or not isinstance(probe.inputs, Tensor):
        if not prints_agree(data.print, TrainingSet((probe.inputs, probe.targets)).print):
            raise UnsupportedProblemError(
                "Inputs that are not one tensor can be trained on only where they are the rows of the probe.",
                got=f"a training set of {len(data)} rows beside a probe of {len(probe)}",
                remedy="Probe(inputs, targets) of the whole training set",
            )
        return _rows_of_probe(probe, recorded)
    probe = probe if recorded is None else probe.at_rows(recorded)
    inputs, targets = inputs.to(probe.tensor.device), targets.to(probe.tensor.device)
    if not data.is_fixed:
        raise InvalidInputError(
            "The training set gives another item each time it is asked (random augmentation), so its rows are not known.",
            got=type(data.dataset).__name__,
            remedy="train and predict on a fixed set: recorder.problem(data=(inputs, targets))",
        )
    if inputs.shape[1:] != probe.tensor.shape[1:]:
        raise InvalidInputError(
            "The rows of the training set and of the probe differ in shape.",
            got=f"{tuple(inputs.shape[1:])} and {tuple(probe.tensor.shape[1:])}",
            remedy="a probe of rows as the model sees them in training",
        )
    inputs = inputs.to(probe.tensor.dtype)
    places = row_places(probe.tensor, probe.targets, inputs, targets)
    wrong = [
        row
        for row, (place, train) in enumerate(zip(places, probe.train_rows.tolist(), strict=True))
        if (place is not None) != train
    ]
    if wrong:
        raise InvalidInputError(
            "The probe's `train` must tell which of its rows are in the training set.",
            got=f"row {wrong[0]} is {'' if places[wrong[0]] is not None else 'not '}in it (and {len(wrong) - 1} more)",
            remedy="Probe(inputs, targets, train=mask) with True for rows that are trained on",
        )
    extra = [row for row, place in enumerate(places) if place is None]
    numbers = {row: len(inputs) + number for number, row in enumerate(extra)}
    where = [numbers[row] if place is None else place for row, place in enumerate(places)]
    everything = torch.cat([inputs, probe.tensor[torch.tensor(extra, dtype=torch.int64, device=inputs.device)]])
    return everything, targets, torch.tensor(where, device=inputs.device)


def _with_batches(
    training: Training,
    count: int,
    batches: int | Sequence[Tensor] | None,
    generator: torch.Generator | None,
    *,
    knows_data: bool,
) -> Training:
    """The training with its own batches, or with others in their place."""
    if batches is not None:
        if not knows_data and training.doubt:  # the probe's rows were seen not to be what is trained on
            raise InvalidInputError(
                f"The rows that the run was trained on are not known: {training.doubt}.",
                remedy="recorder.problem(data=(inputs, targets), batches=...) with the training set; the probe's own rows if "
                "they are it",
            )
        found = (
            _drawn(batches, count, training.steps, generator)
            if isinstance(batches, int)
            else require_list("batches", batches)
        )
        return replace(
            training, batches=found, batches_known=True, doubt="", assumptions=(*training.assumptions, "batches")
        )
    if training.batches_known:
        return training
    why = f": {training.doubt}" if training.doubt else ""
    needs = "" if knows_data else "data=(inputs, targets), "
    raise InvalidInputError(
        f"Which rows the steps saw is not known{why}.",
        got=f"a run of {training.steps} steps",
        remedy="train on recorder.batches(loader), or call recorder.batch(rows) before every step; or predict for other "
        f"batches of that size: recorder.problem({needs}batches=64){_of_loss(training.doubt)}",
    )


def _of_loss(*said: str) -> str:
    """What else helps where gradients are not those of the loss that the recorder knows."""
    if not any("gradients were not those of" in one for one in said):
        return ""
    return (
        ". If the loss was another (a factor, a penalty, weights), Recorder(..., loss=) with the whole of it; clipped or "
        "otherwise changed gradients are in no prediction"
    )


def _drawn(size: int, count: int, steps: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    """Batches of this size, drawn epoch by epoch without putting rows back."""
    if not 0 < size <= count:
        raise InvalidInputError(
            "A batch has at least one row, and no more than there are.",
            got=f"batches={size} of {count} rows",
            remedy=f"batches=1 to {count}",
        )
    source = torch.Generator().manual_seed(0) if generator is None else generator
    found: list[Tensor] = []
    while len(found) < steps:
        order = torch.randperm(count, generator=source, device=source.device).cpu()
        found += [order[start : start + size] for start in range(0, count, size)]
    return tuple(found[:steps])


def _posed(
    plan: Plan,
    inputs: Example,
    targets: Tensor,
    rows: Tensor | None,
    training: Training,
    loss: Loss | None,
    selection: Selection | None,
    batch_norm: str = "probe",
    *,
    assume_gaussian: bool,
) -> Problem:
    structured = {name: start for name, start in training.starts.items() if start not in DRAWN}
    if structured and not assume_gaussian and not plan.wrapping.compares:
        raise UnsupportedProblemError(
            "The theory draws Gaussian weights, and these start otherwise.",
            got="; ".join(f"{name}: {start}" for name, start in structured.items()),
            remedy='parameterize(..., init="normal"), or assume_gaussian=True to predict the Gaussian weights of the plan',
        )
    _require_size_of_readout(plan)
    zeros = {name: start for name, start in training.starts.items() if start == "zero"}
    if assume_gaussian and len(zeros) < len(training.starts):
        training = replace(training, starts=zeros, assumptions=(*training.assumptions, "start"))
    loss = default_loss(targets) if loss is None else loss
    if returns_one_number(Runs(plan.model, selection), inputs):
        loss = OfOneNumber(loss)
    network = network_in(plan, inputs, selection, batch_norm)
    return Problem(inputs=inputs, targets=targets, loss=loss, training=training, network=network, probe=rows)


def _require_size_of_readout(plan: Plan) -> None:
    """Refuse a readout that keeps a size of its own, which theory would draw at 1/(gamma0 N); a factory's networks keep it."""
    for name, times in () if plan.wrapping.compares else readouts_of_own_size(plan):
        raise UnsupportedProblemError(
            "The theory draws readouts of size 1/(gamma0 N), and this one keeps another.",
            got=f"{name}, {times:.3g} times as large, with gamma0={plan.gamma0:g}",
            remedy=f'parameterize(..., gamma0={plan.gamma0 / times:.3g}, init="untouched"), or init="keep"',
        )


def _require_plan_and_probe(plan: object, probe: object) -> None:
    if not isinstance(plan, Plan):
        raise InvalidInputError(
            "Expected a Plan, which says how the model is scaled.",
            got=type(plan).__name__,
            remedy="pass the plan: plan = parameterize(model, example_input)",
        )
    if not isinstance(probe, Probe):
        raise InvalidInputError("Expected a Probe.", got=type(probe).__name__, remedy="Probe(inputs, targets)")
    if plan.scheme == "standard":
        raise UnsupportedProblemError(
            "The standard parameterization has no stable infinite-width limit with learning.",
            got='a plan with scheme="standard"',
            remedy='wrap the model with scheme="mean_field" or scheme="ntk"',
        )
    if probe.targets is None:
        raise InvalidInputError(
            "The probe has no targets, so there is nothing to train on.",
            got="targets=None",
            remedy="Probe(inputs, targets)",
        )
