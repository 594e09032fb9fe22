r"""Finite networks as fast as one thread trains them: the peer that the engine is timed against.

Many tanh chains with one output side by side. The backward pass is written out, so that the gradient fields k = gamma0 N df/dh
serve the update and the kernel G alike and measuring costs two small Gram matrices per layer; a weight is read three
times a step (forward, backward, update in place) and nothing of its size is allocated. With the effective weights W,

.. math::
    h^{l+1} = W^l \phi(h^l), \quad k^l = \phi'(h^l) \odot W^{l\top} k^{l+1}, \quad
    W^l \leftarrow W^l + \eta \gamma_0 N_l^{-1} \sum_\mu \Delta_\mu k^{l+1}_\mu \phi(h^l_\mu)^\top .
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

import torch_dmft as dmft
from benchmarks.clock import Spent, timed
from benchmarks.setting import Kernels


@dataclass
class Sums:
    """Sums over independent units (networks, or antithetic pairs) of every kernel and of its square."""

    units: int
    total: Kernels
    squares: Kernels

    @property
    def mean(self) -> Kernels:
        return {name: total / self.units for name, total in self.total.items()}

    def variance(self, reference: Kernels) -> dict[str, float]:
        """The variance of one unit's kernel, summed over entries, in units of |K*|^2."""
        return {
            name: float(
                (self.squares[name] - self.total[name].square() / self.units).sum()
                / ((self.units - 1) * kernel.square().sum())
            )
            for name, kernel in reference.items()
        }


