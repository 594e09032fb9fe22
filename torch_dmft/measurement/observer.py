"""Observer: sees how a network is trained, and holds what it is told about it against what happens."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from torch_dmft.core.errors import InvalidInputError, NotRecordedError
from torch_dmft.core.listed import listed
from torch_dmft.core.loss import Loss, loss_name, loss_print
from torch_dmft.core.prints import prints_agree
from torch_dmft.core.sight import NUMBERS, Sight
from torch_dmft.core.spread import gathered, require_readable, reshard, several_processes, whole
from torch_dmft.core.torch_private import backward_pass, parameters_of
from torch_dmft.core.training import Training
from torch_dmft.measurement.constancy import Constancy
from torch_dmft.measurement.gradient_check import is_due
from torch_dmft.measurement.gradient_watch import GradientWatch
from torch_dmft.measurement.known_rows import KnownRows
from torch_dmft.measurement.optimizer_states import begins_anew, states_of, waiting_gradients
from torch_dmft.measurement.probe import Probe
from torch_dmft.measurement.rows import TrainingSet, all_rows
from torch_dmft.measurement.schedule import Schedule
from torch_dmft.measurement.step_hooks import step_hooks
from torch_dmft.measurement.subject import Subject
from torch_dmft.measurement.untouched import Untouched
from torch_dmft.parameterization import Plan
from torch_dmft.parameterization.start import starts_of

_TRAINED = 30.0
"""Mean square of the outputs, in units of its expectation for random readout weights, that these have once in ten million."""


class Observer:
    """Sees how a network is trained.

    Before every step it looks at the optimizers and notes the rows of the step. What it is told or takes for granted it holds
    against what happens: between two steps nobody changes a weight; the gradients that an optimizer is given are those of the
    loss on the rows of the step (at some steps, ``is_due``); the forward pass stays what it is; the network was not trained
    before. What does not hold becomes a note or a doubt of the ``Training``.

    Args:
        subject: the network.
        probe: its training rows are the training set, if no other is known.
        loss: of the run.
        data: the training set, if it is another.
        temperature: of Langevin noise, which may be anywhere: gradients and weights are then not checked.
        schedule: which steps are recorded.
    """

    def __init__(
        self,
        subject: Subject,
        probe: Probe,
        loss: Loss,
        *,
        data: TrainingSet | None,
        temperature: float,
        schedule: Schedule,
    ) -> None:
        self.subject = subject
        self.rows = KnownRows(probe, data)
        self._probe, self._loss, self._temperature = probe, loss, temperature
        self._schedule = schedule
        self._is_lazy = any(getattr(module, "keeps_what_it_reveals", False) for module in subject.model.modules())
        self._sight: Sight | None = None
        self._starts: dict[str, str] = {}
        self._slopes = GradientWatch()
        self._weights, self._gradients, self._states = Untouched(), Untouched(), Untouched()
        self._notes: dict[str, None] = {}
        self._constancy = Constancy(subject, probe, loss, self._note)

    @property
    def has_seen(self) -> bool:
        """Whether any optimizer was seen."""
        return self._sight is not None

    # Watching

    def meet(self, optimizers: tuple[Optimizer, ...], *, first: bool) -> None:
        """Look at the optimizers that train the network from now on.

        Args:
            optimizers: all of them.
            first: whether no step was taken yet.

        Raises:
            InvalidInputError: if they train none of its parameters, or the model was changed after it was wrapped.
            UnsupportedModelError: if no process has its parameters as a whole.
        """
        require_readable(self.subject.model)
        reshard(self.subject.model)
        sight = Sight(self.subject.plan, optimizers)
        if self._sight is not None:
            sight.goes_on(self._sight)
        elif first:
            with whole(self.subject.model):
                self._starts = starts_of(self.subject.plan, untrained=True)
            if any(len(optimizer.state) for optimizer in optimizers):  # of momentum, or Adam's
                self._note("optimizers that had taken steps before the first record")
        self._sight = sight
        _warn_of_odd_rates(Training.seen(sight), self.subject.plan)

    @contextmanager
    def watching(self, optimizers: tuple[Optimizer, ...], after_step: Callable[[], None]) -> Iterator[None]:
        """Watch every step in the body. With several optimizers a step is over when each of them has stepped.

        Args:
            optimizers: those of ``meet``.
            after_step: called when a step is over.
        """
        named: dict[str, Tensor] = {}

        def arrives() -> None:
            named.clear()
            named.update(parameters_of(self.subject.model))
            if is_steady:
                self._weights.seen_again(named)
                self._states.seen_again(states_of(named, optimizers))

        def begins(optimizer: Optimizer) -> None:
            assert self._sight is not None  # they met
            step = self._sight.steps
            self._sight.look(named)
            self._constancy.look_at_rule()
            self._constancy.look_at_dropout()
            if step and begins_anew(optimizers):
                self._note("momentum that begins anew in the middle of the run")
            waiting = self.rows.waiting
            self._hold_gradients(step, optimizers, self.rows.step(), waiting)
            # Within a backward pass gradients come one by one.
            self._slopes.meets(optimizers if self._slopes.within is None else [optimizer])
            if self._slopes.within is None:
                self._slopes.ends(step)
            if is_due(step, last=step, recorded=False):
                self._look_at_function()
            if len(optimizers) > 1 and self._slopes.within is None:
                self._gradients.left(waiting_gradients(named, *optimizers))

        def joins(optimizer: Optimizer) -> None:
            if self._slopes.within is None:
                self._gradients.seen_again(waiting_gradients(named, optimizer))
            elif self._slopes.within == backward_pass():
                self._slopes.meets([optimizer])
            else:
                self._note("optimizers that step by gradients of different backward passes")

        def stepping_is_done() -> None:
            assert self._sight is not None  # they met
            self._slopes.ends(self._sight.steps - 1)
            if is_steady:
                self._weights.left(named)
                self._states.left(states_of(named, optimizers))

        # Noise may go into the weights, and a lazily sampled network grows when it is looked at.
        is_steady = not self._temperature and not self._is_lazy
        arrives()
        self._look_at_function()
        if is_steady:
            self._weights.left(named)
        with step_hooks(
            optimizers,
            arrives=arrives,
            begins=begins,
            joins=joins,
            stepping_is_done=stepping_is_done,
            ends=after_step,
            uneven=lambda: self._note("optimizers that step at different times"),
        ):
            steps = self._sight.steps if self._sight is not None else 0
            yield
            if self._sight is not None and self._sight.steps == steps and is_steady:
                self._look_for_unseen_steps(optimizers)
            self._look_at_function()
            if self.rows.training_set is not None and self._constancy.has_seen_data:
                self._constancy.look_at_data(self.rows.training_set)

    def _note(self, text: str) -> None:
        self._notes[text] = None

    def _look_at_function(self) -> None:
        if not self._is_lazy:
            self._constancy.look_at_function()

    def _look_for_unseen_steps(self, optimizers: tuple[Optimizer, ...]) -> None:
        """Say that weights moved while none of the optimizers stepped."""
        before = self._weights.changed
        self._weights.seen_again(dict(self.subject.model.named_parameters()))
        if self._weights.changed != before:
            names = listed([type(optimizer).__name__ for optimizer in optimizers])
            warnings.warn(
                f"The weights moved, but no step of {names} was seen, so that nothing was recorded of it. Remedy: attach the "
                "recorder to the optimizer whose step() the training calls.",
                stacklevel=5,
            )

    def _hold_gradients(self, step: int, optimizers: tuple[Optimizer, ...], rows: Tensor | None, waiting: int) -> None:
        """Hold the gradients of a step against those of the loss, if they are to be looked at."""
        kind = waiting, 0 if rows is None else len(rows)
        due = self._slopes.begins(step, kind, recorded=self._schedule(step))
        known = self._sight is not None and self._sight.is_known
        if not known or self._is_lazy or self._temperature or not due or (rows is None and self.rows.noted):
            return
        data = self.rows.training_set
        if data is None or (rows is not None and int(rows.max()) >= len(data)):
            return  # rows of a training set that is not known
        try:
            inputs, given = data.rows(rows)
        except Exception:  # items that are no fixed pairs of numbers; training goes on
            return
        self._constancy.look_at_data(data)
        self._slopes.hold_against(step, self.subject, optimizers, self._loss, inputs, given)

    def check_start(self, outputs: Tensor, forward: float) -> None:
        """Note a network whose outputs at step 0 are not those of a random readout: it was trained before.

        Args:
            outputs: ``(sample, output)``.
            forward: the mean diagonal of the readout's Phi.
        """
        subject = self.subject
        readout = subject.architecture.readout
        if self._is_lazy or subject.run is not subject.model or readout.kind != "linear":
            return
        weight = gathered(subject.model.get_parameter(readout.weight).detach())
        random = float(weight.double().square().mean()) * readout.fan_in * forward
        ratio = float(outputs.double().square().mean()) / random if random else 0.0
        if ratio > _TRAINED:
            self._note(
                f"outputs that at step 0 are {ratio**0.5:.0f} times those of a random readout: it was trained before"
            )

    # What was seen

    def training(self, outputs: int) -> Training:
        """How the network was trained so far.

        Args:
            outputs: C.

        Raises:
            NotRecordedError: if no optimizer was attached yet.
        """
        if self._sight is None:
            raise NotRecordedError(
                "No optimizer was seen yet.",
                got="a recorder that was never attached",
                remedy="train inside `with recorder.attach(optimizer):`",
            )
        noted, targets, data = self.rows.noted, self._probe.targets, self.rows.training_set
        batches, is_probe = self.rows.batches if noted else None, self.rows.data is None
        off = self._slopes.wrong
        # Rows that were noted without a training set are of the probe's rows, if their gradients were.
        knows_data = data is not None and (not is_probe or not noted or bool(self._slopes.errors))
        cannot_be = (
            self._is_lazy
            or targets is None
            or self._temperature > 0
            or (noted and bool(self.subject.architecture.train_differs))
        )
        is_checked = bool(self._slopes.errors) or cannot_be or not self._sight.steps or (noted and self.rows.is_told)
        doubt = ""
        if off:
            step, error = next(iter(off.items()))
            where = ("the rows noted" if noted else "all training rows") + (" of the probe" if is_probe else "")
            where += " by this one of several processes" if noted and several_processes() else ""
            doubt = f"at step {step} the gradients were not those of {loss_name(self._loss)} on {where} (off by {error:.0%})"
        elif noted and batches is None:
            doubt = "some steps were not noted"
        elif not is_checked and (knows_data or not noted):
            random = bool(self.subject.architecture.train_differs)
            doubt = "gradients of random masks cannot be checked" if random else "no gradients could be checked"
        return Training.seen(
            self._sight,
            gamma0=self.subject.gamma0,
            scheme=self.subject.plan.scheme,
            starts=self._starts,
            loss=loss_name(self._loss) if targets is not None else "",
            loss_print=loss_print(self._loss, outputs, targets, rows=0 if data is None else len(data))
            if targets is not None
            else (),
            data_print=data.print if data is not None and knows_data and not (is_probe and doubt) else (),
            batches=all_rows(batches, len(data)) if data is not None and knows_data else batches,
            batches_known=not doubt,
            doubt=doubt,
            rule=(self._constancy.rule or self.subject.plan.learns_by)[0],
            rho=(self._constancy.rule or self.subject.plan.learns_by)[1],
            temperature=self._temperature,
            notes=tuple(self._all_notes(doubt if off and noted and not is_probe else "")),
            assumptions=("data",) * self.rows.is_told + ("rows beside noise",) * (self._temperature > 0 and not noted),
        )

    def _all_notes(self, doubt: str) -> Iterator[str]:
        yield from self._notes
        if self.rows.is_mixed:
            yield "batches of more than one training set"
        if self._weights.changed:
            yield f"weights that were changed between steps ({listed(self._weights.changed)})"
        if self._states.changed:
            yield f"momenta or other states of optimizers that were changed between steps ({listed(self._states.changed)})"
        if self._gradients.changed:
            yield f"optimizers that step by gradients of different backward passes ({listed(self._gradients.changed)})"
        if doubt:
            yield doubt

    def tell(self, data: TrainingSet) -> None:
        """Take a training set that was not known while the network was trained.

        Raises:
            InvalidInputError: if it differs from what is known of the training set.
        """
        if not self.rows.tell(data, checked=bool(self._slopes.errors)):
            self._slopes.errors = {}  # gradients were compared with those of other rows

    def state_dict(self) -> dict[str, Any]:
        """Everything seen, as plain containers."""
        return {
            "sight": None if self._sight is None else self._sight.state_dict(),
            "rows": self.rows.state_dict(),
            "starts": dict(self._starts),
            **self._slopes.state_dict(),
            "weights": self._weights.state_dict(),
            "gradients": self._gradients.state_dict(),
            "states": self._states.state_dict(),
            "notes": list(self._notes),
            **self._constancy.state_dict(),
            "plan": [self.subject.gamma0, self.subject.plan.scheme, *self.subject.plan.functions],
            "fan_ins": self._fan_ins(),
            "probe_print": self._probe.print,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what another observer of the same network saw.

        Raises:
            InvalidInputError: if the width, the plan, the probe or the training set is another.
        """
        fan_ins, plan = self._fan_ins(), [self.subject.gamma0, self.subject.plan.scheme, *self.subject.plan.functions]
        other = {name: size for name, size in state.get("fan_ins", fan_ins).items() if fan_ins.get(name) != size}
        if other:
            raise InvalidInputError(
                "The checkpoint is of a run at another width.",
                got=listed([f"{name} with fan-in {size}, here {fan_ins.get(name)}" for name, size in other.items()]),
                remedy="load it into a recorder of a model of its own width",
            )
        if state["plan"] != plan or not prints_agree(state["probe_print"], self._probe.print):
            raise InvalidInputError(
                "The checkpoint is of a run of another plan or on another probe.",
                got=f"{state['plan']} and {plan}" if state["plan"] != plan else "other inputs of the probe",
                remedy="build plan, probe and recorder as they were before loading",
            )
        self.rows.load_state_dict(state["rows"])
        self._starts, self._notes = dict(state["starts"]), dict.fromkeys(state["notes"])
        self._constancy.load_state_dict(state)
        self._slopes.load_state_dict(state)
        self._weights.load_state_dict(state["weights"])
        self._gradients.load_state_dict(state["gradients"])
        self._states.load_state_dict(state["states"])
        if state["sight"] is not None:
            self._sight = Sight.saved(self.subject.plan, state["sight"])

    def _fan_ins(self) -> dict[str, int]:
        return {rule.name: rule.fan_in for rule in self.subject.plan.rules}

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the parameters that are not trained, as far as was seen."""
        return frozenset() if self._sight is None else frozenset(self._sight.frozen)


def _warn_of_odd_rates(training: Training, plan: Plan) -> None:
    """Say that an optimizer was built from other groups than its plan's."""
    if not training.exceptions or training.kinds or plan.scheme == "standard" or training.optimizer not in NUMBERS:
        return
    lr = training.rate
    kind = training.optimizer.lower()
    warnings.warn(
        f"The optimizer's settings are not those of plan.param_groups(lr, optimizer={kind!r}): with the base rate {lr}, "
        f"{training.traits['groups']}. Measured and predicted are these settings as they are.",
        stacklevel=5,
    )
