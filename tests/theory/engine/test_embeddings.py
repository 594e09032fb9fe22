"""Embeddings in the infinite-width limit: those of wide networks, and of one-hot rows to the letter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference.ensembles import Limit, observables
from tests.theory.engine import sequences
from tests.theory.validation.agreement import assert_agrees, moved
from torch_dmft.architecture import Role
from torch_dmft.core.errors import UnsupportedModelError, UnsupportedProblemError
from torch_dmft.parameterization import ParameterRule
from torch_dmft.theory.engine import twin
from torch_dmft.theory.engine.networks import initialise, network_of

pytestmark = pytest.mark.usefixtures("seeded")
VOCABULARY, LENGTH = 7, 3
TOKENS = torch.tensor([[4, 3, 0], [2, 1, 2], [6, 3, 4], [5, 2, 0], [1, 5, 2]])
TARGETS = torch.tensor([[1.0], [1.0], [-1.0], [1.0], [1.0]])
STEPS, RECORD = 12, (0, 4, 8, 12)
SOLVER = dmft.solvers.InfiniteWidth(1024, 4)


class Mlp(nn.Module):
    """Tokens and positions, a hidden layer on every token, and a mean over these; ``own`` has its positions from tokens."""

    def __init__(self, width: int = 16, *, one_hot: bool = False, own: bool = True, **settings: Any) -> None:
        super().__init__()
        self.one_hot = one_hot
        if one_hot:
            self.tokens, self.positions = nn.Linear(VOCABULARY, width, bias=False), nn.Linear(LENGTH, width, bias=False)
        else:
            self.tokens = nn.Embedding(VOCABULARY, width, **settings)
            self.positions = nn.Embedding(LENGTH, width) if own else self.tokens
        self.mix, self.head = nn.Linear(width, width, bias=False), nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        places = LENGTH**0.5 * torch.eye(LENGTH, dtype=x.dtype) if self.one_hot else torch.arange(LENGTH, device="cpu")
        stream = self.tokens(x) + self.positions(places)
        result: Tensor = self.head(torch.tanh(self.mix(torch.tanh(stream))).mean(1))
        return result


def posed(model: nn.Module, inputs: Tensor = TOKENS, *, gamma0: float = 1.0, **settings: Any) -> dmft.Problem:
    plan = dmft.parameterize(model, inputs, gamma0=gamma0, gain=1.0, generator=torch.Generator().manual_seed(1))
    dtype = next(model.parameters()).dtype
    run = {"lr": 0.5, "steps": STEPS, "loss": nn.MSELoss(), **settings}
    return dmft.Problem.like(plan, dmft.Probe(inputs, TARGETS.to(dtype)), **run)


def one_hot(tokens: Tensor) -> Tensor:
    return VOCABULARY**0.5 * nn.functional.one_hot(tokens, VOCABULARY).double()


@pytest.mark.parametrize(
    "run",
    [{"momentum": 0.5, "weight_decay": 0.1}, {"optimizer": "muon", "others": {"optimizer": "sgd"}}],
    ids=["sgd", "muon"],
)
@pytest.mark.parametrize("gamma0", [0.5, 2.0])
def test_an_embedding_is_a_linear_layer_of_one_hot_rows(gamma0: float, run: Mapping[str, Any]) -> None:
    """The same latents, rates and steps, so that the answers differ by rounding only."""
    solver = dmft.solvers.InfiniteWidth(256, 1)
    settings = {"gamma0": gamma0, "lr": 0.2 / gamma0, "steps": 5, **run}
    tokens = dmft.solve(posed(Mlp().double(), **settings), solver)
    rows = dmft.solve(posed(Mlp(one_hot=True).double(), one_hot(TOKENS), **settings), solver)
    for name, values in observables(tokens).items():
        torch.testing.assert_close(values, observables(rows)[name], rtol=1e-10, atol=1e-10)
    assert float((tokens.outputs[-1] - tokens.outputs[0]).abs().max()) > 0.1


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((1.0, 0.5, {48: 512, 96: 256, 192: 128}, 0.03), id="gamma0=1"),
        pytest.param((2.0, 0.2, {48: 512, 96: 256, 192: 128}, 0.03), id="gamma0=2"),
    ],
)
def case(request: pytest.FixtureRequest) -> tuple[Limit, dict[str, float], float]:
    """The limit of networks that this package knows nothing of, how they were trained, and how well it is known."""
    gamma0, lr, networks, sharpness = request.param
    settings = {"kind": "mlp", "vocabulary": VOCABULARY, "steps": STEPS, "record": RECORD}
    source = torch.Generator().manual_seed(3)
    run = {"gamma0": gamma0, "lr": lr}
    return sequences.limit(TOKENS, TARGETS[:, 0], networks, generator=source, **settings, **run), run, sharpness


def test_limit_is_that_of_wide_networks(case: tuple[Limit, dict[str, float], float]) -> None:
    limit, run, sharpness = case
    assert_agrees(limit, dmft.solve(posed(Mlp(), **run), SOLVER, record=RECORD), sharpness)
    assert moved(limit, "forward.2") > 0.15
    assert (limit.mean["losses"].diff() < 0).all()


def _frozen() -> nn.Module:
    model = Mlp()
    model.tokens.requires_grad_(False)
    return model


def _small() -> nn.Module:
    """Rows of another size, which learn at another rate."""
    model = Mlp()
    nn.init.normal_(model.tokens.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("wrong", [_frozen, _small])
def test_other_tables_have_another_limit(wrong: Any, case: tuple[Limit, dict[str, float], float]) -> None:
    limit, run, sharpness = case
    answer = dmft.solve(posed(wrong(), **run), SOLVER, record=RECORD)
    with pytest.raises(AssertionError, match=r"losses is .* off"):
        assert_agrees(limit, answer, sharpness)


def test_positions_have_rows_of_their_own(case: tuple[Limit, dict[str, float], float]) -> None:
    """One table for tokens and positions is another network."""
    limit, run, _ = case
    answer = dmft.solve(posed(Mlp(own=False), **run), SOLVER, record=RECORD)
    off = (answer.losses - limit.mean["losses"]).abs() / (answer.stderr.losses**2 + limit.stderr["losses"] ** 2).sqrt()
    assert float(off[1:].max()) > 5


def test_a_wrong_rate_of_the_table_is_noticed(
    case: tuple[Limit, dict[str, float], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = twin._rules

    def wrong(*given: Any) -> tuple[ParameterRule, ...]:
        return tuple(replace(rule, lr=0.8 * rule.lr) if rule.role is Role.EMBEDDING else rule for rule in right(*given))

    monkeypatch.setattr(twin, "_rules", wrong)
    limit, run, sharpness = case
    with pytest.raises(AssertionError, match=r"losses is .* off"):
        assert_agrees(limit, dmft.solve(posed(Mlp(), **run), SOLVER, record=RECORD), sharpness)


@pytest.mark.parametrize("run", [{"optimizer": "adam", "lr": 0.05}, {"weight_decay": 0.3, "momentum": 0.5, "lr": 0.2}])
def test_networks_widened_by_themselves_have_this_limit(run: dict[str, Any]) -> None:
    """Tables of every width, moments matched, steps of torch's own optimizers."""
    model = Mlp(padding_idx=0)
    nn.init.normal_(model.positions.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    inputs = TOKENS.index_put(
        (torch.tensor(2), torch.tensor(1)), torch.tensor(4)
    )  # token 3 balances, of which Adam has no limit
    problem = posed(model, inputs, **{"steps": 4, **run})
    networks = dmft.solve(problem, dmft.solvers.WideEnsemble((32, 64, 128), 16), record=[4])
    theory = dmft.solve(problem, dmft.solvers.InfiniteWidth(512, 4), record=[4])
    for name in ("outputs", "losses"):
        ours, theirs = getattr(theory, name), getattr(networks, name)
        error = (getattr(theory.stderr, name) ** 2 + getattr(networks.stderr, name) ** 2).sqrt()
        assert float(((ours - theirs) / error).abs().max()) < 5
        assert float(error.square().mean().sqrt() / ours.square().mean().sqrt()) < 0.1
    assert float(networks.metadata["chi_squared"]) < 3


def test_finite_networks_have_tables_of_their_own_width() -> None:
    problem = posed(Mlp())
    answer = dmft.solve(problem, dmft.solvers.FiniteWidth(48, 8), record=[0, STEPS])
    assert answer.width == 48
    plan = network_of(problem, 48)
    initialise(plan, torch.Generator().manual_seed(0))
    assert plan.model.tokens.weight.shape == (VOCABULARY, 48)
    rule = plan.rule("tokens.weight")
    assert (rule.std, rule.lr, rule.adam_lr) == (1.0, 48.0, 1.0)


def test_twins_take_over_uniform_rows_rows_of_zeros_and_padding() -> None:
    model = Mlp(64, padding_idx=2)
    nn.init.uniform_(model.tokens.weight, -0.3, 0.3, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(model.positions.weight)
    with torch.no_grad():
        model.tokens.weight[2] = 0
    wide = dmft.infinite_width(dmft.parameterize(model, TOKENS), TOKENS, neurons=512).model
    rows = wide.tokens.weight.detach()
    assert float(rows.abs().max()) == pytest.approx(0.3, rel=0.06)  # matched, and so not quite within its bounds
    assert (rows[2] == 0).all()
    assert (wide.positions.weight == 0).all()
    assert rows.dtype == torch.float32
    wide(TOKENS).sum().backward()
    assert (wide.tokens.weight.grad[2] == 0).all()


def test_a_factorys_twin_and_plan_start_at_the_size_that_torch_draws() -> None:
    """The size is not the one that a few numbers happen to have."""
    for given in (lambda width: Mlp(width), Mlp(8), dmft.parameterize(Mlp(8), TOKENS)):
        wide = dmft.infinite_width(given, TOKENS, neurons=240)
        assert wide.rule("tokens.weight").gain == 1.0
        assert float(wide.model.tokens.weight.square().mean()) == pytest.approx(1.0, rel=1e-5)


def _eye() -> nn.Module:
    model = Mlp(64)
    nn.init.eye_(model.tokens.weight)
    return model


def _blank() -> nn.Module:
    model = Mlp()
    with torch.no_grad():
        model.tokens.weight[3:] = 0
    return model


def _padded() -> nn.Module:
    model = Mlp(padding_idx=1)
    nn.init.normal_(model.tokens.weight)
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_eye, r"tokens: its rows start as numbers with"),
        (_blank, r"tokens: 4 of its rows start at zero, and others do not"),
        (_padded, r"tokens: row 1 is padding, which is not trained, and not zero"),
        (lambda: Mlp(scale_grad_by_freq=True), r"tokens: scale_grad_by_freq divides gradients by counts"),
    ],
    ids=["eye", "blank", "padding", "frequencies"],
)
@pytest.mark.parametrize("solver", [dmft.solvers.InfiniteWidth(256, 1), dmft.solvers.WideEnsemble((16, 32), 4)])
def test_tables_that_start_or_learn_otherwise_are_refused(make: Any, said: str, solver: Any) -> None:
    problem = posed(make())
    with pytest.raises(UnsupportedModelError, match=said):
        dmft.solve(problem, solver)


