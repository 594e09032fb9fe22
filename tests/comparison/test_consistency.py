"""Networks of the right width are found consistent, others are told apart and the layer is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import torch_dmft as dmft
from tests.reference.networks import Chain, Training, initialise, train
from torch_dmft.comparison.consistency import Consistency, consistency
from torch_dmft.core import training as trainings
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.trajectory import LayerKernels, Trajectory

N, P, STEPS = 64, 5, 6
THEIRS = trainings.Training.sgd(0.1, STEPS)  # also of those that were secretly trained otherwise
RECORD = [0, 2, 4, 6]


def half_square(outputs, targets):
    return 0.5 * (outputs - targets).square().sum()


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(P, 6, generator=generator, dtype=torch.float64)
    return x, torch.sign(torch.randn(P, 1, generator=generator, dtype=torch.float64))


@pytest.fixture(scope="module")
def problem(data) -> dmft.Problem:
    return dmft.Problem.mlp(*(each.float() for each in data), depth=3, loss=half_square, lr=0.1, steps=STEPS)


@pytest.fixture(scope="module")
def predicted(problem) -> Trajectory:
    return dmft.solve(problem, dmft.solvers.FiniteWidth(N), record=RECORD)


def networks(data, count, *, gamma0=1.0, lr=0.1, width=N, scaled=None, factor=1.3, seed=1) -> list[Trajectory]:
    """Networks of the oracle, as a recorder would measure them."""
    x, y = data
    chain, training = Chain(3, gamma0=gamma0), Training(x, y, lr, STEPS, loss=half_square)
    parameters = initialise(chain, width, count, x.shape[1], torch.Generator().manual_seed(seed), dtype=torch.float32)
    if scaled is not None:
        parameters[f"weight.{scaled}"] *= factor
    found = train(chain, training, parameters, record=RECORD)

    def run(e: int) -> Trajectory:
        kinds = ("forward", "backward", "ntk")
        layers = tuple(
            LayerKernels(str(2 * index), *(Kernel(found[f"{kind}.{index}"][e]) for kind in kinds)) for index in range(4)
        )
        return Trajectory(
            steps=torch.tensor(RECORD),
            outputs=found["outputs"][e],
            losses=found["losses"][e],
            layers=layers,
            ntk=Kernel(found["ntk"][e]),
            origin=f"network (N={width})",
            training=replace(THEIRS, steps=STEPS),
            train=torch.ones(P, dtype=torch.bool),
            targets=y,
            width=width,
        )

    return [run(e) for e in range(count)]


def recorded(problem, seed, *, fast=None, factor=1.0, centered=False) -> Trajectory:
    """A network that a user trains, of one weight with a larger learning rate."""
    inputs, targets = problem.inputs, problem.target_values
    model = problem.chain.build(N)
    plan = dmft.parameterize(model, inputs, generator=torch.Generator().manual_seed(seed))
    run = dmft.centered(model) if centered else model
    recorder = dmft.Recorder(plan, dmft.Probe(inputs, targets), every=2, loss=half_square, model=run)
    groups = [{**group, "params": [p]} for group in plan.param_groups(0.1) for p in group["params"]]
    for group in groups:
        if fast is not None and group["params"][0] is model[2 * fast].weight:
            group["lr"] *= factor
    optimizer = torch.optim.SGD(groups)
    with recorder.attach(optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            half_square(run(inputs), targets).backward()
            optimizer.step()
    return recorder.trajectory()


def judged(data, predicted, count, **changes) -> list[Consistency]:
    found = [consistency(run, predicted) for run in networks(data, count, **changes)]
    assert all(each is not None for each in found)
    return found


def rejected(found: list[Consistency]) -> float:
    return sum(not each.consistent for each in found) / len(found)


def test_networks_of_the_right_width_are_called_inconsistent_in_five_of_a_hundred_cases(data, predicted):
    found = judged(data, predicted, 100)
    # 5 of 100 on average over replicas and networks; one set of 64 replicas fixes the rate to a few per cent.
    assert rejected(found) < 0.15
    assert 0.35 < sum(each.p for each in found) / len(found) < 0.65


def test_the_rank_is_exact_for_replicas_of_one_another(data, predicted):
    own = [
        consistency(
            predicted.replicas[e], replace(predicted, replicas=predicted.replicas[:e] + predicted.replicas[e + 1 :])
        )
        for e in range(len(predicted.replicas))
    ]
    ranks = sorted(round(each.p * len(own)) for each in own)
    assert ranks == list(range(1, len(own) + 1))


@pytest.mark.parametrize(
    ("changes", "power"),
    [({"gamma0": 2.0}, 0.8), ({"lr": 0.2}, 0.8), ({"width": N // 2}, 0.3)],
    ids=["gamma0", "lr", "half the width"],
)
def test_other_networks_are_told_apart(data, predicted, changes, power):
    found = judged(data, predicted, 20, **changes)
    assert rejected(found) >= power
    if "width" not in changes:
        assert sum(each.starts_wrong for each in found) <= 5


@pytest.mark.parametrize("weight", [1, 2, 3])
def test_a_layer_with_too_large_an_init_is_named(data, predicted, weight):
    found = judged(data, predicted, 20, scaled=weight)
    assert rejected(found) >= 0.5
    assert sum(each.start.suspect == str(2 * weight) for each in found) >= 14


@pytest.mark.parametrize(("weight", "factor"), [(0, 5), (1, 5), (2, 5), (3, 3)])
def test_a_layer_that_learns_too_fast_is_named(problem, predicted, weight, factor):
    found = [consistency(recorded(problem, seed, fast=weight, factor=factor), predicted) for seed in range(8)]
    assert rejected(found) >= 0.6
    assert sum(each.learned.suspect == str(2 * weight) for each in found) >= 6
    assert sum(each.starts_wrong for each in found) <= 2


def test_compare_trains_networks_of_the_measured_width(problem, predicted):
    static = dmft.solve(problem, dmft.solvers.StaticNTK(), record=RECORD)
    run = recorded(problem, 1)
    found = dmft.compare(run, static, problem=problem, replicas=40)
    assert [each.origin for each in found.predictions] == ["static NTK (N=inf)", "theory (N=64)"]
    judgement = found.deviations[1].consistency
    assert judgement.replicas == 40
    assert judgement.consistent
    assert "is consistent with width N = 64" in str(found)
    fast = recorded(problem, 2, fast=2, factor=5)
    with pytest.raises(InvalidInputError, match=r"learning rate of 4\.weight: network 0\.5, theory 0\.1"):
        dmft.compare(fast, static, predicted)
    unseen = dmft.compare(replace(fast, training=static.training), static, predicted)
    assert "is not consistent with width N = 64" in unseen.verdict
    assert "learning rates, first of weight '4'" in unseen.verdict


@pytest.mark.parametrize(("weight", "factor"), [(0, 9.0), (1, 9.0), (2, 3.0), (2, 1 / 9), (3, 9.0)])
def test_a_wrong_start_is_called_one_whatever_its_size(data, predicted, weight, factor):
    """A weight that starts too large makes training wrong too, and more so the larger it is."""
    found = judged(data, predicted, 12, scaled=weight, factor=factor)
    assert sum(each.starts_wrong for each in found) >= 11
    assert sum(each.start.suspect == str(2 * weight) for each in found) >= 10
    runs = zip(networks(data, 12, scaled=weight, factor=factor), found, strict=True)
    verdict = dmft.compare(next(run for run, each in runs if each.start.suspect == str(2 * weight)), predicted).verdict
    assert f"look at the initialisation, first of weight '{2 * weight}'" in verdict


def test_only_a_network_of_one_width_is_judged_by_its_width(problem):
    static = dmft.solve(problem, dmft.solvers.StaticNTK(), record=RECORD)
    for run in (recorded(problem, 1, centered=True), static):
        with pytest.raises(InvalidInputError, match="of one known width"):
            dmft.compare(run, static, problem=problem)


def test_other_data_are_infinitely_far(data, predicted):
    x, y = data
    (run,) = networks((1.01 * x, y), 1)
    found = consistency(run, predicted)
    assert found.p == pytest.approx(1 / 65)
    assert found.start.layers[0].forward.z > 100


def test_the_report_says_whether_the_width_explains_it(data, predicted):
    good = dmft.compare(next(r for r in networks(data, 9) if consistency(r, predicted).consistent), predicted)
    assert "network (N=64) is consistent with width N = 64" in good.verdict
    assert good.verdict.startswith("network (N=64) follows theory (N=64) as closely as other networks of its width do.")
    details = str(good.details())
    assert "Deviation in units of a typical network's" in details
    assert "z = -3: closer than typical" in " ".join(details.split())
    runs = networks(data, 9, scaled=2)
    bad = next(run for run in runs if consistency(run, predicted).starts_wrong)
    verdict = dmft.compare(bad, predicted).verdict
    assert "is not consistent with width N = 64" in verdict
    assert verdict.startswith("network (N=64) departs from theory (N=64) by more than its width explains.")
    assert "look at the initialisation, first of weight '4'" in verdict
    assert "where 0 is typical" in verdict
    fast = dmft.compare(networks(data, 1, lr=0.2)[0], predicted).verdict
    assert "look at gamma0, loss, optimizer and learning rates" in fast


def test_few_replicas_cannot_tell(data, predicted):
    few = replace(predicted, replicas=predicted.replicas[:10])
    assert "too few to tell" in dmft.compare(networks(data, 1)[0], few).verdict


def test_predictions_without_replicas_are_not_judged(data, predicted):
    found = dmft.compare(networks(data, 1)[0], replace(predicted, replicas=()))
    assert found.deviations[0].consistency is None
    assert "consistent" not in found.verdict


def test_replicas_survive_a_file(predicted, tmp_path):
    predicted.save(tmp_path / "run.npz")
    again = Trajectory.load(tmp_path / "run.npz")
    assert len(again.replicas) == len(predicted.replicas)
    torch.testing.assert_close(again.spread.ntk.array, predicted.spread.ntk.array, rtol=0, atol=0)
