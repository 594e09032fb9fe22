"""What users do with right values: calls in an odd order, data and labels of another kind, schedulers, objects that fail."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

import torch_dmft as dmft
from tests.inputs.calls import INPUTS, TARGETS, Set, network
from torch_dmft import comparison, parameterization, theory
from torch_dmft.architecture import Part, Role
from torch_dmft.report import figures

CLASSES = torch.tensor([0, 1, 0, 1])
NOTHING = torch.empty(0, 3)


class ReturnsItsLoss(nn.Module):
    """A model that returns one number for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 16), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.tanh(self.inner(x))).mean()  # type: ignore[no-any-return]


def run(
    a: Set,
    *,
    optimizer: Callable[[dmft.Plan], Any] | None = None,
    scheduler: Any = None,
    steps: int = 2,
    **settings: Any,
) -> dmft.Recorder:
    """A recorder of a short run."""
    plan = a.plan
    recorder = dmft.Recorder(plan, a.probe, **settings)
    stepping = torch.optim.SGD(plan.param_groups(0.1)) if optimizer is None else optimizer(plan)
    scheduled = None if scheduler is None else scheduler(stepping)
    with recorder.attach(stepping):
        for _ in range(steps):
            stepping.zero_grad()
            loss = F.mse_loss(plan.model(INPUTS), TARGETS)
            loss.backward()
            stepping.step()
            if scheduled is not None:
                scheduled.step(*[loss.detach()] * isinstance(scheduled, lr_scheduler.ReduceLROnPlateau))
    return recorder


