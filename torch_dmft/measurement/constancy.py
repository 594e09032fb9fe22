"""What stays the same while a network is trained, unless somebody changes it: function, rule, dropout, loss, training set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch_dmft.core.listed import listed
from torch_dmft.core.loss import Loss, loss_print
from torch_dmft.core.prints import Print, prints_agree
from torch_dmft.measurement.function_watch import FunctionWatch
from torch_dmft.measurement.probe import Probe
from torch_dmft.measurement.rows import TrainingSet
from torch_dmft.measurement.subject import Subject
from torch_dmft.uses.outputs import moved


class Constancy:
    """Looks now and then at what should stay the same, and notes what did not.

    Each of its looks compares with the first of its kind.

    Args:
        subject: the network.
        probe: what the network's function is looked at on.
        loss: of the run.
        note: called with every change, in words.

    Attributes:
        rule: the learning rule of the first step and its rho; None before it.
    """

    def __init__(self, subject: Subject, probe: Probe, loss: Loss, note: Callable[[str], None]) -> None:
        self.rule: tuple[str, float] | None = None
        self._subject, self._probe, self._loss, self._note = subject, probe, loss, note
        self._function: FunctionWatch | None = None
        self._dropout: list[dict[str, float]] | None = None  # the numbers of its modules
        self._glances: dict[str, Print] = {}  # of the loss and of the training set

    def look_at_function(self) -> None:
        """Note a forward pass that is no longer what it was."""
        model = self._subject.run
        if self._function is None:
            self._function = FunctionWatch(model)
        changed = self._function.changed(model, moved(self._probe.inputs, next(model.parameters()).device))
        if changed:
            self._note(f"a forward pass that changes during the run ({listed(changed)})")

    def look_at_rule(self) -> None:
        """Note by which rule a step is taken."""
        now = self._subject.plan.learns_by
        self.rule = now if self.rule is None else self.rule
        if now != self.rule:
            self._note(f"a learning rule that changes during the run ({self.rule[0]}, {now[0]})")

    def look_at_dropout(self) -> None:
        """Note dropout that is off in a step, or draws otherwise than before."""
        architecture = self._subject.architecture
        if not architecture.averages_out:
            return
        modules = dict(self._subject.model.named_modules())
        own = [modules["" if place.path == "(model)" else place.path] for place in architecture.train_differs]
        if not all(module.training for module in own):
            self._note("steps in evaluation mode, without dropout")
        now = [{name: value for name, value in vars(module).items() if type(value) is float} for module in own]
        self._dropout = now if self._dropout is None else self._dropout
        if now != self._dropout:
            self._note("dropout that changes during the run")

    def look_at_data(self, data: TrainingSet) -> None:
        """Note a loss or a training set that is no longer what it was."""
        outputs = self._subject.architecture.outputs
        for what, now in (
            ("a loss", loss_print(self._loss, outputs, self._probe.targets, rows=len(data))),
            ("a training set", data.glance()),
        ):
            if not prints_agree(self._glances.setdefault(what, now), now):
                self._note(f"{what} that changes during the run")

    @property
    def has_seen_data(self) -> bool:
        """Whether loss and training set were looked at."""
        return bool(self._glances)

    def state_dict(self) -> dict[str, Any]:
        """What was seen that outlasts a process, as plain containers."""
        return {"rule": self.rule, "loss_print": self._glances.get("a loss", ())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what was seen elsewhere."""
        self._glances = {"a loss": tuple(state["loss_print"])} if state["loss_print"] else {}
        rule = state.get("rule")
        self.rule = None if rule is None else (str(rule[0]), float(rule[1]))
