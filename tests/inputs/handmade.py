"""Wrong inputs that no annotation tells: values that fit their types and not each other, and what a user's objects do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import torch_dmft as dmft
from tests.inputs.calls import INPUTS, TARGETS, Set, network
from torch_dmft import comparison, measurement, theory
from torch_dmft.parameterization import coordinate_check, depth_check

OTHER = torch.linspace(-1, 1, 20).reshape(4, 5)
"""Inputs of another dimension."""
TWO = torch.linspace(-1, 1, 8).reshape(4, 2)
"""Targets of two outputs, for a model of one."""


def fails(*values: Any) -> Any:
    """A function of a user's that fails."""
    raise RuntimeError("something in my own code")


def handmade(a: Set) -> dict[str, tuple[Callable[[], Any], str]]:
    """Name -> the case, and a word of the error."""
    solvers = dmft.solvers

    def recorded(probe: dmft.Probe | None = None, before: Callable[[dmft.Plan], Any] | None = None, **more: Any) -> Any:
        plan = a.plan
        if before is not None:
            before(plan)
        return dmft.Recorder(plan, a.probe if probe is None else probe, **more).record()

    def attached(*optimizers: Any) -> None:
        with a.recorder.attach(*optimizers):
            pass

    def doubled_on_the_way() -> None:
        plan = a.plan
        recorder = dmft.Recorder(plan, a.probe)
        plan.model.double()
        recorder.record()

    def other_checkpoint(inputs: torch.Tensor) -> None:
        other = dmft.Recorder(a.plan, dmft.Probe(inputs, torch.ones(len(inputs), 1)))
        other.record()
        a.recorder.load_state_dict(other.state_dict())

    def loaded(**changes: Any) -> None:
        plan = a.plan
        plan.load_state_dict({**plan.state_dict(), **changes})

    def rules(**changes: Any) -> list[dict[str, Any]]:
        first, *others = a.plan.state_dict()["rules"]
        return [{**first, **changes}, *others]

    def check(**changes: Any) -> Any:
        right = {"factory": network, "inputs": INPUTS, "targets": TARGETS, "widths": (16, 32), "steps": 1, "seeds": 1}
        return coordinate_check(**{**right, **changes})

    def noted(rows: Any) -> None:
        dmft.Recorder(a.plan, a.probe, data=(INPUTS, TARGETS)).batch(rows)

    def posed(**changes: Any) -> dmft.Problem:
        return dmft.Problem.mlp(**{"inputs": INPUTS, "targets": TARGETS, "steps": 2, **changes})

    scripted = nn.Sequential(torch.jit.script(nn.Linear(3, 16)), nn.Tanh(), nn.Linear(16, 1))
    alien = torch.optim.SGD(network(8).parameters(), lr=0.1)
    return {
        # Settings beyond what numbers can hold.
        **{
            f"parameterize(gamma0={value!r})": (
                lambda value=value: dmft.parameterize(network(), INPUTS, gamma0=value),
                "gamma0",
            )
            for value in (1e300, "1", 0.0, -1.0, 1e-300, math.nan)
        },
        **{
            f"a problem of lr={value!r}": (lambda value=value: posed(lr=value), "lr")
            for value in (1e300, [1e300, 1.0], -0.1)
        },
        **{
            f"a problem of gamma0={value!r}": (lambda value=value: posed(gamma0=value), "gamma0")
            for value in (1e300, 1e-300, 10**400)
        },
        **{f"depth={value:g}": (lambda value=value: posed(depth=value), "depth") for value in (1e20, 10**20, 10**9, 0)},
        **{
            f"param_groups(lr={value!r})": (lambda value=value: a.plan.param_groups(value), "lr")
            for value in (math.nan, math.inf, -0.1, 1e300, "0.1")
        },
        "negative decay": (lambda: a.plan.param_groups(0.1, weight_decay=-0.1), "weight_decay"),
        "negative eps": (lambda: a.plan.param_groups(0.1, optimizer="adam", eps=-1e-8), "eps"),
        "an unknown optimizer": (lambda: a.plan.param_groups(0.1, optimizer="lion"), "optimizer"),
        "infinite gain": (lambda: dmft.parameterize(network(), INPUTS, gain=math.inf), "gain"),
        "no gain": (lambda: dmft.parameterize(network(), INPUTS, gain=0.0), "gain"),
        "an unknown scheme": (lambda: dmft.parameterize(network(), INPUTS, scheme="ntp"), "scheme"),
        "width 1e20": (lambda: solvers.FiniteWidth(1e20), "width"),  # type: ignore[arg-type]
        "width 10^20": (lambda: solvers.FiniteWidth(10**20), "width"),
        "width 10^9": (lambda: dmft.solve(a.problem, solvers.FiniteWidth(10**9)), "memory"),
        "widths of 10^9": (lambda: dmft.solve(a.problem, solvers.WideEnsemble((10**9, 2 * 10**9))), "memory"),
        "10^12 neurons": (lambda: dmft.solve(a.problem, solvers.InfiniteWidth(10**12)), "memory"),
        "10^12 draws": (lambda: dmft.solve(a.problem, solvers.AlternatingMonteCarlo(10**12)), "memory"),
        "10^12 neurons of a twin": (lambda: dmft.infinite_width(network(), INPUTS, neurons=10**12), "neurons"),
        "10^18 recorded steps": (lambda: dmft.solve(posed(steps=10**18)), "steps"),
        "a gain of no layer": (lambda: dmft.infinite_width(network(), INPUTS, neurons=16, gain={"x": 1.0}), "gain"),
        "a uniform start of no parameter": (
            lambda: dmft.infinite_width(network(), INPUTS, neurons=16, uniform=["x"]),
            "uniform",
        ),
        "a bias of no layer": (
            lambda: dmft.infinite_width(network(), INPUTS, neurons=16, bias_std={"x": 1.0}),
            "bias_std",
        ),
        # Schedules.
        "every=1.5": (lambda: dmft.Recorder(a.plan, a.probe, every=1.5), "every"),  # type: ignore[arg-type]
        "every=0": (lambda: dmft.Recorder(a.plan, a.probe, every=0), "interval"),
        "schedule='123'": (lambda: dmft.Recorder(a.plan, a.probe, schedule="123"), "schedule"),  # type: ignore[arg-type]
        "a schedule of no step": (lambda: dmft.Recorder(a.plan, a.probe, schedule=[]), "step"),
        "a schedule of negative steps": (lambda: dmft.Recorder(a.plan, a.probe, schedule=[-1]), "step"),
        "a schedule of half steps": (lambda: measurement.at_steps(torch.tensor([0.5])), "integer"),
        "two schedules": (lambda: dmft.Recorder(a.plan, a.probe, every=1, schedule=[0]), "schedule"),
        # Data that do not fit a model, or each other.
        "a probe of another dtype": (lambda: recorded(dmft.Probe(INPUTS.double(), TARGETS)), "dtype"),
        "a probe of another dimension": (lambda: recorded(dmft.Probe(OTHER, TARGETS)), "inputs"),
        "a probe of images": (lambda: recorded(dmft.Probe(torch.ones(4, 2, 2, 3), TARGETS)), "outputs"),
        "a probe of integers": (lambda: recorded(dmft.Probe(torch.ones(4, 3).long(), TARGETS)), "inputs"),
        "targets of two columns": (lambda: recorded(dmft.Probe(INPUTS, TWO)), "targets"),
        "targets of two columns and a loss": (lambda: recorded(dmft.Probe(INPUTS, TWO), loss=nn.MSELoss()), "targets"),
        "a class too many": (lambda: recorded(dmft.Probe(INPUTS, torch.arange(4))), "class"),
        "targets of the NTK of two columns": (lambda: dmft.empirical_ntk(network(), INPUTS, TWO), "targets"),
        **{
            f"an NTK by {method} of inputs of another {what}": (
                lambda method=method, inputs=inputs: dmft.empirical_ntk(network(), inputs, method=method),
                "inputs",
            )
            for method in ("layerwise", "jacobian", "vjp")
            for what, inputs in (("dtype", INPUTS.double()), ("dimension", OTHER))
        },
        "a twin on another dimension": (lambda: dmft.infinite_width(network(), OTHER, neurons=16), "input"),
        "an example of another dimension": (lambda: dmft.parameterize(network(), OTHER), "input"),
        "targets of three rows": (lambda: check(targets=TARGETS[:3]), "loss"),
        "a vector of another length": (lambda: measurement.NTKOperator(network(), INPUTS) @ torch.ones(3), "vector"),
        "a row that there is not": (lambda: noted([99]), "row"),
        "a kernel of two axes": (lambda: dmft.Kernel(torch.eye(3)), "axes"),
        "a time that was not recorded": (lambda: a.kernel.matrix(7), "time"),
        "a step that was not recorded": (lambda: a.static.at_steps(torch.tensor([99])), "recorded"),
        "rows that there are not": (lambda: a.static.at_rows(torch.tensor([99])), "rows"),
        "rows as a mask": (lambda: a.static.at_rows(torch.tensor([True, False, True, False])), "rows"),
        "kernels of two shapes": (lambda: dmft.alignment(torch.eye(3), torch.eye(4)), "shapes"),
        "targets of three rows for four": (lambda: comparison.target_alignment(torch.eye(4), TARGETS[:3]), "shapes"),
        "a device that there is not": (lambda: a.probe.to("cuda:99"), "device"),
        "a trajectory on no device": (lambda: a.static.to("nowhere"), "device"),
        # Checkpoints.
        "a checkpoint of another probe": (lambda: other_checkpoint(INPUTS + 1), "probe"),
        "a checkpoint of a larger probe": (lambda: other_checkpoint(torch.cat([INPUTS, INPUTS])), "probe"),
        "no checkpoint": (lambda: a.recorder.load_state_dict({}), "checkpoint"),
        **{
            f"a plan's state with gamma0={value!r}": (lambda value=value: loaded(gamma0=value), "gamma0")
            for value in (-5.0, 0.0, math.nan, "1", None)
        },
        "a plan's state of another scheme": (lambda: loaded(scheme="ntp"), "scheme"),
        "a plan's state of another depth": (lambda: loaded(depth="L"), "depth"),
        "a plan's state without rules": (lambda: a.plan.load_state_dict({"version": 1}), "rules"),
        "a plan's state of other rules": (lambda: loaded(rules=3), "saved plan"),
        "a plan's state with a negative rate": (lambda: loaded(rules=rules(lr=-1.0)), "lr"),
        "a plan's state with a role that there is not": (lambda: loaded(rules=rules(role="head")), "saved plan"),
        "a plan's state of another version": (lambda: loaded(version=0), "version"),
        # Optimizers and modules.
        "attach(None)": (lambda: attached(None), "optimizer"),
        "attach()": (lambda: attached(), "optimizer"),
        "attach([optimizer])": (lambda: attached([a.optimizer]), "optimizer"),
        "an optimizer of another model": (lambda: attached(alien), "optimizer"),
        "no optimizer seen": (lambda: dmft.Training.seen_by(a.plan), "optimizer"),
        "model.double() after wrapping": (lambda: recorded(before=lambda plan: plan.model.double()), "dtype"),
        "model.double() before the first record": (doubled_on_the_way, "dtype"),
        "a scripted model": (lambda: dmft.parameterize(torch.jit.script(network()), INPUTS), "script"),
        "a traced model": (lambda: dmft.empirical_ntk(torch.jit.trace(network(), INPUTS), INPUTS), "script"),
        "a scripted model that is recorded": (lambda: dmft.Recorder(torch.jit.script(network()), a.probe), "script"),
        "a scripted layer": (lambda: dmft.parameterize(scripted, INPUTS), "[sS]cript"),
        "a model on the meta device": (lambda: dmft.parameterize(network().to("meta"), INPUTS), "meta"),
        "a model without parameters": (lambda: dmft.parameterize(nn.Tanh(), INPUTS), "readout"),
        "a role that there is not": (lambda: dmft.parameterize(network(), INPUTS, roles={"0": "head"}), "role"),
        "a role of no layer": (lambda: dmft.parameterize(network(), INPUTS, roles={"x": "hidden"}), "roles"),
        "an output that there is not": (lambda: recorded(outputs="logits"), "outputs"),
        # What a user's own functions do.
        "a loss that raises": (lambda: recorded(loss=fails), "my own code"),
        "a loss for every row": (lambda: recorded(loss=nn.MSELoss(reduction="none")), "one number"),
        "a loss in words": (lambda: recorded(loss=lambda f, y: "0"), "one number"),
        "a loss that raises in a problem": (lambda: posed(loss=fails), "my own code"),
        "a loss that raises while a rate is sought": (lambda: a.plan.suggest_lr(a.probe, loss=fails), "my own code"),
        "a loss that raises, with Adam": (
            lambda: a.plan.suggest_lr(a.probe, loss=fails, optimizer="adam"),
            "my own code",
        ),
        "a loss that raises in a check": (lambda: check(loss=fails), "my own code"),
        "a factory that raises": (lambda: check(factory=fails), "my own code"),
        "a factory of nothing": (lambda: check(factory=lambda width: None), "factory"),
        "a factory of nothing along depth": (
            lambda: depth_check(lambda depth: None, INPUTS, TARGETS, depths=(3, 4), steps=1, seeds=1),  # type: ignore[arg-type, return-value]
            "factory",
        ),
        "a factory that raises, of a twin": (lambda: dmft.infinite_width(fails, INPUTS, neurons=16), "my own code"),
        "a factory of nothing, of a twin": (lambda: dmft.infinite_width(lambda n: None, INPUTS, neurons=16), "factory"),
        "another width that raises": (
            lambda: dmft.parameterize(network(), INPUTS, wider=lambda: fails()),
            "my own code",
        ),
        "an observable that raises": (lambda: theory.covariance(a.networks, fails), "my own code"),
        "an observable of nothing": (lambda: theory.covariance(a.networks, lambda run: None), "tensor"),
        "coordinate_check(steps=0)": (lambda: check(steps=0), "steps"),
        "coordinate_check(seeds=0)": (lambda: check(seeds=0), "seeds"),
        "coordinate_check of one width": (lambda: check(widths=(16,)), "widths"),
        "coordinate_check of width 0": (lambda: check(widths=(0, 16)), "width"),
        "coordinate_check of width 10^9": (lambda: check(widths=(16, 10**9)), "width"),
        "coordinate_check(optimizer='lion')": (lambda: check(optimizer="lion"), "optimizer"),
        "a seed of 2^64": (lambda: measurement.Projection(2, seed=2**64), "seed"),
        "data of a seed of 2^64": (lambda: _data()("synthetic", 4, seed=2**64), "seed"),
        "data of no samples": (lambda: _data()("synthetic", 0), "samples"),
        "data of half a sample": (lambda: _data()("synthetic", 4.5), "samples"),
        "data of no name": (lambda: _data()("mnist", 4), "name"),
    }


def _data() -> Callable[..., Any]:
    from torch_dmft.data import load

    return load