def wrong_uses(a: Set) -> dict[str, tuple[Callable[[], Any], str]]:
    """Name -> the case, and a word of the error."""
    solvers = dmft.solvers

    def posed(targets: torch.Tensor = TARGETS, **changes: Any) -> dmft.Problem:
        return dmft.Problem.mlp(INPUTS, targets, **{"steps": 2, **changes})

    def recorded(**settings: Any) -> dmft.Trajectory:
        return dmft.Recorder(a.plan, a.probe, **settings).record()

    def undone() -> dmft.Plan:
        plan = a.plan
        plan.undo()
        return plan

    def after(change: Callable[[dmft.Plan], Any]) -> None:
        plan = a.plan
        recorder = dmft.Recorder(plan, a.probe)
        change(plan)
        recorder.record()

    def nested(same: bool) -> None:
        recorder, optimizer = _both(a)
        with recorder.attach(optimizer), (recorder if same else dmft.Recorder(a.plan, a.probe)).attach(optimizer):
            pass

    def attached_twice() -> None:
        recorder, optimizer = _both(a)
        with recorder.attach(optimizer, optimizer):
            pass

    def recorded_twice() -> None:
        recorder = a.recorder
        recorder.record()
        recorder.record()

    def without_batches(loader: Any) -> None:
        list(a.recorder.batches(loader))

    return {
        # In another order.
        "a trajectory before a record": (lambda: a.recorder.trajectory(), "attach"),
        "a problem before an optimizer": (lambda: a.recorder.problem(), "attach"),
        "a training before an optimizer": (lambda: a.recorder.training, "attach"),
        "one step twice": (recorded_twice, "look"),
        "one recorder in itself": (lambda: nested(same=True), "attached"),
        "an optimizer twice": (attached_twice, "once"),
        "undone twice": (lambda: undone().undo(), "once"),
        "groups of an undone plan": (lambda: undone().param_groups(0.1), "undo"),
        "a record after undo": (lambda: after(lambda plan: plan.undo()), "undo"),
        "a record on the meta device": (lambda: after(lambda plan: plan.model.to("meta")), "meta"),
        "a layer too many": (lambda: after(lambda plan: plan.model.append(nn.Linear(1, 1))), "changed"),
        "another optimizer's model": (lambda: nested(same=False), "optimizer"),
        # Data.
        "no samples to wrap": (lambda: dmft.parameterize(network(), NOTHING), "sample"),
        "no samples of an NTK": (lambda: dmft.empirical_ntk(network(), NOTHING), "sample"),
        "no samples of a probe": (lambda: dmft.Probe(NOTHING, torch.empty(0, 1)), "sample"),
        "no samples of a problem": (lambda: dmft.Problem.mlp(NOTHING, torch.empty(0, 1)), "row"),
        "no rows of a batch": (lambda: posed(batches=[torch.empty(0, dtype=torch.int64)] * 2), "batch"),
        "nothing trained on": (lambda: dmft.Probe(INPUTS, TARGETS, train=torch.zeros(4, dtype=torch.bool)), "train"),
        "targets on their side": (lambda: dmft.Probe(INPUTS, TARGETS.T), "target"),
        "a probe of NaN": (lambda: dmft.Probe(INPUTS * math.nan, TARGETS), "NaN"),
        "targets of NaN": (lambda: dmft.Probe(INPUTS, TARGETS * math.nan), "NaN"),
        "an example of NaN": (lambda: dmft.parameterize(network(), INPUTS * math.nan), "NaN"),
        "integers for a problem": (lambda: dmft.Problem.mlp(INPUTS.long(), TARGETS), "float"),
        "integers for a model": (lambda: dmft.parameterize(network(), INPUTS.long()), "example input"),
        "a probe of other inputs": (
            lambda: dmft.Problem.like(a.plan, dmft.Probe(torch.ones(4, 5), TARGETS), lr=0.1, steps=2),
            "inputs",
        ),
        "a probe without targets": (lambda: dmft.Problem.like(a.plan, dmft.Probe(INPUTS), lr=0.1, steps=2), "targets"),
        "an empty loader": (lambda: without_batches(DataLoader([], batch_size=2)), "row|batch|data"),  # type: ignore[arg-type]
        "a list in place of a loader": (lambda: without_batches([(INPUTS, TARGETS)]), "loader"),
        "labels as floats": (lambda: posed(CLASSES.float(), loss=nn.CrossEntropyLoss()), "classes"),
        "labels as a column of floats": (lambda: posed(CLASSES.float()[:, None], loss=nn.CrossEntropyLoss()), "long"),
        "labels as a column": (lambda: posed(CLASSES[:, None]), "target"),
        "labels and a squared error": (lambda: posed(CLASSES, loss=nn.MSELoss()), "loss"),
        "negative labels": (lambda: posed(2 * CLASSES - 1), "target|class"),
        # Settings that do not go together.
        "an lr of three steps for five": (lambda: posed(steps=5, lr=[0.1] * 3), "lr"),
        "Nesterov without momentum": (lambda: posed(nesterov=True), "momentum"),
        "a beta of 1.5": (lambda: posed(optimizer="adam", beta1=1.5), "beta1"),
        "momentum of Adam": (lambda: posed(optimizer="adam", momentum=0.9), "betas"),
        "a number that there is not": (lambda: posed().trained(foo=1), "lr"),
        "a training of such a number": (lambda: dmft.Training.sgd(0.1, 2, foo=3), "momentum"),
        "trained at gamma0 = -5": (lambda: posed().trained(gamma0=-5.0), "gamma0"),
        "trained at lr = NaN": (lambda: posed().trained(lr=math.nan), "lr"),
        "steps of two axes": (lambda: dmft.solve(a.problem, record=torch.zeros(2, 2, dtype=torch.int64)), "Steps"),
        "steps of a dictionary": (lambda: dmft.solve(a.problem, record={0: 1}), "record"),
        "steps outside of a solver's run": (
            lambda: solvers.StaticNTK().run(a.problem, torch.tensor([99]), two_time=False, progress=False),
            "0..2",
        ),
        "a problem beyond a solver's": (
            lambda: solvers.DeepLinear().run(a.problem, torch.tensor([0]), two_time=False, progress=False),
            "linear",
        ),
        "the cost of such a problem": (lambda: solvers.WhitenedLinear().estimate(a.problem), "linear"),
        "a chain of a huge width": (
            lambda: theory.Chain(3, (theory.HiddenLayer("tanh"),) * 2, 1).build(10**7),
            "memory",
        ),
        "ascent": (
            lambda: dmft.solve(
                run(a, optimizer=lambda plan: torch.optim.SGD(plan.param_groups(0.1), maximize=True)).problem()
            ),
            "minimise",
        ),
        # Models and functions of the user's.
        "a lazy model": (lambda: dmft.Recorder(nn.Sequential(nn.LazyLinear(8), nn.LazyLinear(1)), a.probe), "lazy"),
        "a model that returns its loss": (lambda: dmft.Recorder(ReturnsItsLoss(), a.probe).record(), "row"),
        "outputs that are cut": (lambda: recorded(outputs=lambda out: out.detach()), "gradients"),
        "outputs as classes": (lambda: recorded(outputs=lambda out: out.argmax(1)), "float"),
        "outputs of two rows": (lambda: recorded(outputs=lambda out: out[:2]), "row"),
        "a schedule that fails": (lambda: recorded(schedule=lambda step: 1 / 0) and run(a, schedule=fails), "schedule"),
        "a loss of nothing": (lambda: posed(loss=lambda outputs, targets: None), "one"),
        "a loss that is constant": (lambda: posed(loss=lambda outputs, targets: torch.tensor(1.0)), "depend"),
        "a loss by class": (lambda: posed(loss=nn.MSELoss), "instance|function"),
        "a role that there is not": (lambda: Role("head"), "readout"),
        "a part that there is not": (lambda: Part("head"), "branch"),
        # Results.
        "no kernels": (lambda: dmft.alignment(torch.zeros(0, 0), torch.zeros(0, 0)), "entries"),
        "a run in integers": (lambda: a.static.to(torch.int64), "float"),
        "runs of other rows": (lambda: dmft.compare(a.measured, a.static.at_rows(torch.tensor([0, 1]))), "solve"),
        "a spectrum without a kernel": (lambda: comparison.ntk_spectrum(a.measured.without_ntk()), "ntk"),
        "a figure of such a kernel": (
            lambda: figures.kernels(dmft.compare(a.measured.without_ntk(), a.static), "ntk"),
            "ntk",
        ),
        "a page onto a folder": (lambda: a.comparison.write_html(a.folder), "folder"),
        "a page into nothing": (lambda: a.comparison.write_html(a.folder / "no" / "page.html"), "folder"),
        "logs at no path": (lambda: a.comparison.write_tensorboard("\0"), "path"),
        "logs below a file": (lambda: a.comparison.write_tensorboard(_file(a)), "folder"),
    }


