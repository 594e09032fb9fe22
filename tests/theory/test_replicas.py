"""Standard errors of replicas are honest: z-scores have unit variance."""

import pytest
import torch

from tests.reference.ensembles import observables
from torch_dmft import Problem, Trajectory, solve
from torch_dmft.theory.error_bars import standard_error
from torch_dmft.theory.replicas import average
from torch_dmft.theory.solvers import InfiniteWidth


@pytest.mark.parametrize("replicas", [2, 4, 8])
def test_z_scores_of_gaussian_arrays_have_unit_variance(replicas: int, generator: torch.Generator) -> None:
    """Independent entries of different size, whose pooled variance each has many degrees of freedom."""
    z = []
    for _ in range(2000):
        draws = list(torch.randn(replicas, 2, 3, 3, generator=generator, dtype=torch.float64))
        z.append(torch.stack(draws).mean(0) / standard_error(draws))
    assert 0.9 < float(torch.stack(z).std()) < 1.05


def test_standard_error_falls_with_replicas(generator: torch.Generator) -> None:
    def mean_error(replicas: int) -> float:
        draws = [torch.randn(replicas, 2, 5, 5, generator=generator) for _ in range(60)]
        return float(torch.stack([standard_error(list(d)).square().mean() for d in draws]).mean().sqrt())

    assert abs(mean_error(16) / mean_error(64) - 2) < 0.2


def half_sum(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.5 * (f - t).square().sum()


@pytest.fixture(scope="module")
def single_twins() -> tuple[Problem, list[Trajectory]]:
    """Sixty small twins of one problem, to be put together to answers of a few replicas."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 6, generator=generator), torch.sign(torch.randn(6, 1, generator=generator))
    problem = Problem.mlp(x, y, depth=2, lr=0.3, steps=4, loss=half_sum)
    source = torch.Generator().manual_seed(1)

    def twin(seed: int) -> Trajectory:
        return solve(problem, InfiniteWidth(256, 1, generator=source.manual_seed(seed)), record=[1, 4])

    return problem, [twin(seed) for seed in range(60)]


@pytest.mark.parametrize("replicas", [2, 4])
def test_z_scores_of_the_loss_have_unit_variance(single_twins, replicas: int, generator: torch.Generator) -> None:
    """Or less of two replicas, whose bars the sum of two priors widens."""
    problem, runs = single_twins

    def answer(some: list[Trajectory]) -> Trajectory:
        return average(some, origin="theory", metadata={}, loss=problem.training_loss)

    exact = answer(runs)
    z = []
    for _ in range(80):
        chosen = torch.randperm(len(runs), generator=generator)[:replicas]
        found = answer([runs[index] for index in chosen])
        among = 1 - replicas / len(runs)  # of the variance, as these are some of all runs
        z.append((found.losses - exact.losses) / found.stderr.losses / among**0.5)
    assert 0.6 < float(torch.stack(z).square().mean().sqrt()) < 1.2


def test_the_loss_of_a_limit_is_that_of_its_outputs(single_twins) -> None:
    problem, runs = single_twins
    found = solve(problem, InfiniteWidth(256, 2), record=[1, 4])
    expected = torch.stack([problem.training_loss(outputs) for outputs in found.outputs])
    torch.testing.assert_close(found.losses, expected, rtol=0, atol=0)
    alone = average(runs[:1], origin="theory", metadata={}, loss=problem.training_loss)
    assert alone.stderr is None


@pytest.mark.long
def test_z_scores_of_a_known_problem_have_unit_variance() -> None:
    """Forty seeds against a much more precise solution; entries pooled, as a reader of the report would."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 6, generator=generator)
    y = torch.sign(torch.randn(4, 1, generator=generator))

    problem = Problem.mlp(x[:4], y, depth=3, lr=0.2, steps=8, loss=half_sum, test_inputs=x[4:])

    def answer(neurons: int, replicas: int, seed: int) -> Trajectory:
        random = torch.Generator().manual_seed(seed)
        return solve(problem, InfiniteWidth(neurons, replicas, generator=random), record=[4, 8])

    reference = answer(8192, 24, seed=0)
    exact, exact_error = observables(reference), observables(reference.stderr)
    scores: dict[str, list[torch.Tensor]] = {}
    for seed in range(1, 41):
        found = answer(2048, 4, seed)
        error = observables(found.stderr)
        for name, values in observables(found).items():
            if float(error[name].max()) > 1e-4 * float(values.abs().max()):  # given kernels have no error
                z = (values - exact[name]) / (error[name] ** 2 + exact_error[name] ** 2).sqrt()
                scores.setdefault(name, []).append(z.flatten())
    everything = torch.cat([torch.cat(parts) for parts in scores.values()])
    assert 0.8 < float(everything.std()) < 1.2
    for name, parts in scores.items():
        assert 0.7 < float(torch.cat(parts).std()) < 1.3, name
