"""A small GPT, tokens and positions in front of causal attention, is predicted as networks of several widths do it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_dmft as dmft
from tests.reference.ensembles import Limit
from tests.theory.engine import sequences
from tests.theory.validation.agreement import assert_agrees, moved
from tests.theory.validation.wrong import WithoutResponses

pytestmark = pytest.mark.usefixtures("seeded")
VOCABULARY, LENGTH, SAMPLES, SCALE = 8, 4, 6, 2.0
TOKENS = torch.randint(0, VOCABULARY, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(5), device="cpu")
TARGETS = torch.sign(TOKENS[:, :1] - TOKENS[:, 1:2] + 0.5)
"""Whether the first token is at least the second."""
STEPS, RECORD = 12, (0, 6, 12)


class Gpt(nn.Module):
    """One block with two heads of causal attention and a tanh layer, each a branch behind a norm, and a mean in the end."""

    def __init__(self, width: int = 16, *, causal: bool = True, tied: bool = False) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.q, self.k, self.v, self.out, self.up, self.down = (nn.Linear(width, width, bias=False) for _ in range(6))
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(3))
        self.head, self.causal = nn.Linear(width, VOCABULARY if tied else 1, bias=False), causal
        if tied:
            nn.init.normal_(self.tokens.weight, generator=torch.Generator().manual_seed(0))
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.tokens(ids) + self.positions(torch.arange(LENGTH, device="cpu"))
        x = self.norms[0](h)
        q, k, v = (layer(x).unflatten(-1, (sequences.HEADS, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=SCALE / q.shape[-1])
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        h = h + self.down(torch.tanh(self.up(self.norms[1](h))))
        result: Tensor = self.head(self.norms[2](h).mean(1))
        return result[:, :1]  # of token 0, if there is one for each token


def posed(run: dict[str, float], **options: bool) -> dmft.Problem:
    plan = dmft.parameterize(Gpt(**options), TOKENS, gamma0=run["gamma0"], generator=torch.Generator().manual_seed(1))
    return dmft.Problem.like(plan, dmft.Probe(TOKENS, TARGETS), lr=run["lr"], steps=STEPS)


FEW, MANY = {48: 512, 96: 256, 192: 128}, {64: 1024, 128: 768, 256: 384, 512: 96}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((1.0, 0.2, FEW, 0.15), id="gamma0=1"),
        pytest.param((1.0, 0.2, MANY, 0.06), id="gamma0=1, sharp", marks=pytest.mark.long),
        pytest.param((2.0, 0.08, MANY, 0.06), id="gamma0=2, sharp", marks=pytest.mark.long),
    ],
)
def case(request: pytest.FixtureRequest) -> tuple[Limit, dict[str, float], float]:
    """The limit of networks that this package knows nothing of, how they were trained, and how well it is known."""
    gamma0, lr, networks, sharpness = request.param
    settings = {"kind": "gpt", "vocabulary": VOCABULARY, "steps": STEPS, "record": RECORD, "scale": SCALE}
    run, source = {"gamma0": gamma0, "lr": lr}, torch.Generator().manual_seed(3)
    return sequences.limit(TOKENS, TARGETS[:, 0], networks, generator=source, **settings, **run), run, sharpness


def test_limit_is_that_of_wide_networks(case: tuple[Limit, dict[str, float], float]) -> None:
    limit, run, sharpness = case
    assert_agrees(limit, dmft.solve(posed(run), dmft.solvers.InfiniteWidth(1024, 4), record=RECORD), sharpness)
    assert moved(limit, "forward.5") > 0.15  # what attention hands on
    assert (limit.mean["losses"].diff() < 0).all()


def test_limit_needs_the_responses_and_the_mask(case: tuple[Limit, dict[str, float], float]) -> None:
    limit, run, sharpness = case
    independent = dmft.solve(posed(run), WithoutResponses(512, 2), record=RECORD)
    with pytest.raises(AssertionError, match=r"outputs is .* off"):
        assert_agrees(limit, independent, sharpness)
    unmasked = dmft.solve(posed(run, causal=False), dmft.solvers.InfiniteWidth(512, 2), record=RECORD)
    with pytest.raises(AssertionError, match=r"forward\.5 is .* off"):
        assert_agrees(limit, unmasked, sharpness)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((1.0, FEW, 0.2), id="gamma0=1"),
        pytest.param((2.0, {64: 2048, 128: 1024, 256: 512}, 0.08), id="gamma0=2, sharp", marks=pytest.mark.long),
    ],
)
def case_of_ties(request: pytest.FixtureRequest) -> tuple[Limit, dict[str, float], float]:
    """The limit of networks by hand whose readout is the row of token 0."""
    gamma0, networks, sharpness = request.param
    settings = {"kind": "gpt", "vocabulary": VOCABULARY, "steps": STEPS, "record": RECORD, "scale": SCALE}
    run, source = {"gamma0": gamma0, "lr": 0.2 / gamma0}, torch.Generator().manual_seed(3)
    given = {"generator": source, **settings, **run, "tied": True}
    return sequences.limit(TOKENS, TARGETS[:, 0], networks, **given), run, sharpness


def test_limit_of_a_readout_tied_to_the_embedding(case_of_ties: tuple[Limit, dict[str, float], float]) -> None:
    limit, run, sharpness = case_of_ties
    answer = dmft.solve(posed(run, tied=True), dmft.solvers.InfiniteWidth(1024, 4), record=RECORD)
    assert_agrees(limit, answer, sharpness, without=("ntk.8",))
    assert (
        float(limit.mean["outputs"][0].std() * run["gamma0"]) > 0.1
    )  # the stream has the row of token 0 in some places
    apart = dmft.solve(posed(run), dmft.solvers.InfiniteWidth(1024, 4), record=RECORD)
    with pytest.raises(AssertionError, match=r"outputs is .* off"):
        assert_agrees(limit, apart, sharpness, without=("ntk.8",))