def fails(step: int) -> bool:
    """A schedule that raises."""
    raise KeyError(step)


def _file(a: Set) -> Any:
    path = a.folder / "no folder"
    path.write_text("x")
    return path


def _both(a: Set) -> tuple[dmft.Recorder, torch.optim.Optimizer]:
    plan = a.plan
    return dmft.Recorder(plan, a.probe), torch.optim.SGD(plan.param_groups(0.1))


_SCHEDULERS: dict[str, tuple[Callable[[Any], Any], list[float]]] = {
    "StepLR": (lambda optimizer: lr_scheduler.StepLR(optimizer, 1), [0.1, 0.01, 0.001, 1e-4]),
    "ExponentialLR": (lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.5), [0.1, 0.05, 0.025, 0.0125]),
    "CosineAnnealingLR": (lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 3), [0.1, 0.075, 0.025, 0.0]),
    "LambdaLR": (
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (n + 1)),
        [0.1, 0.05, 0.1 / 3, 0.025],
    ),
    "ReduceLROnPlateau": (
        lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0),
        [0.1, 0.01, 0.001, 1e-4],
    ),
    "OneCycleLR": (
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=10, anneal_strategy="linear"
        ),
        [0.004, 0.052, 0.1, 0.1 - (0.1 - 4e-7) / 7],
    ),
}
"""Name -> what schedules, and the base rates of four steps."""


