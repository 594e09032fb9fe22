"""Right calls of what users seldom make by hand: the constructors of results, the methods of problems and solvers, figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch

import torch_dmft as dmft
from tests.inputs.calls import INPUTS, Call, Set, calls, network
from torch_dmft.core.sight import Sight

_SMALL: dict[str, dict[str, Any]] = {
    "InfiniteWidth": {"neurons": 32, "replicas": 1},
    "GradientIndependence": {"neurons": 32, "replicas": 1},
    "Perturbation": {"neurons": 32, "replicas": 1},
    "AlternatingMonteCarlo": {"neurons": 32, "replicas": 1, "tolerance": 0.1},
    "FiniteWidth": {"width": 4, "replicas": 4},
    "WideEnsemble": {"widths": (4, 8), "pairs": 4},
}
"""Solvers that take a moment."""

RESULTS = {
    *("Architecture", "Attribute", "Constant", "DotProduct", "Fold", "Layer", "Multiplier", "Stream", "Vector"),
    *("CoordinateCheck", "EffectiveScaling", "ParameterRule", "Fields", "LayerKernels", "NTKSpectrum", "Responses"),
    *("Spectrum", "BesideNetworks", "Fluctuations"),
    *("Consistency", "Deviation", "Deviations", "Difference", "LayerDeviations", "LayerScores", "Score", "Scores"),
}
"""What only the package makes: of any numbers and words, infinite and NaN ones too."""


def every_call(a: Set) -> dict[str, Callable[[], Call]]:
    """A right call of everything that is public."""
    return {**calls(a), **nouns(a), **methods(a)}


def again(noun: Any) -> Call:
    """How a dataclass is made of the parts that one has."""
    return type(noun), {one.name: getattr(noun, one.name) for one in fields(noun)}


def nouns(a: Set) -> dict[str, Callable[[], Call]]:
    """Name -> a right call of the constructor."""
    from torch_dmft import architecture, comparison, parameterization, theory

    plan = a.plan
    layer = plan.architecture.layers[0]
    deviations = a.comparison.deviations[0]
    score = comparison.Score(1.0, 2.0)
    scores = comparison.Scores((comparison.LayerScores("0", score, score, None),), score, None, 0.5)
    made = (
        plan.architecture,
        layer,
        plan.rules[0],
        architecture.Vector("1", "1.weight", 4, None),
        architecture.Attribute("1", "scale", 0.5),
        architecture.Constant("1", "mul", 0.5, "factor", False),
        architecture.DotProduct("1", "matmul", 4, 0.25),
        architecture.Fold({"0.weight": 0.5}, "a reason"),
        architecture.Multiplier("2"),
        architecture.Stream(2, {"0.weight": architecture.Part.END}),
        parameterization.CoordinateCheck((16, 32), ("0",), torch.ones(1, 2, 2), 0.1),
        parameterization.EffectiveScaling(1.0, 0.1, {"0.weight": 1.0}, {"0.weight": 1.0}, 16),
        a.static,
        a.static.layers[0],
        a.measured.layers[0].fields,
        a.static.training,
        a.comparison,
        deviations,
        deviations.layers[0],
        deviations.layers[0].forward,
        deviations.outputs,
        score,
        scores,
        scores.layers[0],
        comparison.Consistency(16, 19, 0.5, scores, None, score),
        comparison.ntk_spectrum(a.measured),
        theory.Responses("2", torch.zeros(3, 4, 3, 4), torch.zeros(3, 4, 3, 4)),
        a.problem,
        a.spectrum,
        a.spectrum.beside(torch.eye(8)),
        a.fluctuations,
    )
    found: dict[str, Callable[[], Call]] = {type(noun).__name__: lambda noun=noun: again(noun) for noun in made}  # type: ignore[misc]
    parts = {"model": plan.model, "architecture": plan.architecture, "rules": plan.rules}
    return {**found, "Plan": lambda: (dmft.Plan, parts)}


def methods(a: Set) -> dict[str, Callable[[], Call]]:
    """Name -> a right call of a method or function that mostly the package calls."""
    from torch_dmft import architecture, comparison, measurement, report, theory
    from torch_dmft.core.ranks import Ranks
    from torch_dmft.report import dynamics, figures
    from torch_dmft.theory import solvers
    from torch_dmft.theory.sharing import Sharing

    outputs, rows = torch.zeros(4, 1), torch.tensor([0, 1])
    projection = measurement.Projection(2)
    ntk = measurement.NTKOperator(network(), INPUTS)
    found: dict[str, Callable[[], Call]] = {
        "Problem.error": lambda: (a.problem.error, {"outputs": outputs, "step": 0}),
        "Problem.error_on": lambda: (a.problem.error_on, {"outputs": outputs[:2], "rows": rows}),
        "Problem.kept_loss": lambda: (a.problem.kept_loss, {"outputs": outputs}),
        "Problem.loss_on": lambda: (a.problem.loss_on, {"outputs": outputs[:2], "rows": rows}),
        "Problem.training_loss": lambda: (a.problem.training_loss, {"outputs": outputs, "rows": rows}),
        "Problem.zeros": lambda: (a.problem.zeros, {"rows": 2}),
        "Chain.build": lambda: (a.problem.chain.build, {"width": 4}),  # type: ignore[union-attr]
        "Training.seen": lambda: (dmft.Training.seen, {"sight": _sight(a.plan)}),
        "Training.unseen": lambda: (dmft.Training.unseen, {"steps": 2, "plan": a.plan}),
        "Trajectory.to": lambda: (lambda args: a.static.to(args), {"args": torch.float64}),
        "LayerKernels.each": lambda: (a.static.layers[0].each, {"change": lambda kernel: kernel}),
        "Projection.__call__": lambda: (projection, {"returned": outputs}),
        "Projection.matrix": lambda: (projection.matrix, {"outputs": 3}),
        "NTKOperator.__matmul__": lambda: (ntk.__matmul__, {"vector": torch.ones(4)}),
        "LiveScalars.__call__": lambda: _live(report.LiveScalars(a.folder / "live", a.recorder)),
        "LiveComparison.__call__": lambda: _live(report.LiveComparison(a.folder / "live", a.recorder)),
        "Recorder.keep": lambda: _kept(a.recorder),
        "architecture.describe": lambda: (architecture.describe, {"model": network(), "example_input": INPUTS}),
        "deviation": lambda: (comparison.deviation, {"measured": a.kernel, "predicted": a.kernel}),
        "figures.densities": lambda: (figures.densities, {"comparison": a.against_itself, "field": "preactivation"}),
        "figures.has_fields": lambda: (figures.has_fields, {"comparison": a.comparison, "field": "gradient"}),
        "figures.kernels": lambda: (figures.kernels, {"comparison": a.comparison, "which": "ntk", "time": 0}),
        "figures.spectrum": lambda: (figures.spectrum, {"beside": a.spectrum.beside(torch.eye(8))}),
        "Fluctuations.covariance": lambda: (a.fluctuations.covariance, {"width": 64}),
        "Fluctuations.spread": lambda: (a.fluctuations.spread, {"width": 64}),
        "Fluctuations.bars": lambda: (a.fluctuations.bars, {"width": 64}),
        "Spectrum.at": lambda: (a.spectrum.at, {"step": 2}),
        "Spectrum.bulk": lambda: (a.spectrum.bulk, {"step": 2, "points": 8}),
        "Spectrum.beside": lambda: (a.spectrum.beside, {"weights": torch.eye(8), "step": 2}),
        "figures.learned": lambda: (figures.learned, {"run": a.measured}),
        "dynamics.responses": lambda: (
            dynamics.responses,
            {"answers": (theory.Responses("2", torch.zeros(3, 4, 3, 4), torch.zeros(3, 4, 3, 4)),)},
        ),
        "dynamics.spectrum": lambda: (
            dynamics.spectrum,
            {"result": comparison.ntk_spectrum(a.measured), "shown": 2},
        ),
    }
    for name in ("figures", "losses", "target_alignment", "alignments", "relative_errors"):
        found[f"figures.{name}"] = lambda name=name: (getattr(figures, name), {"comparison": a.comparison})  # type: ignore[misc]
    for name in ("preactivations", "gradient_fields"):
        found[f"figures.{name}"] = lambda name=name: (getattr(figures, name), {"comparison": a.against_itself})  # type: ignore[misc]
    for name in solvers.__all__:
        solver = getattr(solvers, name)(**_SMALL.get(name, {}))
        problem = a.solved_by(name)
        asked = {"problem": problem, "record": torch.tensor([0, 1])}
        found[f"{name}.check"] = lambda of=solver, problem=problem: (of.check, {"problem": problem})  # type: ignore[misc]
        found[f"{name}.estimate"] = lambda of=solver, asked=asked: (of.estimate, asked)  # type: ignore[misc]
        found[f"{name}.run"] = lambda of=solver, asked=asked: (of.run, {**asked, "two_time": False, "progress": False})  # type: ignore[misc]
        if hasattr(solver, "run_shared"):
            shared = {**asked, "two_time": False, "progress": False, "sharing": Sharing(Ranks())}
            found[f"{name}.run_shared"] = lambda of=solver, shared=shared: (of.run_shared, shared)  # type: ignore[misc]
        if hasattr(solver, "tolerance_for"):
            found[f"{name}.tolerance_for"] = lambda of=solver: (of.tolerance_for, {"problem": a.problem})  # type: ignore[misc]
    iterated = solvers.AlternatingMonteCarlo(**_SMALL["AlternatingMonteCarlo"])
    found["AlternatingMonteCarlo.order_parameters"] = lambda: (
        lambda problem, times, progress: list(iterated.order_parameters(problem, times, progress=progress)),
        {"problem": a.problem, "times": 1, "progress": False},
    )
    found["WhitenedLinear.final_kernels"] = lambda: (
        solvers.WhitenedLinear().final_kernels,
        {"problem": a.solved_by("WhitenedLinear")},
    )
    return found


def _sight(plan: dmft.Plan) -> Sight:
    return Sight(plan, (torch.optim.SGD(plan.param_groups(0.1)),))


def _live(log: Any) -> Call:
    return log, {"step": 0, "record": log.recorder.record()}


def _kept(recorder: dmft.Recorder) -> Call:
    return recorder.keep, {"taken": recorder.look()}
