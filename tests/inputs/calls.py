"""A right call of every public name, of which each parameter is then given wrong values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torch_dmft as dmft
from torch_dmft.theory import Fluctuations, Spectrum, fluctuations

INPUTS = torch.linspace(-1, 1, 12).reshape(4, 3) + torch.eye(4, 3)
TARGETS = torch.tensor([1.0, -1.0, 1.0, 0.5])[:, None]
DEEP = dmft.Problem.mlp(INPUTS, TARGETS, depth=2, steps=2)


def _deep(blocks: int) -> dmft.Problem:
    """A residual network of so many blocks."""
    blocks_of = [_Branch(8) for _ in range(blocks)]
    model = nn.Sequential(nn.Linear(3, 8, bias=False), *blocks_of, nn.Linear(8, 1, bias=False))
    return dmft.Problem.like(
        dmft.parameterize(model, INPUTS, depth="1/L"), dmft.Probe(INPUTS, TARGETS), lr=0.1, steps=2
    )


class _Branch(nn.Module):
    """h + W tanh(h)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, width, bias=False)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """With its branch."""
        changed: torch.Tensor = h + self.weight(h.tanh())
        return changed


def network(width: int = 16) -> nn.Sequential:
    """A small network."""
    generator = torch.Generator().manual_seed(width)
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    return model