def right_uses(a: Set) -> dict[str, Callable[[], Any]]:
    """Odd, and right: each ends by asserting what came of it."""

    def two_recorders() -> None:
        (one, optimizer), plan = _both(a), None
        plan = one.subject.plan
        other = dmft.Recorder(plan, a.probe)
        with one.attach(optimizer), other.attach(optimizer):
            F.mse_loss(plan.model(INPUTS), TARGETS).backward()
            optimizer.step()
        assert torch.equal(one.trajectory().outputs, other.trajectory().outputs)

    def goes_on() -> None:
        recorder, optimizer = _both(a)
        for _ in range(2):
            with recorder.attach(optimizer):
                optimizer.zero_grad()
                F.mse_loss(recorder.subject.plan.model(INPUTS), TARGETS).backward()
                optimizer.step()
        assert recorder.trajectory().steps.tolist() == [0, 1, 2]

    def own_error_passes() -> None:
        recorder, optimizer = _both(a)
        try:
            with recorder.attach(optimizer):
                raise RuntimeError("my own code")
        except RuntimeError:
            pass
        with recorder.attach(optimizer):
            pass
        assert recorder.trajectory().steps.tolist() == [0]

    def without_gradients() -> None:
        with torch.no_grad():
            blind = dmft.Recorder(copy.deepcopy(plan), a.probe).record()
        assert torch.equal(blind.known_ntk.array, dmft.Recorder(plan, a.probe).record().known_ntk.array)

    def attached_to_a_graph() -> None:
        weights = torch.ones(3, requires_grad=True)
        recorded = dmft.Recorder(plan, dmft.Probe(INPUTS * weights, TARGETS)).record()
        assert not recorded.outputs.requires_grad
        assert torch.equal(recorded.outputs, dmft.Recorder(plan, a.probe).record().outputs)

    def some_groups_only() -> None:
        recorder = run(a, optimizer=lambda plan: torch.optim.SGD(plan.param_groups(0.1)[1:]))
        assert "0.weight" in recorder.training.frozen

    def rates_as_tensors() -> None:
        def optimizer(plan: dmft.Plan) -> torch.optim.Optimizer:
            return torch.optim.SGD([{**group, "lr": torch.tensor(group["lr"])} for group in plan.param_groups(0.1)])

        assert math.isclose(run(a, optimizer=optimizer).problem().lr, 0.1, rel_tol=1e-6)

    def scheduled(make: Any, rates: list[float]) -> None:
        found = run(a, scheduler=make, steps=4).problem().training.lr
        assert torch.allclose(found, torch.tensor(rates, dtype=torch.float64), atol=1e-9)

    def columns() -> None:
        found = [
            parameterization.coordinate_check(
                network, INPUTS, targets, widths=(16, 32), steps=2, seeds=1, generator=torch.Generator().manual_seed(0)
            )
            for targets in (TARGETS, TARGETS[:, 0])
        ]
        assert torch.equal(found[0].updates, found[1].updates)

    plan = a.plan
    return {
        "two recorders": two_recorders,
        "attached again": goes_on,
        "an error of one's own": own_error_passes,
        "a record without gradients": without_gradients,
        "a probe of a graph": attached_to_a_graph,
        "groups that are left out": some_groups_only,
        "rates as tensors": rates_as_tensors,
        "targets without a column": columns,
        "a figure without the NTK": lambda: figures.learned(a.measured.without_ntk()),
        "nothing but the start": lambda: dmft.solve(dmft.Problem.mlp(INPUTS, TARGETS, steps=0)),
        "steps one after the other": lambda: dmft.solve(a.problem, record=(step for step in (0, 1))),
        **{name: lambda of=of: scheduled(*of) for name, of in _SCHEDULERS.items()},  # type: ignore[misc]
    }
