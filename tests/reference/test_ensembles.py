"""Averages, standard errors and the extrapolation in 1/N."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.reference.ensembles import Estimate, ensemble, extrapolate, fit, observables, relative_stderr, z_scores
from tests.reference.networks import Chain, Training
from torch_dmft.core import training as trainings
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.trajectory import LayerKernels, Trajectory

MakeGenerator = Callable[[int], torch.Generator]
CHAIN = Chain(depth=2)


@pytest.fixture
def training(generator: torch.Generator) -> Training:
    inputs = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return Training(inputs, torch.sign(inputs[:, 0]), lr=0.3, steps=4)


def test_chunks_merge_to_the_moments_of_all_draws(training: Training, generator: torch.Generator) -> None:
    estimate = ensemble(CHAIN, training, 16, 22, generator, chunk=4, keep=True, dtype=torch.float64)
    assert estimate.draws is not None
    assert estimate.units == 22
    for name, draws in estimate.draws.items():
        assert len(draws) == 22
        torch.testing.assert_close(estimate.mean[name], draws.mean(0), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(estimate.stderr[name], draws.std(0) / 22**0.5, rtol=1e-10, atol=1e-10)


def test_single_precision_is_enough(training: Training, make_generator: MakeGenerator) -> None:
    double, single = (
        ensemble(CHAIN, training, 32, 64, make_generator(1), dtype=dtype) for dtype in (torch.float64, torch.float32)
    )
    assert single.mean["ntk"].dtype == torch.float64
    # The draws differ between precisions, so the two are independent ensembles.
    for name, score in z_scores(double, single.mean, single.stderr).items():
        assert score.abs().max() < 5, name


def test_pairs_estimate_the_same_means_with_less_noise(training: Training, make_generator: MakeGenerator) -> None:
    # Lazy networks: f(0) is large, so what is odd in it dominates the noise.
    chain = Chain(depth=2, gamma0=0.2)
    plain = ensemble(chain, training, 32, 2000, make_generator(1))
    paired = ensemble(chain, training, 32, 2000, make_generator(2), antithetic=True)
    assert paired.units == 1000
    assert paired.mean["outputs"][0].abs().max() < 1e-6
    for name, score in z_scores(plain, paired.mean, paired.stderr).items():
        assert score.abs().max() < 5, name
    assert relative_stderr(paired)["outputs"] < 0.5 * relative_stderr(plain)["outputs"]


@pytest.mark.parametrize("antithetic", [False, True])
def test_standard_errors_of_the_limit_are_honest(
    antithetic: bool, training: Training, make_generator: MakeGenerator
) -> None:
    seeds = 150
    limits = [
        extrapolate(
            CHAIN, training, {8: 60, 16: 60, 32: 60}, make_generator(seed), antithetic=antithetic, record=[0, 3]
        )
        for seed in range(seeds)
    ]
    for name in ("outputs", "losses", "forward.1", "forward.2", "backward.0", "backward.1", "ntk"):
        values = torch.stack([limit.mean[name] for limit in limits])
        errors = torch.stack([limit.stderr[name] for limit in limits])
        if antithetic and name in ("outputs", "losses"):  # at step 0 pairs leave rounding only, and f^2 twice as noisy
            values, errors = values[:, 1:], errors[:, 1:]
        squares = (values - values.mean(0)).square() / errors.square()
        # Were all entries one draw, the mean of z^2 over the seeds would scatter by sqrt(2 / seeds) = 0.12.
        assert abs(float(squares.mean()) - 1) < 0.5, (name, float(squares.mean()))
        goodness = sum(limit.goodness[name] for limit in limits) / seeds
        assert goodness < 1.6, (name, goodness)


def estimates(values: dict[int, float], error: float) -> list[Estimate]:
    return [
        Estimate(width, 100, {"f": torch.tensor([v], dtype=torch.float64)}, {"f": torch.tensor([error]).double()})
        for width, v in values.items()
    ]


def test_the_fit_recovers_a_polynomial_in_one_over_width() -> None:
    straight = fit(estimates({n: 3 - 20 / n for n in (64, 128, 256)}, 0.01))
    assert straight.mean["f"].item() == pytest.approx(3, abs=1e-10)
    assert straight.goodness["f"] == pytest.approx(0, abs=1e-10)
    curved = estimates({n: 3 - 20 / n + 500 / n**2 for n in (32, 64, 128, 256)}, 0.01)
    assert fit(curved, order=2).mean["f"].item() == pytest.approx(3, abs=1e-10)
    assert fit(curved, order=1).goodness["f"] > 10


def test_the_error_of_the_fit_is_that_of_weighted_least_squares() -> None:
    # Two widths: a = 2 f(2N) - f(N), hence a standard error of sqrt(4 + 1) times each.
    two = fit(estimates({50: 1.0, 100: 2.0}, 0.1))
    assert two.mean["f"].item() == pytest.approx(3, abs=1e-10)
    assert two.stderr["f"].item() == pytest.approx(0.1 * 5**0.5, rel=1e-6)
    with pytest.raises(ValueError, match="Add a width"):
        two.goodness  # noqa: B018


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("two_time", [False, True])
def test_observables_have_the_layout_of_a_trajectory(
    outputs: int, two_time: bool, training: Training, generator: torch.Generator
) -> None:
    chain = Chain(depth=2, outputs=outputs)
    task = Training(training.inputs, torch.eye(3)[:, :outputs], lr=0.1, steps=2)
    mean = ensemble(chain, task, 8, 4, generator, two_time=two_time).mean
    trajectory = Trajectory(
        steps=torch.arange(2),
        outputs=mean["outputs"],
        losses=mean["losses"],
        layers=tuple(
            LayerKernels(
                str(layer),
                forward=Kernel(mean[f"forward.{layer}"]),
                backward=Kernel(mean[f"backward.{layer}"]),
                ntk=Kernel(mean[f"ntk.{layer}"]),
            )
            for layer in range(3)
        ),
        ntk=Kernel(mean["ntk"]),
        origin="networks (N=8)",
        training=trainings.Training.sgd(0.1, 2),
        train=torch.ones(3, dtype=torch.bool),
    )
    for layer in trajectory.layers:
        assert not layer.forward.has_outputs
        assert layer.backward.has_outputs == layer.ntk.has_outputs == (outputs > 1)
        assert layer.backward.is_two_time == two_time
    again = observables(trajectory)
    assert again.keys() == mean.keys()
    for score in z_scores(Estimate(8, 4, mean, {n: torch.ones_like(v) for n, v in mean.items()}), again).values():
        assert not score.any()
    with pytest.raises(ValueError, match=r"forward\.0"):
        z_scores(Estimate(8, 4, mean, mean), {"forward.0": mean["forward.0"][:1]})
