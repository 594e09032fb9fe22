"""Outlying singular values: against a matrix that is drawn whole, against trained networks, and where there are none."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft.core.errors import InvalidInputError, NotRecordedError, UnsupportedProblemError
from torch_dmft.theory import Spectrum, spectrum
from torch_dmft.theory.engine import outliers as module
from torch_dmft.theory.engine.lazy_layer import LazyLayer
from torch_dmft.theory.engine.outliers import beyond_chance, bulk_edge, outliers
from torch_dmft.theory.engine.posed import rotated, twin_of
from torch_dmft.theory.engine.training import lazy_layers, own_view, probe_of, train

_SIGMAS = 5.0


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the sum of squares."""
    return 0.5 * (outputs - targets).square().sum()


def data(samples: int = 8, dim: int = 10) -> tuple[Tensor, Tensor]:
    """Random rows and signs."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(samples, dim, generator=generator), torch.randn(samples, 1, generator=generator).sign()


def network(width: int, seed: int, *, gamma0: float, ratio: int = 1) -> tuple[nn.Module, dmft.Plan]:
    """Three hidden layers, the second ``ratio`` times as wide."""
    torch.manual_seed(seed)
    sizes = (10, width, ratio * width, width)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out, bias=False), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(width, 1, bias=False))
    return model, dmft.parameterize(model, data()[0], gamma0=gamma0)


def problem(
    *,
    gamma0: float = 2.0,
    steps: int = 20,
    lr: float = 0.05,
    ratio: int = 1,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> dmft.Problem:
    """Training of that network."""
    plan = network(32, 0, gamma0=gamma0, ratio=ratio)[1]
    return dmft.Problem.like(
        plan, dmft.Probe(*data()), steps=steps, lr=lr, loss=half_squares, momentum=momentum, weight_decay=weight_decay
    )


def trained_twin(posed: dmft.Problem, neurons: int, seed: int) -> list[LazyLayer]:
    """The infinite layers of a twin that is in law a network of that width, after training."""
    posed = rotated(posed)
    generator = torch.Generator().manual_seed(seed)
    twin = twin_of(posed, neurons, tolerance=1e-3, generator=generator, law="network", responses=True)
    last = posed.steps
    view = own_view(posed, dmft.Recorder(twin, probe_of(posed), schedule=[last]))
    train(posed, twin, view, range(last + 1), last=last, kept=[last])
    return lazy_layers(twin)


def whole(layer: LazyLayer, seed: int) -> tuple[Tensor, Tensor]:
    """The weight with all that is not known of it drawn, ``(out, in * taps)``, and its learned part."""
    matrix, scale = layer.matrix, float(layer.gain * layer.initial_scale)
    q, q_out = matrix.forward_side.basis.rows.double(), matrix.backward_side.basis.rows.double()
    xi = matrix.forward_side.latents.rows.double().reshape(len(q), matrix.copies, -1)
    xi_out = matrix.backward_side.latents.rows.double().reshape(len(q_out), matrix.copies, -1)
    core = layer.core.detach()[: len(q_out), : len(q)].double().reshape(len(q_out), len(q), -1)
    generator = torch.Generator().manual_seed(seed)
    taps, learned = [], []
    for tap in range(matrix.copies):
        fresh = matrix.scale * torch.randn(*layer.sizes, generator=generator, dtype=torch.float64)
        fresh = fresh - q_out.T @ (q_out @ fresh)
        fresh = fresh - (fresh @ q.T) @ q
        start = xi[:, tap].T @ q + q_out.T @ xi_out[:, tap] + q_out.T @ matrix.core[:, :, tap].double() @ q
        learned.append(q_out.T @ core[:, :, tap] @ q)
        taps.append(scale * (start + fresh) + learned[-1])
    return torch.stack(taps, dim=2).flatten(1), torch.stack(learned, dim=2).flatten(1)


def convolutional() -> dmft.Problem:
    """Two convolutions over eight pixels."""
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(4, 1, 8, generator=generator), torch.randn(4, 1, generator=generator).sign()
    model = nn.Sequential(
        nn.Conv1d(1, 16, 3, padding=1, bias=False),
        nn.Tanh(),
        nn.Conv1d(16, 16, 3, padding=1, bias=False),
        nn.Tanh(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(16, 1, bias=False),
    )
    plan = dmft.parameterize(model, inputs, gamma0=4.0)
    return dmft.Problem.like(plan, dmft.Probe(inputs, targets), steps=15, lr=0.1, loss=half_squares)


@pytest.mark.parametrize(
    ("case", "posed"),
    [
        ("square", problem()),
        ("rectangular", problem(ratio=2)),
        ("decay and momentum", problem(momentum=0.5, weight_decay=0.1, lr=0.03)),
        ("convolution", convolutional()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_outliers_are_those_of_the_matrix_drawn_whole(case: str, posed: dmft.Problem) -> None:
    """Given what is known of a weight, an outlier moves with what is not by O(sigma / S) only."""
    for seed in range(2):
        found = 0
        for layer in trained_twin(posed, 256, seed):
            mine = outliers(layer)
            draws = [whole(layer, seed) for seed in range(4)]
            svds = [torch.linalg.svd(weight, full_matrices=False) for weight, _ in draws]
            for k in range(len(mine.values)):
                found += 1
                drawn = torch.stack([svd.S[k] for svd in svds])
                error = float(drawn.std()) + mine.edge / layer.sizes[1]
                assert abs(float(mine.values[k]) - float(drawn.mean())) < _SIGMAS * error
                shares = torch.stack(
                    [
                        svd.U[:, k] @ learned @ svd.Vh[k] / svd.S[k]
                        for svd, (_, learned) in zip(svds, draws, strict=True)
                    ]
                )
                assert abs(float(mine.learned[k]) - float(shares.mean())) < _SIGMAS * (
                    float(shares.std()) + 1 / layer.sizes[1]
                )
            # What is left is within chance of the bulk.
            rest = max(float(svd.S[len(mine.values)]) for svd in svds)
            assert rest < 1.03 * beyond_chance(mine.edge, layer.sizes[0], layer.sizes[1] * layer.matrix.copies)
        assert found, "nothing was tested"


def test_the_start_matters_for_what_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were what is learned independent of the start, as in the textbook's formula, outliers would lie elsewhere."""
    (layer, _) = trained_twin(problem(), 256, 0)
    right = outliers(layer)
    real = module._Known.of

    def independent(layer: LazyLayer) -> module._Known:
        known = real(layer)
        noise = known.sigma**2
        rank_out, rank = known.a.shape
        return replace(
            known,
            a=known.learned,
            bb=noise * (known.sizes[1] - rank) * torch.eye(rank_out, dtype=torch.float64),
            cc=noise * (known.sizes[0] - rank_out) * torch.eye(rank, dtype=torch.float64),
        )

    monkeypatch.setattr(module._Known, "of", independent)
    wrong = outliers(layer)
    drawn = [float(torch.linalg.svdvals(whole(layer, seed)[0])[0]) for seed in range(4)]
    mean, error = sum(drawn) / 4, float(torch.tensor(drawn).std()) + right.edge / 256
    assert abs(float(right.values[0]) - mean) < _SIGMAS * error
    assert not len(wrong.values) or abs(float(wrong.values[0]) - mean) > 4 * _SIGMAS * error


