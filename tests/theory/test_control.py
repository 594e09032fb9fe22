"""What starts tell of runs: fewer networks for the same error, no bias, honest standard errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference.ensembles import observables
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.training import Training
from torch_dmft.core.trajectory import LayerKernels, Trajectory
from torch_dmft.theory.control import Start, slopes_of
from torch_dmft.theory.replicas import average
from torch_dmft.theory.solvers import WideEnsemble

RUNS, MORE, SLOPE, LEFT = 32, 8, 2.0, 0.3


def _run(value: Tensor) -> Trajectory:
    """A run in which everything is one number."""
    kernel = Kernel(value.reshape(1, 1, 1))
    return Trajectory(
        steps=torch.zeros(1, dtype=torch.int64),
        outputs=value.reshape(1, 1, 1),
        losses=value.reshape(1),
        layers=(LayerKernels("0", kernel, kernel, kernel),),
        ntk=kernel,
        origin="",
        training=Training.sgd(0.1, 1),
        train=torch.ones(1, dtype=torch.bool),
    )


def _drawn(generator: torch.Generator, *, looks: int, left: float = LEFT) -> tuple[Trajectory, Start]:
    """A run y = 5 + 2 x + noise, x of variance one about 10; a size that tells nothing, and one that does not vary."""

    def look() -> Tensor:
        return torch.stack([*(10 + torch.randn(2, generator=generator, dtype=torch.float64)), torch.tensor(3.0)])

    own = look()
    y = 5 + SLOPE * (own[0] - 10) + left * torch.randn((), generator=generator, dtype=torch.float64)
    others = [look() for _ in range(looks)]
    gap = (own - torch.stack([own, *others]).mean(0)) if others else None
    return _run(y), Start(own, gap)


def test_corrected_runs_keep_the_mean_and_know_their_scatter(generator):
    told = [_drawn(generator, looks=0) for _ in range(RUNS)]
    slopes = slopes_of(*zip(*told, strict=True), more=MORE)
    variance = LEFT**2 + SLOPE**2 / (1 + MORE)
    share = variance / (LEFT**2 + SLOPE**2)
    assert share * RUNS <= slopes.needed <= 2 * share * RUNS + 8
    runs = [_drawn(generator, looks=MORE) for _ in range(600)]
    corrected = [slopes.corrected(run, start.gap) for run, start in runs]
    values = torch.stack([run.outputs for run in corrected])
    assert abs(float(values.mean()) - 5) < 5 * (variance / len(runs)) ** 0.5
    # The slope is off by the noise of 32 runs: a sixth of it, which adds little.
    assert abs(float(values.var()) / variance - 1) < 0.3  # five standard errors
    error = float(average(corrected, origin="", metadata={}).stderr.outputs)
    assert abs(error / (variance / len(runs)) ** 0.5 - 1) < 0.15


def test_a_width_at_which_starts_tell_more_needs_fewer_runs(generator):
    """And one at which they tell less needs no more, as chance would have it so now and then."""
    told = [_drawn(generator, looks=0, left=1.0) for _ in range(RUNS)]
    slopes = slopes_of(*zip(*told, strict=True), more=MORE)
    needed = []
    for left in (0.5, 1.0, 3.0):
        runs = [_drawn(generator, looks=MORE, left=left) for _ in range(300)]
        corrected = [slopes.corrected(run, start.gap) for run, start in runs]
        needed.append(slopes.judged(corrected, [start for _, start in runs], instead=RUNS).needed)
    variances = [(left**2 + SLOPE**2 / (1 + MORE)) / (left**2 + SLOPE**2) for left in (0.5, 1.0)]
    for found, share in zip(needed, variances, strict=False):
        assert 0.7 * share * RUNS <= found <= max(8, 1.3 * share * RUNS + 1)
    assert needed[0] < needed[1] <= needed[2] == slopes.needed


def test_starts_that_tell_nothing_are_left_alone(generator):
    told = [_drawn(generator, looks=0) for _ in range(RUNS)]
    other = [_drawn(generator, looks=0)[1] for _ in range(RUNS)]
    assert slopes_of([run for run, _ in told], other, more=MORE) is None
    still = [Start(torch.ones(3, dtype=torch.float64)) for _ in told]
    assert slopes_of([run for run, _ in told], still, more=MORE) is None


def _images(generator: torch.Generator) -> dmft.Problem:
    """A CNN whose images are much alike, so that kernels of different networks differ by factors above all."""
    x = 1 + 0.3 * torch.randn(4, 1, 4, 4, generator=generator)
    y = torch.tensor([[1.0], [1.0], [2.0], [1.0]])
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)),
    )
    plan = dmft.parameterize(model, x, generator=generator)
    return dmft.Problem.like(plan, dmft.Probe(x, y), lr=0.1, steps=3)


def test_fewer_networks_are_as_precise(generator):
    problem = _images(generator)
    widths, found = (32, 64), {}
    for starts in (0, 8):
        found[starts] = dmft.solve(problem, WideEnsemble(widths, pairs=32, starts=starts), record=[0, 3])
    plain, corrected = found[0], found[8]
    assert plain.metadata["pairs"] == 32
    first, other = map(int, corrected.metadata["pairs"].split(", "))
    assert first == 32
    assert 8 <= other <= 24
    x, y, x_error, y_error = (observables(run) for run in (plain, corrected, plain.stderr, corrected.stderr))
    worst = [max(float(e[n].norm() / v[n].norm()) for n in v) for v, e in ((x, x_error), (y, y_error))]
    assert worst[1] < 1.3 * worst[0]
    for name in x:
        error = (x_error[name] ** 2 + y_error[name] ** 2).sqrt()
        varies = error > 1e-5 * x[name].square().mean().sqrt()
        assert bool((((x[name] - y[name]) / error)[varies].abs() < 5).all()), name


@pytest.mark.long
def test_standard_errors_are_honest():
    """Twenty seeds against six hundred pairs of which none is spared; entries pooled, as a reader of the report would."""
    problem, widths, record = _images(torch.Generator().manual_seed(0)), (32, 64), [0, 1, 3]

    def solved(seed: int, **settings: int) -> Trajectory:
        solver = WideEnsemble(widths, generator=torch.Generator().manual_seed(seed), **settings)
        return dmft.solve(problem, solver, record=record)

    reference = solved(10**6, pairs=600, starts=0)
    exact, exact_error = observables(reference), observables(reference.stderr)
    scores: dict[str, list[Tensor]] = {}
    trained = []
    for seed in range(20):
        run = solved(seed)
        trained.append(int(str(run.metadata["pairs"]).split(", ")[-1]))
        values, errors = observables(run), observables(run.stderr)
        for name, value in values.items():
            varies = errors[name] > 1e-5 * value.square().mean().sqrt()
            error = (errors[name] ** 2 + exact_error[name] ** 2).sqrt()
            scores.setdefault(name, []).append(((value - exact[name]) / error)[varies])
    assert sum(trained) / len(trained) < 20
    sizes = {name: float(torch.cat(parts).square().mean().sqrt()) for name, parts in scores.items()}
    assert all(0.7 < size < 1.4 for size in sizes.values() if size == size), sizes
