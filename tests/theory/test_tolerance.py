"""What the bases of a twin leave out is small beside what sampling adds, and no smaller than it need be."""

import math

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft import Problem, solve
from torch_dmft.theory.solvers import InfiniteWidth
from torch_dmft.theory.tolerance import balanced_tolerance, default_tolerance, has_kinks

NEURONS, REPLICAS, SEEDS, FINE = 256, 4, 10, 0.005


def _problem(activation: str, batch: int | None, *, gamma0: float = 1.0, **options: object) -> Problem:
    generator = torch.Generator().manual_seed(0)
    samples, steps = (10, 30) if batch is None else (16, 24)
    x, y = torch.randn(samples, 20, generator=generator), torch.sign(torch.randn(samples, 1, generator=generator))
    batches = None if batch is None else [torch.randperm(samples, generator=generator)[:batch] for _ in range(steps)]
    gain = math.sqrt(2) if activation == "relu" else 1.0
    settings = {"depth": 3, "activation": activation, "gain": gain, "lr": 0.02 if batch is None else 0.05}
    return Problem.mlp(x, y, gamma0=gamma0, steps=steps, batches=batches, loss=_half_square, **settings | options)


def _half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


def _sizes(problem: Problem, tolerance: float, seed: int) -> tuple[Tensor, int]:
    """The sizes of outputs, Phi and G, in logarithms, and the rank."""
    generator = torch.Generator().manual_seed(seed)
    run = solve(problem, InfiniteWidth(NEURONS, 1, tolerance, generator))
    kernels = [run.layers[-1].forward, *(layer.backward for layer in run.layers[:-1])]
    sizes = [float(run.outputs.norm()), *(float(kernel.equal_time.norm()) for kernel in kernels)]
    return torch.tensor(sizes, dtype=torch.float64, device="cpu").log(), int(run.metadata["rank"] or 0)


@pytest.mark.parametrize(("activation", "batch"), [("relu", None), ("tanh", 4)], ids=["kinks", "minibatches"])
def test_it_biases_an_answer_by_less_than_its_bar(activation: str, batch: int | None) -> None:
    """In pairs of the same seed; outputs at three times the tolerance are too small. A third of the directions is saved."""
    problem = _problem(activation, batch)
    tolerance = balanced_tolerance(problem, NEURONS * REPLICAS)
    fine, usual, coarse = (
        [_sizes(problem, one, seed) for seed in range(SEEDS)] for one in (FINE, tolerance, 3 * tolerance)
    )
    bar = torch.stack([sizes for sizes, _ in fine]).std(0) / REPLICAS**0.5

    def bias(of: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """The mean of the differences, in bars of the answer, and its standard error."""
        gaps = torch.stack([one[0] - other[0] for one, other in zip(of, fine, strict=True)]) / bar
        return gaps.mean(0), gaps.std(0) / SEEDS**0.5

    found, noise = bias(usual)
    assert bool((found.abs() <= 1 + 2 * noise).all()), (found, noise)
    assert float(found[0]) > -1
    assert float(bias(coarse)[0][0]) < -1.5
    assert max(rank for _, rank in usual) < 0.67 * max(rank for _, rank in fine)


def test_it_keeps_its_ratio_to_the_sampling_error() -> None:
    for problem, constant in ((_problem("relu", None), 0.25), (_problem("tanh", 4), 0.2), (_problem("relu", 4), 0.2)):
        for draws in (256, 2**15, 2**20):
            assert balanced_tolerance(problem, draws) == pytest.approx(constant * draws**-0.25)
    lazy = _problem("relu", None, gamma0=0.1)
    assert balanced_tolerance(lazy, 2**15) == pytest.approx(0.1 * balanced_tolerance(_problem("relu", None), 2**15))


@pytest.mark.parametrize(
    "problem",
    [
        _problem("tanh", None),
        _problem("relu", None, rule="hebb"),
        _problem("relu", None, optimizer="adamw"),
    ],
    ids=["smooth, full batches", "another rule", "Adam"],
)
def test_elsewhere_it_is_as_fine_as_ever(problem: Problem) -> None:
    assert balanced_tolerance(problem, 2**15) == default_tolerance(1.0, 2**15) == pytest.approx(1.5 * 2**-7.5)


def test_solvers_take_it_unless_they_are_given_another() -> None:
    problem = _problem("relu", None)
    assert InfiniteWidth(512, 4).tolerance_for(problem) == balanced_tolerance(problem, 2048)
    assert InfiniteWidth(512, 4, 1e-3).tolerance_for(problem) == 1e-3


@pytest.mark.parametrize(("activation", "kinks"), [(nn.ReLU, True), (nn.Tanh, False)])
def test_kinks_are_seen_in_any_network(activation: type[nn.Module], kinks: bool) -> None:
    model = nn.Sequential(
        nn.Conv1d(2, 8, 3), activation(), nn.Conv1d(8, 8, 3), activation(), nn.Flatten(), nn.Linear(16, 1)
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 2, 6, generator=generator)
    plan = dmft.parameterize(model, x, generator=generator)
    probe = dmft.Probe(x, torch.ones(4, 1, device="cpu"), train=torch.ones(4, dtype=torch.bool, device="cpu"))
    assert has_kinks(Problem.like(plan, probe, lr=0.1, steps=2)) is kinks