@pytest.mark.parametrize(("gamma0", "ratio"), [(2.0, 1), (4.0, 2)])
def test_networks_approach_the_spectrum(gamma0: float, ratio: int) -> None:
    """Trained networks of two widths, extrapolated in 1/N, within standard errors; and the verdict counts alike."""
    steps, lr = 25, 0.05
    posed = problem(gamma0=gamma0, steps=steps, lr=lr, ratio=ratio)
    theory = spectrum(posed, "2", solver=dmft.solvers.InfiniteWidth(1024, replicas=4))
    assert theory.counts.tolist() == [0, 1]
    inputs, targets = data()
    means, errors = [], []
    for width, seeds in ((64, 24), (128, 12)):
        weights = []
        for seed in range(seeds):
            model, plan = network(width, seed, gamma0=gamma0, ratio=ratio)
            optimizer = torch.optim.SGD(plan.param_groups(lr))
            for _ in range(steps):
                optimizer.zero_grad()
                half_squares(model(inputs), targets).backward()
                optimizer.step()
            weights.append(model.get_parameter("2.weight").detach())
        beside = theory.beside(weights)
        means.append(float(beside.values[:, 0].mean()))
        errors.append(float(beside.values[:, 0].std()) / math.sqrt(seeds))
        assert f"at step {steps}" in str(beside)
        assert "theory 1." in str(beside)
    limit, error = 2 * means[1] - means[0], math.hypot(2 * errors[1], errors[0])
    assert theory.stderr is not None
    assert abs(limit - float(theory.values[1, 0])) < _SIGMAS * math.hypot(error, float(theory.stderr[1, 0]))
    assert error < 0.05 * limit  # so that a wrong value would be seen


