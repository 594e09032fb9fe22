"""The limit of many blocks: exact growth of linear streams, a deeper network, and what is no limit."""

import math

import pytest
import torch
from torch import nn

import torch_dmft as dmft
from torch_dmft.core.errors import InvalidInputError, UnsupportedProblemError
from torch_dmft.theory import infinite_depth

SOLVER = dmft.solvers.InfiniteWidth(256, replicas=4)


class Block(nn.Module):
    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.activation, self.weight = activation(), nn.Linear(width, width, bias=False)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h + self.weight(self.activation(h))


class Pair(Block):
    """Two weights in a branch."""

    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__(width, activation)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.weight = nn.Linear(2 * width, width, bias=False)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h + self.weight(self.activation(self.up(h)))


def problem(blocks: int, depth="1/sqrt(L)", *, block=Block, activation=nn.Tanh, lr=0.1, steps=6, gamma0=1.0, seed=0):
    data = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4, 6, generator=data, dtype=torch.float64)
    targets = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    stream = [block(8, activation) for _ in range(blocks)]
    model = nn.Sequential(nn.Linear(6, 8, bias=False), *stream, nn.Linear(8, 1, bias=False)).double()
    plan = dmft.parameterize(model, inputs, gamma0=gamma0, depth=depth, generator=torch.Generator().manual_seed(1))
    return dmft.Problem.like(plan, dmft.Probe(inputs, targets), lr=lr, steps=steps)


@pytest.mark.parametrize(("depth", "growth"), [("1/sqrt(L)", math.e), ("1/L", 1.0)])
def test_a_linear_stream_grows_as_known(depth, growth):
    """Every branch multiplies Phi by 1 + L^(-2 alpha), and G as it goes back: (1 + 1/L)^L -> e."""
    found = infinite_depth(lambda blocks: problem(blocks, depth, activation=nn.Identity), (4, 8, 16), SOLVER, record=0)
    limit, error = found.limit, found.limit.stderr
    first, last = (limit.layers[at].forward.array[0] for at in (1, -1))
    at_quarters = [growth ** (block / 4) for block in range(4)]
    for block, expected in enumerate(at_quarters):
        off = limit.layers[1 + block].forward.array[0] - expected * first
        assert off.abs().max() < 5 * error.layers[1 + block].forward.array[0].max()
    assert ((last - growth * first).abs() < 5 * error.layers[-1].forward.array[0]).all()
    behind = limit.layers[0].backward.array[0]
    assert ((behind - growth).abs() < 5 * error.layers[0].backward.array[0]).all()
    if growth != 1.0:  # the deepest network alone is off by more than the error says
        deepest = found.predictions[-1].layers[-1].forward.array[0].trace()
        assert (deepest - growth * first.trace()).abs() > 2 * (last.trace() - growth * first.trace()).abs()


@pytest.mark.parametrize(
    ("depth", "block", "gamma0"),
    [("1/sqrt(L)", Block, 0.5), ("1/L", Block, 2.0), ("1/L", Pair, 1.0)],
    ids=["random walk", "flow", "two weights"],
)
def test_a_deeper_network_lies_on_the_line(depth, block, gamma0):
    """At 32 blocks, where the limit of 4, 8 and 16 is off by half as much as the deepest of them is."""

    def posed(blocks: int) -> dmft.Problem:
        return problem(blocks, depth, block=block, gamma0=gamma0)

    found = infinite_depth(posed, (4, 8, 16), SOLVER, record=6)
    other = dmft.solvers.InfiniteWidth(256, replicas=4, generator=torch.Generator().manual_seed(7))
    deep = dmft.solve(posed(32), other, record=6)
    for read in (
        lambda run: run.outputs,
        lambda run: run.ntk.equal_time,
        lambda run: run.layers[-1].forward.equal_time,
    ):
        limit, error, deepest = read(found.limit), read(found.limit.stderr), read(found.predictions[-1])
        line = (limit + deepest) / 2
        known = (error.square() + read(deep.stderr).square()).sqrt()
        assert ((read(deep) - line).abs() < 5 * known).all()
    if depth == "1/L":  # whose stream is not random: the deepest network is told from the limit
        phi, bars, deepest = (
            run.layers[-1].forward.equal_time for run in (found.limit, found.limit.stderr, found.predictions[-1])
        )
        assert ((deepest - phi).abs() > 2 * bars).any()


def test_it_is_printed_and_has_the_shallowest_networks_weights():
    found = infinite_depth(lambda blocks: problem(blocks, block=Pair), (2, 4, 8), SOLVER, record=[0, 6])
    assert [layer.name for layer in found.limit.layers] == ["0", "1.up", "1.weight", "2.up", "2.weight", "3"]
    assert found.limit.origin == "theory (N=inf, L=inf)"
    assert len(str(found).splitlines()) == 6
    assert repr(found).startswith("<DepthLimit of 2, 4, 8 blocks")
    assert found.limit.layers[2].ntk is None
    expected = problem(2, block=Pair).training_loss(found.limit.outputs[-1])
    assert found.limit.losses[-1] == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("depths", "posed", "told"),
    [
        ((4, 8), problem, "three numbers of blocks or more"),
        ((4, 6, 8), problem, "each a multiple of the first"),
        ((8, 4, 16), problem, "growing"),
        ((1, 2, 4), lambda blocks: problem(blocks, None), "scaled with their number"),
        ((1, 2, 4), lambda blocks: problem(blocks, lr=0.1, steps=blocks), "steps 2 instead of 1"),
        ((1, 2, 4), lambda blocks: problem(blocks, gamma0=float(blocks)), "gamma0 2"),
        ((1, 2, 4), lambda blocks: problem(blocks, seed=blocks), "other data"),
        ((1, 2, 4), lambda blocks: problem(blocks, lr=0.1 / blocks), "another lr"),
        ((2, 4, 8), lambda blocks: problem(blocks // 2), "equal blocks"),
        ((1, 2, 4), lambda blocks: problem(blocks, block=Pair if blocks > 1 else Block), "alike at every depth"),
        ((1, 2, 4), lambda blocks: blocks, "must return a Problem"),
    ],
)
def test_what_is_no_limit_is_refused(depths, posed, told):
    with pytest.raises(InvalidInputError, match=told):
        infinite_depth(posed, depths, SOLVER)


def test_learning_rules_are_those_of_chains():
    with pytest.raises(UnsupportedProblemError, match=r"Hebb's rule, and a network that is no chain"):
        infinite_depth(lambda blocks: problem(blocks).trained(rule="hebb"), (1, 2, 4), SOLVER)
