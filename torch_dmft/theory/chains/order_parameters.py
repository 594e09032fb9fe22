"""The order parameters of a dense chain, and one round of the paper's Algorithm 1: sample all sites, average anew.

Rows are flat: (t, mu) for activities and (t, mu, c) for gradients. With base rate eta, gains g and widths N_l, hidden
layer l is the single-site process of ``single_site`` with

    u ~ GP(0, C Phi^{l-1}),              r ~ GP(0, N_l / N_{l+1} C G^{l+1}),
    K_h = g_l (N_{l-1} / N_l) C A^{l-1} + gamma0 (N_L / N_l) w(t, s) Delta(s) (g_l^2 Phi^{l-1} + [biased]),
    K_z = g_{l+1} C B^l + gamma0 (N_L / N_{l+1}) w(t, s) g_{l+1}^2 G^{l+1} Delta(s),

where C(t, s) is the covariance of a weight that only weight decay and noise of temperature T act on,

    C(t, s) = a(t) a(s) + sum_j 2 T eta(j) n(t, j) n(s, j),

and a, w and n are what the optimizer leaves of the start, of the gradients and of the noise of earlier steps
(``descent.propagators``). Without momentum a(t) = k^t and w(t, s) = eta k^(t-1-s) with k = 1 - eta lambda. At the top
g_{L+1} = 1, N_{L+1} = N_L and G^{L+1} = delta_cc'; A^0 = 0 and B^L = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.activation import activation
from torch_dmft.theory.chain import Chain
from torch_dmft.theory.chains.descent import propagators
from torch_dmft.theory.chains.lazy_limit import lazy_limit
from torch_dmft.theory.chains.single_site import Site, SiteFields, causal_root, response, simulate
from torch_dmft.theory.chains.uniform_start import uniform_biases
from torch_dmft.theory.problem import Problem
from torch_dmft.theory.stepping import error_signal


@dataclass(frozen=True)
class OrderParameters:
    """What the sites of one layer need to know about the other layers.

    Attributes:
        outputs: f, ``(time, sample, output)``.
        forward: Phi^0..Phi^L, each ``(row, row)``.
        backward: G^1..G^{L+1}, each ``(row_output, row_output)``.
        forward_response: A^0..A^{L-1}, each ``(row, row_output)``.
        backward_response: B^1..B^L, each ``(row_output, row)``.
    """

    outputs: Tensor
    forward: tuple[Tensor, ...]
    backward: tuple[Tensor, ...]
    forward_response: tuple[Tensor, ...]
    backward_response: tuple[Tensor, ...]

    @property
    def _parts(self) -> tuple[tuple[Tensor, ...], ...]:
        return (self.outputs,), self.forward, self.backward, self.forward_response, self.backward_response

    @property
    def times(self) -> int:
        """The number of times covered."""
        return len(self.outputs)

    @property
    def finite(self) -> bool:
        """Whether every number is."""
        return all(bool(torch.isfinite(array).all()) for part in self._parts for array in part)

    def mixed(self, new: OrderParameters, weight: float) -> OrderParameters:
        """The average with ``new``, which has this weight."""
        (outputs,), *others = (
            tuple(torch.lerp(old, fresh, weight) for old, fresh in zip(mine, theirs, strict=True))
            for mine, theirs in zip(self._parts, new._parts, strict=True)
        )
        return OrderParameters(outputs, *others)

    def change(self, new: OrderParameters) -> float:
        """The largest relative Frobenius distance of an observable (f, Phi or G) from its new value."""
        mine = (self.outputs, *self.forward, *self.backward)
        theirs = (new.outputs, *new.forward, *new.backward)
        return max(
            float((old - fresh).norm() / fresh.norm().clamp(min=1e-300))
            for old, fresh in zip(mine, theirs, strict=True)
        )

    def extended(self, times: int) -> OrderParameters:
        """A guess for more times: f, Phi and G stay as they are at the last time, responses to new drives are zero."""
        known, (samples, outputs) = self.times, self.outputs.shape[1:]
        held = torch.arange(times, device=self.outputs.device).clamp(max=known - 1)

        def longer(array: Tensor, left: int, right: int) -> Tensor:
            blocks = array.reshape(known, left, known, right)[held].index_select(2, held)
            return blocks.reshape(times * left, times * right)

        def answered(array: Tensor, left: int, right: int) -> Tensor:
            blocks = longer(array, left, right).reshape(-1, times, right).clone()
            blocks[:, known:] = 0.0
            return blocks.flatten(1)

        rows = samples * outputs
        return OrderParameters(
            self.outputs[held],
            tuple(longer(array, samples, samples) for array in self.forward),
            tuple(longer(array, rows, rows) for array in self.backward),
            tuple(answered(array, samples, rows) for array in self.forward_response),
            tuple(answered(array, rows, samples) for array in self.backward_response),
        )


class SiteSampler:
    """Common random numbers for every layer, and the map from order parameters to their Monte Carlo averages.

    Args:
        problem: what to solve.
        chain: its network.
        times: the largest number of times to solve for.
        neurons: S, even: second half and first half differ in the sign of r, which takes the 1/gamma0 noise out of f.
        generator: the source of all normals.
        responses: whether to compute A and B; they are zero otherwise.
        equal_time: whether to keep the diagonal blocks B(t, t).
    """

    def __init__(
        self,
        problem: Problem,
        chain: Chain,
        times: int,
        *,
        neurons: int,
        generator: torch.Generator,
        responses: bool,
        equal_time: bool,
    ) -> None:
        self.problem, self.chain = problem, chain
        self.responses, self.equal_time = responses, equal_time
        self.samples, self.outputs = problem.samples, chain.outputs
        rows = times * self.samples
        self.inputs = problem.tensor.flatten(1).double() / math.sqrt(chain.input_dim)

        def normals(size: int) -> Tensor:
            drawn = torch.randn(neurons // 2, size, generator=generator, dtype=torch.float64, device=self.inputs.device)
            return moment_matched(drawn)

        self.normals: list[tuple[Tensor, Tensor]] = []
        self.uniform: dict[int, Tensor] = {}
        is_uniform = uniform_biases(problem)
        for layer in range(chain.depth):
            u, r = normals(rows), normals(rows * self.outputs)
            self.normals.append((torch.cat([u, u]), torch.cat([r, -r])))
            if layer in is_uniform:
                drawn = stratified(neurons // 2, generator).to(self.inputs.device)
                self.uniform[layer] = torch.cat([drawn, drawn])
        self.initial, self.noise = free_covariances(problem, times)
        self.left = propagators(problem.training, times)[0].to(problem.device)
        self.update_weight = _update_weights(problem, times)
        self.gains = [*(layer.gain for layer in chain.hidden), 1.0]
        self.widths = [*(layer.width_ratio for layer in chain.hidden), 1.0]

    def lazy(self, times: int) -> OrderParameters:
        """The order parameters at gamma0 = 0, where nothing but f moves."""
        rows = times * self.samples
        rows_c = rows * self.outputs
        static = lazy_limit(self.problem, torch.arange(times, device="cpu"), two_time=True)
        nothing = self.inputs.new_zeros(rows, rows_c)
        return OrderParameters(
            static.outputs.double(),
            (
                (self.inputs @ self.inputs.mT).repeat(times, times),
                *(layer.forward.values.double().reshape(rows, rows) for layer in static.layers[1:]),
            ),
            tuple(layer.backward.values.double().reshape(rows_c, rows_c) for layer in static.layers),
            (nothing,) * self.chain.depth,
            (nothing.mT,) * self.chain.depth,
        )

    def update(self, order: OrderParameters) -> OrderParameters:
        """Sample all sites, given ``order``, and average."""
        depth = self.chain.depth
        learned = self._learned(order.outputs)
        forward, backward = [order.forward[0]], []
        forward_response, backward_response = [order.forward_response[0]], []
        for layer, site in enumerate(self.sites(order)):
            fields = simulate(site, *self._drives(layer, order))
            neurons = len(fields.activity)
            forward.append(fields.activity.mT @ fields.activity / neurons)
            backward.append(fields.gradient.mT @ fields.gradient / neurons)
            if self.responses and layer < depth - 1:
                forward_response.append(response(site, fields, "r"))
            if self.responses and layer > 0:
                backward_response.append(self._kept(response(site, fields, "u")))
        correlation = (fields.pregradient.unflatten(1, (-1, self.outputs)) * fields.activity[:, :, None]).mean(0)
        outputs = correlation.unflatten(0, (order.times, self.samples)) / self.problem.gamma0
        if self.chain.readout_bias:
            outputs = outputs + learned.sum((1, 2))[:, None]
        return OrderParameters(
            outputs,
            tuple(forward),
            (*backward, order.backward[-1]),
            tuple(forward_response) if self.responses else order.forward_response,
            (*backward_response, order.backward_response[-1]) if self.responses else order.backward_response,
        )

    def fields(self, order: OrderParameters, layer: int) -> SiteFields:
        """The fields of one hidden layer, ``(neuron, row)``, given ``order``."""
        return simulate(self.sites(order)[layer], *self._drives(layer, order))

    def sites(self, order: OrderParameters) -> list[Site]:
        """The single-site processes of all hidden layers."""
        learned = self._learned(order.outputs)
        return [self._site(layer, order, learned) for layer in range(self.chain.depth)]

    def _learned(self, outputs: Float[Tensor, "time sample output"]) -> Float[Tensor, "time time sample output"]:
        """w(t, s) Delta(s): the share of the error signal of step s in state t (the last state is not followed by a step)."""
        errors = [error_signal(self.problem, f, step) for step, f in enumerate(outputs[:-1])]
        delta = torch.stack([*errors, torch.zeros_like(outputs[-1])])
        return self.update_weight[: len(delta), : len(delta), None, None] * delta

    def _site(self, layer: int, order: OrderParameters, learned: Tensor) -> Site:
        """The single-site process of a hidden layer, counted from 0."""
        times, samples, outputs = order.times, self.samples, self.outputs
        rows = times * samples
        hidden = self.chain.hidden[layer]
        gain, next_gain = self.gains[layer : layer + 2]
        width, next_width = self.widths[layer : layer + 2]
        rate = self.problem.gamma0
        phi = gain**2 * order.forward[layer] + float(hidden.bias_std is not None)
        phi_delta = torch.einsum("tmsa,tsac->tmsac", phi.reshape(times, samples, times, samples), learned)
        g = next_gain**2 * order.backward[layer + 1].reshape(times, samples, outputs, times, samples, outputs)
        g_delta = torch.einsum("tmcsad,tsad->tmcsa", g, learned)
        narrowing = self.widths[layer - 1] / width if layer else 1.0
        remembered = gain * narrowing * self._free(order.forward_response[layer], times)
        next_remembered = next_gain * self._free(order.backward_response[layer], times)
        return Site(
            activation(hidden.activation),
            samples,
            outputs,
            remembered + rate / width * phi_delta.reshape(rows, rows * outputs),
            next_remembered + rate / next_width * g_delta.reshape(rows * outputs, rows),
            phi.new_full((times,), gain),
            phi.new_full((times,), next_gain),
        )

    def _drives(self, layer: int, order: OrderParameters) -> tuple[Tensor, Tensor]:
        """a_h u + b and a_z r of every neuron, with the biases as far as they are not learned."""
        times = order.times
        sizes = self.samples, self.samples * self.outputs
        normal_u, normal_r = (drawn[:, : times * size] for drawn, size in zip(self.normals[layer], sizes, strict=True))
        gain, next_gain = self.gains[layer : layer + 2]
        narrowing = self.widths[layer] / self.widths[layer + 1]
        std = self.chain.hidden[layer].bias_std
        u = gain**2 * self._free(order.forward[layer], times)
        start = u.new_zeros(())
        if std is not None:
            is_gaussian = layer not in self.uniform
            bias = std**2 * self.initial * is_gaussian + self.noise
            if not is_gaussian:
                shares = self.left[:times].repeat_interleave(self.samples)
                start = std * torch.outer(self.uniform[layer], shares)
            u = u + bias[:times, :times].repeat_interleave(self.samples, 0).repeat_interleave(self.samples, 1)
        r = next_gain**2 * narrowing * self._free(order.backward[layer + 1], times)
        return start + normal_u @ causal_root(u, sizes[0]).mT, normal_r @ causal_root(r, sizes[1]).mT

    def _free(self, array: Tensor, times: int) -> Tensor:
        """C(t, s) times an array with rows and columns ordered by time."""
        rows, columns = (size // times for size in array.shape)
        free = (self.initial + self.noise)[:times, :times]
        return free.repeat_interleave(rows, 0).repeat_interleave(columns, 1) * array

    def _kept(self, backward_response: Tensor) -> Tensor:
        if self.equal_time:
            return backward_response
        times = backward_response.shape[1] // self.samples
        blocks = backward_response.reshape(times, self.samples * self.outputs, times, self.samples).clone()
        time = torch.arange(times, device=blocks.device)
        blocks[time, :, time] = 0.0
        return blocks.reshape(backward_response.shape)


def stratified(count: int, generator: torch.Generator) -> Float[Tensor, " neuron"]:
    """Uniform numbers of mean zero and variance one, one in each of ``count`` equal parts of their range, in random order."""
    place = torch.randperm(count, generator=generator, device=generator.device)
    within = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
    return math.sqrt(3) * (2 * (place + within) / count - 1)


def moment_matched(normals: Float[Tensor, "neuron column"]) -> Float[Tensor, "neuron column"]:
    """The normals with the earliest columns (half as many as there are rows, at most) made exactly orthonormal.

    These carry nearly all of the variance of smooth fields. What is linear in them is then averaged without error.
    """
    matched = min(normals.shape[1], len(normals) // 2)
    directions, triangle = torch.linalg.qr(normals[:, :matched])
    directions = directions * triangle.diagonal().sign() * math.sqrt(len(normals))
    return torch.cat([directions, normals[:, matched:]], dim=1)


def free_covariances(problem: Problem, times: int) -> tuple[Tensor, Tensor]:
    """C(t, s), the covariance of an untrained weight: its part from initial values of variance one, and that from the noise."""
    left, _, answers = (each.to(problem.device) for each in propagators(problem.training, times))
    kicks = torch.cat([problem.training.lr[: times - 1], torch.zeros(1, dtype=torch.float64, device="cpu")]).to(answers)
    return left[:, None] * left, (answers * (2 * problem.temperature * kicks)) @ answers.T


def _update_weights(problem: Problem, times: int) -> Tensor:
    """w(t, s), the weight of the gradient of step s < t in state t: ``(time, time)``."""
    return propagators(problem.training, times)[1].to(problem.device)
