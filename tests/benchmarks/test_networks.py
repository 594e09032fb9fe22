"""The peer of the speed comparisons does the work it is timed for."""

from dataclasses import replace

import pytest
import torch

import torch_dmft as dmft
from benchmarks.networks import Sums, draw, evolve, measured_outputs, train, train_sequential
from benchmarks.setting import chain_problem, kernels_of


@pytest.fixture
def problem() -> dmft.Problem:
    posed = chain_problem(samples=4, steps=6, gamma0=0.8)
    return replace(posed, inputs=posed.inputs.double(), targets=posed.targets.double())


def test_networks_side_by_side_are_recorded_modules(problem: dmft.Problem, generator: torch.Generator) -> None:
    weights = draw(problem, 12, 3, generator)
    models = [problem.chain.build(12).double() for _ in range(3)]
    plans = [dmft.parameterize(model, problem.inputs, problem.gamma0) for model in models]
    for network, model in enumerate(models):
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.data.copy_(weight[network])
    found = evolve(problem, weights)
    for network, plan in enumerate(plans):
        optimizer = torch.optim.SGD(plan.param_groups(problem.lr))
        recorder = dmft.Recorder(plan, dmft.Probe(problem.inputs, problem.targets), loss=problem.loss)
        with recorder.attach(optimizer):
            for _ in range(problem.steps):
                optimizer.zero_grad()
                problem.training_loss(plan.model(problem.inputs)).backward()
                optimizer.step()
        expected = kernels_of(recorder.trajectory())
        assert set(found) == set(expected)
        for name, kernel in expected.items():
            torch.testing.assert_close(found[name][:, network], kernel, rtol=0, atol=1e-10)


def test_the_loop_that_measures_by_autograd_measures_the_same(problem: dmft.Problem) -> None:
    model = problem.chain.build(12).double()
    plan = dmft.parameterize(model, problem.inputs, problem.gamma0)
    recorder = dmft.Recorder(plan, dmft.Probe(problem.inputs, problem.targets), loss=problem.loss)
    recorder.record()
    outputs, kernels = measured_outputs(model, problem)
    recorded = recorder.trajectory()
    torch.testing.assert_close(outputs, recorded.outputs[0])
    expected = {name: kernel[0] for name, kernel in kernels_of(recorded).items()}
    assert set(kernels) == set(expected)
    for name, kernel in kernels.items():
        torch.testing.assert_close(kernel, expected[name], rtol=0, atol=1e-10)


def test_networks_in_an_ordinary_loop_are_those_side_by_side(problem: dmft.Problem, make_generator) -> None:
    loop = train_sequential(problem, 12, 3, make_generator(5))
    together = train(problem, 12, 3, make_generator(5), chunk=1).mean
    assert set(loop) == set(together)
    for name, kernel in together.items():
        torch.testing.assert_close(loop[name], kernel, rtol=0, atol=1e-10)
    assert train_sequential(problem, 12, 1, make_generator(5), measured=False) == {}


def test_initial_weights_have_the_mean_field_scale(problem: dmft.Problem, generator: torch.Generator) -> None:
    """The wrapped module's own: a wrong scale would be another network."""
    plan = dmft.parameterize(problem.chain.build(64), problem.inputs.float(), problem.gamma0, generator=generator)
    for rule, weight in zip(plan.rules, draw(problem, 64, 200, generator), strict=True):
        entries = weight.numel()
        z = (weight.square().mean() / rule.std**2 - 1) / (2 / entries) ** 0.5
        assert abs(float(z)) < 5, rule.name


@pytest.mark.parametrize("antithetic", [False, True])
def test_sums_do_not_depend_on_how_many_are_side_by_side(
    problem: dmft.Problem, antithetic: bool, make_generator
) -> None:
    """All weights of a chunk are drawn at once, so equal draws need single networks or pairs in both."""
    unit = 1 + antithetic
    single = [
        train(problem, 8, unit, generator, chunk=unit, antithetic=antithetic)
        for generator in [make_generator(3)]
        for _ in range(5)
    ]
    together = train(problem, 8, 5 * unit, make_generator(3), chunk=unit, antithetic=antithetic)
    assert together.units == 5
    for name, total in together.total.items():
        torch.testing.assert_close(sum(one.total[name] for one in single), total, rtol=0, atol=1e-10)
    stacked = {name: torch.stack([one.total[name] for one in single]) for name in together.total}
    for name, variance in together.variance(together.mean).items():
        expected = stacked[name].var(0).sum() / together.mean[name].square().sum()
        assert variance == pytest.approx(float(expected), rel=1e-8)


def test_antithetic_pairs_have_opposite_readouts(problem: dmft.Problem, generator: torch.Generator) -> None:
    *hidden, readout = draw(problem, 8, 6, generator, antithetic=True)
    torch.testing.assert_close(readout[3:], -readout[:3], rtol=0, atol=0)
    for weight in hidden:
        torch.testing.assert_close(weight[3:], weight[:3], rtol=0, atol=0)
    pairs = train(problem, 8, 6, generator, chunk=6, antithetic=True)
    assert isinstance(pairs, Sums)
    assert pairs.units == 3
