r"""A dense chain of finitely many neurons as a function of how much each of them weighs.

A network of width N is a function of the neurons that it has: of which fraction of them has drawn this noise or that. For when
its hidden matrices are sampled lazily (``weighted_matrix``), neurons meet through averages alone: Phi, G, f, and the overlaps
of fields with noise. Here all averages are weighted, < a > = sum_i p_i a_i, and differentiable in p.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.activation import activation
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.theory.chain import Chain
from torch_dmft.theory.chains.assembly import about_the_probe, assemble
from torch_dmft.theory.chains.descent import propagators
from torch_dmft.theory.chains.order_parameters import moment_matched, stratified
from torch_dmft.theory.chains.single_site import causal_root
from torch_dmft.theory.chains.uniform_start import uniform_biases
from torch_dmft.theory.chains.weighted_matrix import Columns, WeightedMatrix
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.stepping import require_finite


@dataclass(frozen=True)
class Noise:
    """What the neurons of one layer draw: standard normals, and uniform biases of variance one where they start so.

    Attributes:
        start: of the fields of the first layer, ``(neuron, sample)``; no columns in the others.
        bias: ``(neuron, 1)``.
        forward: xi of the matrix before, ``(neuron, time * sample)``; no columns in the first layer.
        backward: zeta of the matrix behind, ``(neuron, time * sample * output)``; of the last layer the readout,
            ``(neuron, output)``.
    """

    start: Tensor
    bias: Tensor
    forward: Tensor
    backward: Tensor


def draw(problem: Problem, chain: Chain, times: int, neurons: int, generator: torch.Generator) -> list[Noise]:
    """The noise of an even number of neurons of every layer, in moment-matched pairs with opposite signs of ``backward``.

    So averages over few neurons are near those over all: f, for one, starts at zero up to round-off.
    """
    rows, last = times * problem.samples, chain.depth - 1

    def matched(columns: int) -> Tensor:
        size = (neurons // 2, columns)
        normals = torch.randn(size, generator=generator, dtype=torch.float64, device=generator.device)
        return moment_matched(normals).to(problem.device)

    found, is_uniform = [], uniform_biases(problem)
    for layer in range(chain.depth):
        sizes = [0 if layer else problem.samples, 1, rows if layer else 0]
        start, bias, forward = matched(sum(sizes)).repeat(2, 1).split(sizes, dim=1)
        if layer in is_uniform:
            bias = stratified(neurons // 2, generator).to(bias).repeat(2)[:, None]
        backward = matched(problem.outputs * (1 if layer == last else rows))
        found.append(Noise(start, bias, forward, torch.cat([backward, -backward])))
    return found


def run_weighted(
    problem: Problem, noise: list[Noise], weights: list[Float[Tensor, " neuron"]], record: Tensor
) -> Trajectory:
    """Train the network that these neurons are; its trajectory is differentiable in their weights.

    Args:
        problem: what to train on, by SGD; its chain has as many hidden layers as there are weights.
        noise: of every layer.
        weights: p of every layer's neurons, of sum one.
        record: ``(time,)`` steps to keep.

    Returns:
        The trajectory at equal times.

    Raises:
        ConvergenceError: if training diverges.
    """
    chain = _WeightedChain(problem, noise, weights, int(record[-1]) + 1)
    kept, states = set(record.tolist()), []
    for step in range(int(record[-1]) + 1):
        state = chain.step()
        if step in kept:
            states.append(state)
    outputs, forward, backward = zip(*states, strict=True)
    answer = assemble(
        problem,
        chain.chain,
        record,
        torch.stack(outputs),
        [torch.stack(kernels) for kernels in zip(*forward, strict=True)],
        [torch.stack(kernels) for kernels in zip(*backward, strict=True)],
        origin="theory (N=inf), influences of neurons",
    )
    return about_the_probe(problem, answer)


class _WeightedChain:
    """A network during training, in the equations of ``order_parameters``, with W(0) as it meets the fields."""

    def __init__(self, problem: Problem, noise: list[Noise], weights: list[Tensor], times: int) -> None:
        chain = problem.chain
        assert chain is not None
        self.problem, self.chain, self.noise = problem, chain, noise
        self.weights = [each[:, None] for each in weights]
        self.left, self.updates, _ = (each.to(problem.device) for each in propagators(problem.training, times))
        self.gains = [*(layer.gain for layer in chain.hidden), 1.0]
        self.widths = [layer.width_ratio for layer in chain.hidden]
        self.phi = [activation(layer.activation) for layer in chain.hidden]
        self.matrices = [
            WeightedMatrix(
                (weights[at], weights[at + 1]),
                (noise[at].backward, noise[at + 1].forward),
                self.widths[at] / self.widths[at + 1],
            )
            for at in range(chain.depth - 1)
        ]
        flat = problem.tensor.flatten(1).double()
        self.inputs = flat @ flat.mT / flat.shape[1]
        self.start = noise[0].start @ causal_root(self.inputs, len(flat)).mT
        self.x = [Columns() for _ in chain.hidden]
        self.g = [Columns() for _ in chain.hidden]
        self.errors: list[Tensor] = []
        self.time = 0

    def step(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Both passes at the next time: f, and Phi^0..Phi^L and G^1..G^L at this time."""
        t, samples, outputs = self.time, self.problem.samples, self.problem.outputs
        delta = self.inputs.new_zeros(0, samples, outputs)
        if t:
            delta = torch.stack(self.errors) * self.updates[t, :t, None, None]
        h, x = self._forward(delta)
        z = self.left[t] * self.noise[-1].backward
        if t:
            z = z + self.problem.gamma0 * self.x[-1].combined(delta.reshape(-1, outputs))
        f = x[-1].mT @ (self.weights[-1] * z) / self.problem.gamma0
        if self.chain.readout_bias:
            f = f + delta.sum((0, 1))
        require_finite(self.problem, f.detach(), t)
        g = self._backward(h, z.repeat(1, samples), delta)
        for layer in range(self.chain.depth):
            self.x[layer].add(x[layer])
            self.g[layer].add(g[layer])
        self.errors.append(_error(self.problem, f, t))
        self.time += 1
        shape = samples, outputs, samples, outputs
        forward = [a.mT @ (p * a) for p, a in zip(self.weights, x, strict=True)]
        backward = [(a.mT @ (p * a)).reshape(shape) for p, a in zip(self.weights, g, strict=True)]
        return f, [self.inputs, *forward], backward

    def _forward(self, delta: Float[Tensor, "time sample output"]) -> tuple[list[Tensor], list[Tensor]]:
        """The preactivations and activities of all layers, each ``(neuron, sample)``."""
        t, samples = self.time, self.problem.samples
        h: list[Tensor] = []
        x: list[Tensor] = []
        for layer, hidden in enumerate(self.chain.hidden):
            initial = self.matrices[layer - 1].forward(x[-1]) if layer else self.start
            field = hidden.gain * self.left[t] * initial
            if hidden.bias_std:
                field = field + hidden.bias_std * self.left[t] * self.noise[layer].bias
            if t:
                before = self.inputs.repeat(t, 1)
                if layer:
                    before = self.x[layer - 1].with_all(self.weights[layer - 1] * x[-1])
                before = hidden.gain**2 * before + float(hidden.bias_std is not None)
                push = before.reshape(t, samples, 1, samples) * delta[..., None]
                rate = self.problem.gamma0 / hidden.width_ratio
                field = field + rate * self.g[layer].combined(push.reshape(-1, samples))
            h.append(field)
            x.append(self.phi[layer].function(field))
        return h, x

    def _backward(self, h: list[Tensor], z: Tensor, delta: Float[Tensor, "time sample output"]) -> list[Tensor]:
        """The gradient fields of all layers, each ``(neuron, sample * output)``, given those behind the last one."""
        t, samples, outputs = self.time, self.problem.samples, self.problem.outputs
        g: list[Tensor] = []
        for layer in range(self.chain.depth - 1, -1, -1):
            if g:
                behind = layer + 1
                z = self.gains[behind] * self.left[t] * self.matrices[layer].backward(g[0])
                if t:
                    before = self.g[behind].with_all(self.weights[behind] * g[0])
                    push = (before.reshape(t, samples, outputs, -1) * delta[..., None]).sum(2)
                    rate = self.problem.gamma0 / self.widths[behind] * self.gains[behind] ** 2
                    z = z + rate * self.x[layer].combined(push.reshape(t * samples, -1))
            g.insert(0, self.phi[layer].first(h[layer]).repeat_interleave(outputs, dim=1) * z)
        return g


def _error(problem: Problem, outputs: Float[Tensor, "sample output"], step: int) -> Tensor:
    """Delta = -dL/df of the update of a step, differentiable in f; zero after the last step."""
    if step == problem.steps:
        return torch.zeros_like(outputs)
    seen = outputs if outputs.requires_grad else outputs.detach().requires_grad_()
    with torch.enable_grad():
        loss = problem.training_loss(seen, problem.batch(step))
        (slope,) = torch.autograd.grad(loss, seen, create_graph=outputs.requires_grad)
    return -slope