class Set:
    """What calls are given; everything that a call may change is made anew for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def plan(self) -> dmft.Plan:
        return dmft.parameterize(network(), INPUTS)

    @cached_property
    def probe(self) -> dmft.Probe:
        return dmft.Probe(INPUTS, TARGETS)

    @property
    def recorder(self) -> dmft.Recorder:
        return dmft.Recorder(self.plan, self.probe)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.plan.param_groups(0.1))

    @cached_property
    def problem(self) -> dmft.Problem:
        return dmft.Problem.mlp(INPUTS, TARGETS, steps=2)

    @cached_property
    def spectrum(self) -> Spectrum:
        time = torch.tensor([2.0])
        return Spectrum("2", torch.tensor([2]), time, 1.0, time[:, None] + 1, time[:, None] / 4)

    @cached_property
    def fluctuations(self) -> Fluctuations:
        return fluctuations(self.problem, neurons=8, replicas=1)

    @cached_property
    def static(self) -> dmft.Trajectory:
        return dmft.solve(self.problem, dmft.solvers.StaticNTK())

    @cached_property
    def networks(self) -> dmft.Trajectory:
        return dmft.solve(self.problem, dmft.solvers.FiniteWidth(16, 4))

    @cached_property
    def measured(self) -> dmft.Trajectory:
        plan = self.plan
        recorder, optimizer = dmft.Recorder(plan, self.probe), torch.optim.SGD(plan.param_groups(0.1))
        with recorder.attach(optimizer):
            for _ in range(2):
                optimizer.zero_grad()
                nn.functional.mse_loss(plan.model(INPUTS), TARGETS).backward()
                optimizer.step()
        return recorder.trajectory()

    @cached_property
    def comparison(self) -> dmft.Comparison:
        return dmft.compare(self.measured, self.static)

    @cached_property
    def against_itself(self) -> dmft.Comparison:
        return dmft.compare(self.measured, replace(self.measured, origin="the same"))

    def solved_by(self, solver: str) -> dmft.Problem:
        """A problem that a solver covers."""
        linear = solver in ("DeepLinear", "WhitenedLinear")
        return self.whitened if linear else self.problem

    @cached_property
    def whitened(self) -> dmft.Problem:
        inputs = 2 * torch.linalg.qr(torch.eye(4, dtype=torch.float64) + 0.1).Q
        return dmft.Problem.mlp(inputs, TARGETS.double(), activation="linear", loss=_half_square, lr=0.01, steps=2)

    @cached_property
    def verdict(self) -> dmft.Verdict:
        return dmft.check(network, (4, 8), steps=1, seeds=1, most_seeds=1)

    @cached_property
    def swept(self) -> dmft.Transferred:
        return dmft.transfer(at_rate, (4, 8), lrs=(0.1,), steps=2, seeds=1, data=[(INPUTS, TARGETS)])

    @property
    def kernel(self) -> dmft.Kernel:
        return dmft.Kernel(torch.eye(4).repeat(3, 1, 1))

    @cached_property
    def two_time(self) -> dmft.Kernel:
        return dmft.Kernel(torch.eye(12).reshape(3, 4, 3, 4))


def _half_square(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return 0.5 * (outputs - targets).square().sum()


Call = tuple[Callable[..., Any], dict[str, Any]]


def calls(a: Set) -> dict[str, Callable[[], Call]]:
    """Public name -> a function that makes a right call of it: what is called, and with which arguments by name."""
    from torch_dmft import comparison, measurement, parameterization, referee, report, theory
    from torch_dmft.theory import solvers

    data = {"inputs": INPUTS, "targets": TARGETS}
    model = {"model": network(), "example_input": INPUTS}
    found: dict[str, Callable[[], Call]] = {
        "alignment": lambda: (dmft.alignment, {"a": torch.eye(4), "b": torch.eye(4)}),
        "learning_rule": lambda: (_taught, {"plan": a.plan, "rule": "feedback_alignment", "rho": 0.5}),
        "LearningRule.alignment": lambda: (_aligned, {"inputs": INPUTS}),
        "centered": lambda: (dmft.centered, {"model": network()}),
        "compare": lambda: (
            dmft.compare,
            {"measured": a.measured, "predicted": a.static, "problem": None, "replicas": 19},
        ),
        "describe": lambda: (dmft.describe, model),
        "check": lambda: (dmft.check, {"factory": network, "widths": (4, 8), "steps": 1, "seeds": 1, "most_seeds": 1}),
        "set_up": lambda: (referee.set_up, {"factory": network, "width": 4, "seed": 0}),
        "load": lambda: (referee.load, {"name": "tests.inputs.calls:network"}),
        "Verdict.write_tensorboard": lambda: (a.verdict.write_tensorboard, {"logdir": a.folder / "check"}),
        "Verdict.write_html": lambda: (a.verdict.write_html, {"path": a.folder / "check.html"}),
        "Transferred.write_html": lambda: (a.swept.write_html, {"path": a.folder / "transfer.html"}),
        "write_sheet": lambda: (report.write_sheet, {"result": a.verdict, "path": a.folder / "check.html"}),
        "write_check": lambda: (report.write_check, {"verdict": a.verdict, "logdir": a.folder / "check"}),
        "parameterize": lambda: (dmft.parameterize, {"model": network(), "example_input": INPUTS}),
        "empirical_ntk": lambda: (dmft.empirical_ntk, {"model": network(), **data}),
        "richness": lambda: _judged(a),
        "transfer": lambda: (
            dmft.transfer,
            {"factory": at_rate, "widths": (4, 8), "lrs": (0.1,), "steps": 2, "seeds": 1, "data": [(INPUTS, TARGETS)]},
        ),
        "every": lambda: (dmft.every, {"interval": 2}),
        "log_spaced": lambda: (dmft.log_spaced, {"points": 5, "last": 100}),
        "at_steps": lambda: (measurement.at_steps, {"steps": [1, 2]}),
        "infinite_width": lambda: (
            dmft.infinite_width,
            {"model_or_factory": network(), "example_input": INPUTS, "neurons": 16},
        ),
        "solve": lambda: (dmft.solve, {"problem": a.problem, "solver": solvers.StaticNTK()}),
        "Indexed": lambda: (dmft.Indexed, {"dataset": torch.utils.data.TensorDataset(INPUTS, TARGETS)}),
        "Kernel": lambda: (dmft.Kernel, {"array": torch.eye(4)[None]}),
        "Kernel.at": lambda: (a.kernel.at, {"index": torch.tensor([0, 1])}),
        "Kernel.at_rows": lambda: (a.kernel.at_rows, {"rows": torch.tensor([0, 1])}),
        "Kernel.between": lambda: (a.two_time.between, {"time": 1, "other": 2}),
        "Kernel.bound": lambda: (a.two_time.bound, {"time": 0, "other": 2}),
        "Kernel.matrix": lambda: (a.kernel.matrix, {"time": 0}),
        "Probe": lambda: (dmft.Probe, {**data, "train": torch.tensor([True, True, True, False])}),
        "Probe.at_rows": lambda: (a.probe.at_rows, {"chosen": [0, 1]}),
        "Probe.places": lambda: (a.probe.places, {"chosen": [0, 1]}),
        "Probe.target_values": lambda: (a.probe.target_values, {"outputs": 1}),
        "Probe.to": lambda: (a.probe.to, {"device": "cpu"}),
        "Problem.mlp": lambda: (dmft.Problem.mlp, {**data, "steps": 2}),
        "Problem.like": lambda: (dmft.Problem.like, {"plan": a.plan, "probe": a.probe, "lr": 0.1, "steps": 2}),
        "Problem.recorded": lambda: (a.problem.recorded, {"record": [0, 1]}),
        "Problem.number_recorded": lambda: (a.problem.number_recorded, {"record": [0, 1]}),
        "Problem.batch": lambda: (a.problem.batch, {"step": 0}),
        "Problem.rows_of": lambda: (a.problem.rows_of, {"step": 0}),
        "Recorder": lambda: (dmft.Recorder, {"plan_or_model": a.plan, "probe": a.probe}),
        "Recorder.batch": lambda: (_told(a).batch, {"rows": [0, 1]}),
        "Recorder.batches": lambda: (lambda loader: list(a.recorder.batches(loader)), {"loader": _loader()}),
        "Recorder.problem": lambda: (_trained(a).problem, {}),
        "Recorder.trajectory": lambda: (_trained(a).trajectory, {"origin": "network"}),
        "Recorder.look": lambda: (a.recorder.look, {"check": False}),
        "Recorder.load_state_dict": lambda: (a.recorder.load_state_dict, {"state": a.recorder.state_dict()}),
        "Plan.param_groups": lambda: (a.plan.param_groups, {"lr": 0.1}),
        "Plan.check_optimizers": lambda: _with_optimizers(a),
        "Plan.suggest_lr": lambda: (
            a.plan.suggest_lr,
            {"probe": a.probe, "loss": nn.MSELoss(), "outputs": lambda out: out},
        ),
        "Plan.rule": lambda: (a.plan.rule, {"name": "0.weight"}),
        "Plan.load_state_dict": lambda: (a.plan.load_state_dict, {"state": a.plan.state_dict()}),
        "Training.sgd": lambda: (dmft.Training.sgd, {"lr": 0.1, "steps": 2}),
        "Training.seen_by": lambda: (_seen_by(a), {"steps": 1}),
        "Training.at": lambda: (a.measured.training.at, {"name": "lr", "step": 0}),
        "Training.number": lambda: (a.measured.training.number, {"name": "lr"}),
        "Training.constant": lambda: (a.measured.training.constant, {"name": "lr"}),
        "Training.differences": lambda: (a.measured.training.differences, {"other": a.static.training}),
        "Training.with_numbers": lambda: (a.measured.training.with_numbers, {"lr": 0.1}),
        "Trajectory.at_steps": lambda: (a.static.at_steps, {"steps": torch.tensor([0, 1])}),
        "Trajectory.at_rows": lambda: (a.static.at_rows, {"rows": torch.tensor([0, 1])}),
        "Trajectory.layer": lambda: (a.static.layer, {"name": a.static.layers[0].name}),
        "Trajectory.load": lambda: (dmft.Trajectory.load, {"path": _saved(a)}),
        "Trajectory.save": lambda: (a.static.save, {"path": a.folder / "saved.npz"}),
        "Comparison.yardstick": lambda: (a.comparison.yardstick, {"kernel": "ntk", "position": 0}),
        "Comparison.write_html": lambda: (a.comparison.write_html, {"path": a.folder / "page.html", "plan": a.plan}),
        "Comparison.write_tensorboard": lambda: (
            a.comparison.write_tensorboard,
            {"logdir": a.folder / "logs", "plan": a.plan},
        ),
        "write_comparison": lambda: (
            report.write_comparison,
            {"comparison": a.comparison, "logdir": a.folder / "logs"},
        ),
        "write_html": lambda: (report.write_html, {"comparison": a.comparison, "path": a.folder / "page.html"}),
        "LiveScalars": lambda: (report.LiveScalars, {"logdir": a.folder / "live", "recorder": a.recorder}),
        "LiveComparison": lambda: (report.LiveComparison, {"logdir": a.folder / "live", "recorder": a.recorder}),
        "coordinate_check": lambda: (
            parameterization.coordinate_check,
            {"factory": network, **data, "widths": (16, 32), "steps": 1, "seeds": 1},
        ),
        "depth_check": lambda: (
            parameterization.depth_check,
            {"factory": _residual, **data, "depths": (3, 4), "steps": 1, "seeds": 1},
        ),
        "effective_scaling": lambda: (parameterization.effective_scaling, _effective(a)),
        "NTKOperator": lambda: (measurement.NTKOperator, {"model": network(), "inputs": INPUTS}),
        "NTKOperator.largest": lambda: (measurement.NTKOperator(network(), INPUTS).largest, {"number": 1}),
        "Projection": lambda: (measurement.Projection, {"count": 2, "seed": 0}),
        "relative_error": lambda: (comparison.relative_error, {"a": torch.eye(4), "b": torch.eye(4)}),
        "centered_alignment": lambda: (comparison.centered_alignment, {"a": torch.eye(4), "b": torch.eye(4)}),
        "target_alignment": lambda: (comparison.target_alignment, {"kernel": torch.eye(4), "targets": TARGETS}),
        "target_alignments": lambda: (comparison.target_alignments, {"kernel": a.kernel, "targets": TARGETS}),
        "movement": lambda: (comparison.movement, {"kernel": a.kernel}),
        "ntk_spectrum": lambda: (comparison.ntk_spectrum, {"trajectory": a.measured}),
        "covariance": lambda: (theory.covariance, {"networks": a.networks, "observable": lambda run: run.outputs[-1]}),
        "responses": lambda: (theory.responses, {"problem": a.problem, "solver": solvers.AlternatingMonteCarlo()}),
        "infinite_depth": lambda: (theory.infinite_depth, {"problem_of": _deep, "depths": (1, 2, 4)}),
        "fluctuations": lambda: (
            theory.fluctuations,
            {
                "problem": a.problem,
                "observable": lambda run: run.losses[-1:],
                "record": [2],
                "neurons": 8,
                "replicas": 1,
            },
        ),
        "spectrum": lambda: (theory.spectrum, {"problem": DEEP, "layer": "2", "steps": [0]}),
        "HiddenLayer": lambda: (theory.HiddenLayer, {"activation": "tanh"}),
        "Chain": lambda: (theory.Chain, {"input_dim": 3, "hidden": (theory.HiddenLayer("tanh"),), "outputs": 1}),
    }
    for name in solvers.__all__:
        settings = {"width": 16} if name == "FiniteWidth" else {}
        found[name] = lambda name=name, settings=settings: (getattr(solvers, name), settings)  # type: ignore[misc]
    for library in ("lightning", "transformers"):
        found[f"integrations.{library}.RecorderCallback"] = lambda library=library: _callback(library, a)  # type: ignore[misc]
    return found


def _callback(library: str, a: Set) -> Call:
    from importlib import import_module

    return import_module(f"torch_dmft.integrations.{library}").RecorderCallback, {"recorder": a.recorder}


def _with_optimizers(a: Set) -> Call:
    plan = a.plan
    optimizer = torch.optim.SGD(plan.param_groups(0.1))
    return (lambda optimizers: plan.check_optimizers(optimizers)), {"optimizers": optimizer}


def _judged(a: Set) -> Call:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return dmft.richness, {"model_or_run": model, "optimizer": optimizer, "probe": a.probe, "steps": 2}


def at_rate(width: int, lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A set-up of a width and a rate."""
    model = network(width)
    return model, torch.optim.SGD(model.parameters(), lr=lr)


