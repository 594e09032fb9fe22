"""Adam: wide networks against the mean field of one hidden layer and against an ordinary loop; what is refused."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference import ensembles
from tests.reference.adam import Adam
from tests.reference.ensembles import Limit, observables
from tests.theory.extensions.written_down import write_down
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError
from torch_dmft.theory import solvers
from torch_dmft.theory.choose import choose
from torch_dmft.theory.engine import posed as engine_posed
from torch_dmft.theory.engine import sources
from torch_dmft.theory.engine.posed import rotated, twin_of
from torch_dmft.theory.engine.training import train_and_record
from torch_dmft.theory.solvers import WideEnsemble
from torch_dmft.theory.spectrum import spectrum

STEPS, LR = 6, 0.1
GENERATOR = torch.Generator().manual_seed(11)
INPUTS = torch.randn(3, 6, dtype=torch.float64, generator=GENERATOR)
TARGETS = torch.tensor([1.0, -1.5, 0.5], dtype=torch.float64)
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs.squeeze(-1) - targets.squeeze(-1)).square().sum()


def pose(**settings: Any) -> dmft.Problem:
    defaults = {"depth": 1, "loss": half_square, "lr": LR, "steps": STEPS, "optimizer": "adam"}
    return dmft.Problem.mlp(INPUTS, TARGETS, **{**defaults, **settings})


def mean_field(gamma0: float, replicas: int = 8, neurons: int = 2**13) -> dict[str, Tensor]:
    """Outputs, Phi^1 and G^1 of the last step, one for each replica: one hidden layer, whose neurons meet in f alone.

    Written in unit form, where a weight of the input moves by eta gamma0 / sqrt(D) and one of the readout by eta gamma0 times
    Adam's direction, which is that of the gradient without its scale 1 / (gamma0 N). Each neuron has a partner with -w, so
    that f starts at zero, as it does at infinite width.
    """
    half = [torch.randn(replicas, neurons, size, dtype=torch.float64, generator=GENERATOR) for size in (6, 1)]
    weights, readout = torch.cat([half[0], half[0]], 1), torch.cat([half[1], -half[1]], 1)
    first, second = ([torch.zeros_like(weights), torch.zeros_like(readout)] for _ in range(2))
    for step in range(STEPS + 1):
        phi = torch.tanh(weights @ INPUTS.T / math.sqrt(6))
        outputs = (readout * phi).mean(1) / gamma0
        g = readout * (1 - phi**2)
        if step == STEPS:
            size = 2 * neurons
            return {"outputs": outputs, "forward.1": phi.mT @ phi / size, "backward.0": g.mT @ g / size}
        error = outputs - TARGETS
        gradients = (g * error[:, None]) @ INPUTS, phi @ error[:, :, None]
        for index, (parameter, gradient) in enumerate(zip((weights, readout), gradients, strict=True)):
            first[index] = 0.9 * first[index] + 0.1 * gradient
            second[index] = 0.999 * second[index] + 0.001 * gradient**2
            m, v = first[index] / (1 - 0.9 ** (step + 1)), second[index] / (1 - 0.999 ** (step + 1))
            parameter -= LR * gamma0 * m / (v.sqrt() + 1e-8) / (math.sqrt(6) if index == 0 else 1)
    raise AssertionError


def z_scores(
    problem: dmft.Problem, expected: dict[str, Tensor], solver: solvers.InfiniteWidth | None = None
) -> dict[str, Tensor]:
    run = dmft.solve(problem, solver or WideEnsemble((32, 64, 128), pairs=40), record=[STEPS])
    if solver is None:
        assert 0.2 < run.metadata["chi_squared"] < 3
    values, errors = observables(run), observables(run.stderr)
    scores = {}
    for name, draws in expected.items():
        variance = draws.var(0) / len(draws) + errors[name][0].reshape(draws.shape[1:]) ** 2
        scores[name] = (values[name][0].reshape(draws.shape[1:]) - draws.mean(0)) / variance.sqrt()
    return scores


@pytest.mark.parametrize("gamma0", [0.5, 2.0])
def test_wide_networks_are_the_mean_field_of_one_layer(gamma0: float, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = mean_field(gamma0)
    scores = z_scores(pose(gamma0=gamma0), expected)
    assert max(float(z.abs().max()) for z in scores.values()) <= 5, scores
    engine = solvers.InfiniteWidth(4096, 4)  # one layer has no matrix between widths
    scores = z_scores(pose(gamma0=gamma0), expected, engine)
    assert max(float(z.abs().max()) for z in scores.values()) <= 5, scores
    sgd = z_scores(pose(gamma0=gamma0, optimizer="sgd"), expected, engine)
    assert max(float(z.abs().max()) for z in sgd.values()) > 5
    # Adam sees in which coordinates the inputs are given, and is not gradient descent.
    sgd = z_scores(pose(gamma0=gamma0, optimizer="sgd"), expected)
    assert max(float(z.abs().max()) for z in sgd.values()) > 5
    monkeypatch.setattr(sources, "rotated", rotated_as_for_sgd)
    turned = z_scores(pose(gamma0=gamma0), expected)
    assert max(float(z.abs().max()) for z in turned.values()) > 5


def rotated_as_for_sgd(problem: dmft.Problem) -> dmft.Problem:
    return rotated(problem.trained(optimizer="SGD")).trained(optimizer="Adam")


def ordinary(
    width: int, gamma0: float, optimizer: str, generator: torch.Generator, *, weight_decay: float = 0.0, **settings: Any
) -> tuple[dmft.Trajectory, dmft.Plan, dmft.Probe]:
    """A network trained as a user would."""
    model = nn.Sequential(
        nn.Linear(6, width, bias=False),
        nn.Tanh(),
        nn.Linear(width, width, bias=False),
        nn.Tanh(),
        nn.Linear(width, 1, bias=False),
    ).double()
    plan = dmft.parameterize(model, INPUTS, gamma0=gamma0, generator=generator)
    rates = settings.pop("rates", optimizer)
    groups = plan.param_groups(LR, optimizer=rates, weight_decay=weight_decay)
    probe = dmft.Probe(INPUTS, TARGETS)
    recorder = dmft.Recorder(plan, probe, schedule=[0, STEPS], loss=half_square)
    training = OPTIMIZERS[optimizer](groups, **settings)
    with recorder.attach(training):
        for _ in range(STEPS):
            training.zero_grad()
            half_square(model(INPUTS), TARGETS).backward()
            training.step()
    return recorder.trajectory(), plan, probe


@pytest.mark.parametrize(("gamma0", "optimizer", "weight_decay"), [(0.5, "adam", 0.0), (2.0, "adamw", 1.0)])
def test_wide_networks_are_those_of_an_ordinary_loop(
    gamma0: float, optimizer: str, weight_decay: float, generator: torch.Generator
) -> None:
    """Means of widths n < N are a + b/n and a + b/N, so that (N y_N - n y_n) / (N - n) is a, up to O(1/(n N))."""
    narrow, wide, seeds = 128, 1024, {128: 64, 1024: 8}
    means, errors = {}, {}
    for width, count in seeds.items():
        runs = [
            observables(ordinary(width, gamma0, optimizer, generator, weight_decay=weight_decay)[0])
            for _ in range(count)
        ]
        for name in ("outputs", "forward.1", "forward.2", "backward.0", "backward.1"):
            draws = torch.stack([run[name][-1] for run in runs])
            means[name, width] = draws.mean(0)
            errors[name, width] = (draws.var(0) / count).sqrt()
    problem = pose(depth=2, gamma0=gamma0, optimizer=optimizer, weight_decay=weight_decay)
    run = dmft.solve(problem, WideEnsemble((32, 64, 128), pairs=60), record=[STEPS])
    assert run.origin == "wide-network reference (N to inf)"
    assert run.metadata["kind"] == "wide-network reference, not DMFT"
    assert 0.2 < run.metadata["chi_squared"] < 3
    found, own = observables(run), observables(run.stderr)
    share = wide / (wide - narrow)
    for name in dict.fromkeys(name for name, _ in means):
        limit = share * means[name, wide] - (share - 1) * means[name, narrow]
        variance = (share * errors[name, wide]) ** 2 + ((share - 1) * errors[name, narrow]) ** 2
        z = (found[name][0] - limit) / (variance + own[name][0] ** 2).sqrt()
        assert float(z.abs().max()) <= 5, name


# Of hidden weights

ROWS = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
SIGNS = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [-1.0]])
RECORD = [0, 4, 8]


def posed(case: Adam, **settings: Any) -> dmft.Problem:
    """What the oracle trains, as a problem."""
    (beta1, beta2), moments = case.betas, {"eps": case.eps, "amsgrad": case.amsgrad}
    usual = {"gamma0": case.gamma0, "lr": case.lr, "steps": case.steps, "beta1": beta1, "beta2": beta2, **moments}
    usual |= {"optimizer": "adamw" if case.decay else "adam", "weight_decay": case.decay}
    return dmft.Problem.mlp(
        case.inputs,
        case.targets,
        depth=len(case.ratios),
        width_ratios=case.ratios,
        **{**usual, **settings},
    )


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(("gamma0", "ratios"), [(0.5, (1.0, 1.0)), (2.0, (2.0, 0.5, 1.0))])
def test_a_twin_whose_matrices_are_known_is_one_network(
    gamma0: float, ratios: tuple[float, ...], amsgrad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, generator, width = write_down(monkeypatch), torch.Generator().manual_seed(3), 64
    settings = {"betas": (0.5, 0.6), "decay": 0.3, "amsgrad": amsgrad}
    case = Adam(ROWS.double(), SIGNS.double(), ratios, gamma0, lr=0.2, **settings)
    problem = posed(case)
    twin = twin_of(problem, width, tolerance=1e-13, generator=generator, law="network", responses=True)
    twin.model(problem.tensor[:0])  # draws the readout
    layers = [module for module in twin.model if not isinstance(module, type(twin.model[1]))]
    weights = [weight[1:] for weight in case.draw(width, 2, generator)]
    weights[0], weights[-1] = layers[0].weight.detach()[None].clone(), layers[-1].weight.detach()[None].clone()
    for layer, weight in zip(layers[1:-1], weights[1:-1], strict=True):
        known[layer.matrix] = weight[0]
    states = torch.arange(case.steps + 1)
    found = train_and_record(problem, twin, states, two_time=False, steps=states.tolist()).outputs[..., 0]
    wanted = case.train(weights, states.tolist())["outputs"][0]
    other = replace(case, amsgrad=not amsgrad).train(weights, states.tolist())["outputs"][0]
    assert float((other[-1] - wanted[-1]).norm()) > 1e-3
    assert float((wanted[-1] - wanted[0]).norm()) > 0.2
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)


CASES = {
    "rich": Adam(ROWS, SIGNS, gamma0=2.0),
    "lazier": Adam(ROWS, SIGNS, gamma0=0.5),
    "three layers of unequal widths, decay": Adam(ROWS, SIGNS, (2.0, 0.5, 1.0), gamma0=2.0, decay=0.5),
    "short memory, large eps": Adam(ROWS, SIGNS, gamma0=1.0, betas=(0.5, 0.7), eps=0.1, amsgrad=True),
    "signs": Adam(ROWS, SIGNS, gamma0=1.0, lr=0.05, betas=(0.0, 0.0), eps=0.0),
}


@cache
def networks(name: str, *, many: bool = False) -> Limit:
    counts = {64: 1024, 128: 512, 256: 256, 512: 64} if many else {32: 1024, 64: 512, 128: 256}
    return CASES[name].limit(counts, torch.Generator().manual_seed(1), RECORD)


def worst(limit: Limit, problem: dmft.Problem, solver: solvers.InfiniteWidth | None = None) -> dict[str, float]:
    """Standard errors between the engine and the networks, for the entry of each observable that is farthest off."""
    answer = dmft.solve(problem, solver or solvers.InfiniteWidth(512, 8), record=RECORD)
    values, errors = (
        {name: found[name].reshape(mean.shape) for name, mean in limit.mean.items()}
        for found in (observables(answer), observables(answer.stderr))
    )
    return {name: float(z.abs().max()) for name, z in ensembles.z_scores(limit, values, errors).items()}


def assert_agrees(name: str, *, many: bool) -> None:
    limit = networks(name, many=many)
    assert limit.mean.keys() >= {"outputs", "forward.1", "backward.0", "forward.2", "backward.1"}
    solver = solvers.InfiniteWidth(1024, 16) if many else None
    assert max(worst(limit, posed(CASES[name]), solver).values()) <= 5
    assert max(limit.goodness.values()) < 9  # of entries that are much the same


@pytest.mark.parametrize("name", ["rich", "signs"])
def test_the_engine_is_the_limit_of_networks(name: str) -> None:
    assert_agrees(name, many=False)


@pytest.mark.long
@pytest.mark.parametrize("name", list(CASES))
def test_the_engine_is_the_limit_of_many_networks(name: str) -> None:
    assert_agrees(name, many=True)


def test_another_theory_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, problem = networks("rich"), posed(CASES["rich"])
    assert max(worst(limit, posed(CASES["rich"], beta1=0.8)).values()) > 5
    assert max(worst(limit, problem.trained(frozen=problem.network.hidden)).values()) > 5
    monkeypatch.setattr(engine_posed, "is_closed", lambda problem: True)  # Adam of the entries of cores
    assert max(worst(limit, problem).values()) > 5


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_it_is_chosen_and_others_say_that_they_do_not_cover_it(optimizer: str) -> None:
    problem = pose(depth=2, optimizer=optimizer)
    for name in solvers.__all__:
        solver = solvers.FiniteWidth(32) if name == "FiniteWidth" else getattr(solvers, name)()
        if name not in ("WideEnsemble", "FiniteWidth", "InfiniteWidth"):
            with pytest.raises(UnsupportedProblemError) as raised:
                dmft.solve(problem, solver)
            assert f"{name} does not cover this training. Got: optimizer {problem.training.optimizer}" in str(
                raised.value
            )
            assert "InfiniteWidth" in str(raised.value)
    solver, why = choose(problem)
    assert isinstance(solver, solvers.InfiniteWidth)
    assert (solver.neurons, solver.replicas) == (2048, 16)
    assert "does not cover this training" in why
    with pytest.raises(UnsupportedProblemError, match="SGD or Muon"):
        spectrum(problem, problem.network.paths[1], [0])
    # A network that meets as many directions as it has neurons is a plain one, and networks extrapolate.
    kinked = pose(depth=2, optimizer=optimizer, activation="relu", gain=2**0.5, lr=0.001, steps=500)
    assert isinstance(choose(kinked)[0], WideEnsemble)


def test_it_costs_what_networks_of_its_size_cost() -> None:
    problem = pose(depth=2)
    small, large = (solvers.InfiniteWidth(neurons, 1).estimate(problem) for neurons in (2048, 4096))
    assert large.memory - small.memory > 4 * (4096**2 - 2048**2) * 8
    assert 2 < large.flops / small.flops < 4
    assert small.flops > solvers.InfiniteWidth(2048, 1).estimate(problem.trained(optimizer="SGD")).flops


def test_decay_inside_of_adam_is_refused() -> None:
    numbers = {**pose(depth=2).training.numbers, "weight_decay": 0.1}
    problem = pose(depth=2).trained(numbers=numbers)
    with pytest.raises(UnsupportedProblemError, match=r"weight decay of 2\.weight.*AdamW"):
        dmft.solve(problem, solvers.InfiniteWidth(512, 2))
    dmft.solve(problem.trained(optimizer="AdamW"), solvers.InfiniteWidth(512, 2), record=[1])


def test_a_twin_is_trained_by_a_loop_of_ones_own(generator: torch.Generator) -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1, bias=False))
    limit = dmft.infinite_width(model.double(), INPUTS, neurons=256, whole=True, generator=generator)
    optimizer = torch.optim.AdamW(limit.param_groups(LR, optimizer="adamw", weight_decay=0.2))
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = half_square(limit.model(INPUTS), TARGETS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    problem = dmft.Problem.like(
        dmft.parameterize(model, INPUTS, generator=generator),
        dmft.Probe(INPUTS, TARGETS),
        loss=half_square,
        lr=LR,
        steps=STEPS,
        optimizer="adamw",
        weight_decay=0.2,
        assume_gaussian=True,
    )
    answer = dmft.solve(problem, solvers.InfiniteWidth(512, 4))
    assert losses[-1] < 0.8 * losses[0]
    torch.testing.assert_close(torch.tensor(losses).double(), answer.losses[:-1], rtol=0.2, atol=0.02)


@pytest.mark.long
@pytest.mark.parametrize("gamma0", [0.5, 2.0])
def test_it_is_three_times_better_than_networks_per_second(gamma0: float) -> None:
    """Of CPU time that both need for errors of one size, told by their standard errors: outputs, Phi and G."""
    problem = posed(replace(CASES["rich"], gamma0=gamma0, steps=15))

    def needed(solver: Any) -> float:
        dmft.solve(problem, replace(solver, **({"replicas": 2} if hasattr(solver, "replicas") else {"pairs": 4})))
        start = time.process_time()
        answer = dmft.solve(problem, solver, record=[15])
        spent = time.process_time() - start
        values, errors = observables(answer), observables(answer.stderr)
        names = ("outputs", "forward.1", "forward.2", "backward.0", "backward.1")
        shares = [float(errors[name].norm() / values[name].norm()) for name in names]
        return spent * sum(share**2 for share in shares)

    assert needed(WideEnsemble()) > 3 * needed(solvers.InfiniteWidth(1024, 32))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optimizer": "Adam"}, "one of sgd, adam, adamw"),
        ({"momentum": 0.9}, "its betas"),
        ({"temperature": 0.1}, "temperature=0.0"),
        ({"weight_decay": 0.1}, "adamw"),
    ],
)
def test_settings_without_a_limit_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        pose(**settings)


def test_a_run_with_adam_is_compared_with_its_own_prediction(generator: torch.Generator) -> None:
    measured, plan, probe = ordinary(256, 1.0, "adamw", generator, weight_decay=0.5)

    def predicted(**settings: Any) -> dmft.Trajectory:
        problem = dmft.Problem.like(plan, probe, lr=LR, steps=STEPS, loss=half_square, **settings)
        solver = WideEnsemble((32, 64), pairs=4) if "optimizer" in settings else solvers.StaticNTK()
        return dmft.solve(problem, solver, record=[0, STEPS])

    reference = predicted(optimizer="adamw", weight_decay=0.5)
    comparison = dmft.compare(measured, reference)
    assert "wide-network reference" in comparison.verdict
    found = comparison.deviations[0].layers[1].forward  # one network scatters by a few / sqrt(N)
    assert bool((found.relative_error <= 5 * found.relative_error_stderr + 5 / 256**0.5).all())
    others = {
        "weight decay: network 0.5, theory 0": (measured, predicted(optimizer="adamw")),
        "optimizer: network AdamW, theory Adam": (measured, predicted(optimizer="adam")),
        "optimizer: network AdamW, theory SGD": (measured, predicted(weight_decay=0.5)),
        "optimizer: network SGD, theory AdamW": (ordinary(256, 1.0, "sgd", generator)[0], reference),
        "beta1: network 0.5, theory 0.9": (
            ordinary(256, 1.0, "adamw", generator, weight_decay=0.5, betas=(0.5, 0.999))[0],
            reference,
        ),
        "learning rate: network ": (
            ordinary(256, 1.0, "adamw", generator, weight_decay=0.5, rates="sgd")[0],
            reference,
        ),
    }
    for told, (network, prediction) in others.items():
        with pytest.raises(InvalidInputError, match=told):
            dmft.compare(network, prediction)