def train(
    problem: dmft.Problem,
    width: int,
    networks: int,
    generator: torch.Generator,
    *,
    chunk: int,
    antithetic: bool = False,
) -> Sums:
    """Train networks of a problem and sum their kernels over all states 0..T.

    Args:
        problem: a tanh chain with one output, gain 1 and no biases, trained on half the sum of squares.
        width: N.
        networks: how many, a multiple of two if ``antithetic``.
        generator: source of the initial weights.
        chunk: networks trained side by side.
        antithetic: draw in pairs of opposite readout; a pair is then one unit.
    """
    total: Kernels = {}
    squares: Kernels = {}
    for start in range(0, networks, chunk):
        weights = draw(problem, width, min(chunk, networks - start), generator, antithetic=antithetic)
        for name, kernel in evolve(problem, weights).items():
            units = kernel.unflatten(1, (2, -1)).mean(1) if antithetic else kernel
            new, new_squares = units.sum(1).double(), units.square().sum(1).double()
            total[name] = total[name] + new if name in total else new
            squares[name] = squares[name] + new_squares if name in squares else new_squares
    return Sums(networks // 2 if antithetic else networks, total, squares)


def draw(
    problem: dmft.Problem, width: int, networks: int, generator: torch.Generator, *, antithetic: bool = False
) -> list[Tensor]:
    """Folded initial weights, input to readout, each ``(network, out, in)``."""
    chain = problem.chain
    assert chain is not None  # benchmarks pose chains
    draws = networks // 2 if antithetic else networks
    sizes = [chain.input_dim, *[width] * chain.depth]
    weights = [
        torch.randn(draws, n_out, n_in, generator=generator, dtype=problem.dtype).div_(math.sqrt(n_in))
        for n_in, n_out in pairwise(sizes)
    ]
    readout = torch.randn(draws, 1, width, generator=generator, dtype=problem.dtype) / (problem.gamma0 * width)
    if antithetic:
        return [*(torch.cat([weight, weight]) for weight in weights), torch.cat([readout, -readout])]
    return [*weights, readout]


@torch.no_grad()
def evolve(problem: dmft.Problem, weights: list[Tensor]) -> Kernels:
    """Train in place; the kernels of every network, ``(time, network, sample, sample)``."""
    *hidden, readout = weights
    networks, _, width = readout.shape
    inputs = problem.inputs.expand(networks, -1, -1)
    depth, found = len(hidden), {}  # type: int, dict[str, list[Tensor]]
    for step in range(problem.steps + 1):
        features = [inputs]
        for weight in hidden:
            features.append(torch.bmm(features[-1], weight.mT).tanh_())
        error = problem.target_values - torch.bmm(features[-1], readout.mT)  # Delta, (network, sample, 1)
        pulled = problem.gamma0 * width * readout
        fields: list[Tensor] = [torch.empty(0)] * depth
        for layer in reversed(range(depth)):
            slope = torch.addcmul(
                torch.ones((), dtype=readout.dtype), features[layer + 1], features[layer + 1], value=-1
            )
            fields[layer] = slope.mul_(pulled)
            if layer:
                pulled = torch.bmm(fields[layer], hidden[layer])
        for layer in range(depth):
            for name, rows in ((f"Phi{layer + 1}", features[layer + 1]), (f"G{layer + 1}", fields[layer])):
                found.setdefault(name, []).append(torch.bmm(rows, rows.mT) / width)
        if step == problem.steps:
            break
        for layer, weight in enumerate(hidden):
            rate = problem.lr * problem.gamma0 / weight.shape[2]
            weight.baddbmm_((error * fields[layer]).mT, features[layer], alpha=rate)
        readout.baddbmm_(error.mT, features[-1], alpha=problem.lr / width)
    return {name: torch.stack(kernels) for name, kernels in found.items()}


def time_batched(problem: dmft.Problem, width: int, chunk: int) -> Spent:
    """What one network takes when ``chunk`` of them are trained and measured side by side."""
    generator = torch.Generator().manual_seed(0)
    _, spent = timed(lambda: train(problem, width, chunk, generator, chunk=chunk))
    return Spent(spent.cpu / chunk, spent.wall / chunk)


def train_sequential(
    problem: dmft.Problem, width: int, networks: int, generator: torch.Generator, *, measured: bool = True
) -> Kernels:
    """Mean kernels over all states of ``nn.Sequential`` networks, trained one after another by ``torch.optim.SGD``.

    Args:
        problem: a tanh chain with one output and no biases.
        width: N.
        networks: how many.
        generator: source of the initial weights.
        measured: whether kernels are measured, by one more backward pass to the preactivations and two small Gram matrices
            per layer; else nothing is returned.
    """
    chain = problem.chain
    assert chain is not None  # benchmarks pose chains
    with torch.random.fork_rng(devices=[]):
        model = chain.build(width).to(problem.dtype)
    assert isinstance(model, nn.Sequential)
    plan = dmft.parameterize(model, problem.inputs, problem.gamma0)
    total: Kernels = {}
    for _ in range(networks):
        with torch.no_grad():
            for parameter, weight in zip(model.parameters(), draw(problem, width, 1, generator), strict=True):
                parameter.copy_(weight[0])
        optimizer = torch.optim.SGD(plan.param_groups(problem.lr))
        states: list[Kernels] = []
        for step in range(problem.steps + 1):
            optimizer.zero_grad()
            if measured:
                outputs, kernels = measured_outputs(model, problem)
                states.append(kernels)
            else:
                outputs = model(problem.inputs)
            if step < problem.steps:
                problem.training_loss(outputs).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        for name in states[0] if states else ():
            kernel = torch.stack([kernels[name] for kernels in states]).double() / networks
            total[name] = total[name] + kernel if name in total else kernel
    return total


def time_sequential(problem: dmft.Problem, width: int, *, measured: bool) -> Spent:
    """What one of a handful of ``nn.Sequential`` networks takes."""
    generator = torch.Generator().manual_seed(0)
    few = 3
    _, spent = timed(lambda: train_sequential(problem, width, few, generator, measured=measured))
    return Spent(spent.cpu / few, spent.wall / few)


def measured_outputs(model: nn.Sequential, problem: dmft.Problem) -> tuple[Tensor, Kernels]:
    """Outputs of a chain, and its kernels by autograd."""
    x, features, fields = problem.inputs, [], []
    for module in model:
        x = module(x)
        (features if isinstance(module, nn.Tanh) else fields).append(x)
    *hidden, outputs = fields
    width = outputs.new_tensor(float(hidden[-1].shape[1]))
    pulled = torch.autograd.grad(outputs.sum(), hidden, retain_graph=True)
    kernels = {}
    with torch.no_grad():
        for layer, (phi, k) in enumerate(zip(features, pulled, strict=True), 1):
            kernels[f"Phi{layer}"] = phi @ phi.T / width
            kernels[f"G{layer}"] = k @ k.T * (problem.gamma0**2 * width)
    return outputs, kernels