def test_tables_with_a_largest_norm_cannot_be_wrapped() -> None:
    with pytest.raises(UnsupportedModelError, match="never with max_norm"):
        posed(Mlp(max_norm=1.0))


def test_sparse_gradients_are_the_same_numbers() -> None:
    solver = dmft.solvers.InfiniteWidth(128, 1)
    one, other = (dmft.solve(posed(Mlp(sparse=sparse).double(), steps=3), solver) for sparse in (False, True))
    torch.testing.assert_close(one.outputs, other.outputs, rtol=0, atol=0)


def test_a_recorded_run_of_tokens_is_posed_and_solved() -> None:
    model = Mlp(64)
    plan = dmft.parameterize(model, TOKENS, gain=1.0, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(plan.param_groups(0.5), momentum=0.3)
    recorder = dmft.Recorder(plan, dmft.Probe(TOKENS, TARGETS))
    with recorder.attach(optimizer):
        for _ in range(6):
            optimizer.zero_grad()
            recorder.batch(torch.arange(5))
            nn.functional.mse_loss(model(TOKENS), TARGETS).backward()
            optimizer.step()
    answer = dmft.solve(recorder.problem(), dmft.solvers.InfiniteWidth(512, 2))
    measured = recorder.trajectory()
    assert float((answer.outputs[-1] - measured.outputs[-1]).norm() / measured.outputs[-1].norm()) < 0.3


def test_tables_changed_after_they_were_wrapped_are_noticed() -> None:
    model = Mlp(64)
    plan = dmft.parameterize(model, TOKENS)
    nn.init.normal_(model.tokens.weight, std=0.5)
    recorder = dmft.Recorder(plan, dmft.Probe(TOKENS, TARGETS))
    optimizer = torch.optim.SGD(plan.param_groups(0.5))
    with recorder.attach(optimizer):
        nn.functional.mse_loss(model(TOKENS), TARGETS).backward()
        optimizer.step()
    with pytest.raises(UnsupportedProblemError, match=r"tokens\.weight: numbers of size 0\.[45]"):
        recorder.problem(batches=5)