def tiny_problem() -> dmft.Problem:
    """A problem that takes a second."""
    return dmft.Problem.mlp(INPUTS, TARGETS, steps=2)


def _residual(blocks: int) -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            return h + self.outer(torch.tanh(self.inner(h)))  # type: ignore[no-any-return]

    return nn.Sequential(nn.Linear(3, 8), *(Block() for _ in range(blocks)), nn.Linear(8, 1))


def _effective(a: Set) -> dict[str, Any]:
    plan = a.plan
    return {"model": plan.model, "example_input": INPUTS, "param_groups": 0.1}


def _trained(a: Set) -> dmft.Recorder:
    plan = a.plan
    recorder = dmft.Recorder(plan, a.probe)
    with recorder.attach(torch.optim.SGD(plan.param_groups(0.1))):
        pass
    return recorder


def _taught(plan: dmft.Plan, rule: str, rho: float = 0.0, generator: torch.Generator | None = None) -> None:
    with dmft.learning_rule(plan, rule, rho=rho, generator=generator) as found:
        found.alignment(INPUTS)


def _aligned(inputs: torch.Tensor) -> torch.Tensor:
    with dmft.learning_rule(dmft.parameterize(network(), INPUTS), "hebb") as found:
        return found.alignment(inputs)


def _told(a: Set) -> dmft.Recorder:
    return dmft.Recorder(a.plan, a.probe, data=(INPUTS, TARGETS))


def _loader() -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(INPUTS, TARGETS), batch_size=2)


def _seen_by(a: Set) -> Callable[..., Any]:
    plan = a.plan
    optimizer = torch.optim.SGD(plan.param_groups(0.1))
    return lambda steps: dmft.Training.seen_by(plan, optimizer, steps=steps)


def _saved(a: Set) -> Path:
    a.static.save(a.folder / "static.npz")
    return a.folder / "static.npz"