def test_an_untrained_weight_has_no_outliers() -> None:
    """Over seeds and shapes; a chance outlier may occur in one of a hundred."""
    seen = sum(
        int(
            spectrum(
                problem(ratio=ratio), "2", 0, solver=dmft.solvers.InfiniteWidth(512, replicas=1, generator=own)
            ).counts[0]
        )
        for ratio in (1, 3)
        for own in (torch.Generator().manual_seed(seed) for seed in range(8))
    )
    assert seen <= 1


@pytest.mark.parametrize(("outputs", "inputs"), [(400, 400), (200, 600), (600, 200)])
def test_the_bulk_is_that_of_gaussian_matrices(outputs: int, inputs: int) -> None:
    """The density's distribution function against that of one matrix, and its end."""
    theory = spectrum(problem(), "2", 0, solver=dmft.solvers.InfiniteWidth(256, replicas=1))
    theory = replace(theory, ratio=outputs / inputs, edges=torch.tensor([bulk_edge(inputs**-0.5, outputs, inputs)]))
    s, density = theory.bulk(points=4000)
    cumulated = torch.cumulative_trapezoid(density, s)
    assert float(cumulated[-1]) == pytest.approx(1, abs=1e-3)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64) / math.sqrt(inputs)
    values = torch.linalg.svdvals(weight)
    seen = torch.searchsorted(values.flip(0).contiguous(), s[1:].contiguous()) / len(values)
    assert float((seen - cumulated).abs().max()) < 3 / math.sqrt(len(values)) / 2  # rigid: far below a random sample's


def test_what_is_known_more_closely_changes_nothing() -> None:
    """Outliers do not depend on how many directions of the weight are known."""
    posed = problem()
    one, other = (
        spectrum(posed, "4", solver=dmft.solvers.InfiniteWidth(1024, replicas=4, tolerance=tolerance))
        for tolerance in (1e-2, 1e-3)
    )
    assert one.stderr is not None
    assert other.stderr is not None
    error = math.hypot(float(one.stderr[1, 0]), float(other.stderr[1, 0]))
    assert abs(float(one.values[1, 0] - other.values[1, 0])) < _SIGMAS * error


class Twice(nn.Module):
    """Twice the features."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_f_may_be_a_function_of_what_a_model_returns() -> None:
    """The spectrum is that of a model that returns this function."""

    def found(*, selects: bool) -> Spectrum:
        model, inputs, targets = network(32, 0, gamma0=2.0)[0], *data()
        model = model if selects else model.append(Twice())
        plan = dmft.parameterize(model, inputs, gamma0=2.0)
        settings = {"outputs": lambda f: 2 * f} if selects else {}
        recorder = dmft.Recorder(plan, dmft.Probe(inputs, targets), loss=half_squares, **settings)  # type: ignore[arg-type]
        optimizer = torch.optim.SGD(plan.param_groups(0.02))
        with recorder.attach(optimizer):
            for _ in range(20):
                optimizer.zero_grad()
                half_squares((2 if selects else 1) * model(inputs), targets).backward()
                optimizer.step()
        return spectrum(recorder.problem(), "4", solver=dmft.solvers.InfiniteWidth(512, 8))

    one, other = found(selects=True), found(selects=False)
    assert one.stderr is not None
    assert other.stderr is not None
    error = math.hypot(float(one.stderr[1, 0]), float(other.stderr[1, 0]))
    assert error < 0.02  # without the factor of two the value is 0.12 larger
    assert abs(float(one.values[1, 0] - other.values[1, 0])) < _SIGMAS * error


def test_errors_say_what_to_do() -> None:
    """Weights that have no bulk, and weights of other networks."""
    posed = problem()
    solver = dmft.solvers.InfiniteWidth(256, replicas=1)
    with pytest.raises(InvalidInputError, match=r"one of '2', '4'"):
        spectrum(posed, "0", solver=solver)
    shallow = dmft.Problem.mlp(*data(), depth=1, lr=0.1, steps=2)
    with pytest.raises(UnsupportedProblemError, match=r"two hidden layers"):
        spectrum(shallow, "0", solver=solver)
    theory = spectrum(posed, "2", 0, solver=solver)
    with pytest.raises(InvalidInputError, match=r"outputs per input"):
        theory.beside(torch.randn(64, 32))
    with pytest.raises(InvalidInputError, match=r"one shape"):
        theory.beside([torch.randn(64, 64), torch.randn(32, 32)])
    with pytest.raises(NotRecordedError, match=r"step 7"):
        theory.beside(torch.randn(64, 64), step=7)
