"""The slow, obvious oracle: many finite networks in unit form, trained side by side and measured by definition.

It shares no line with the package, so that the two can only agree by both being right. A chain of L hidden layers with
widths N_1..N_L, D inputs, C outputs and gain g computes, for weights l = 0..L (N_0 = D),

    o^l = g W^l x^l / sqrt(N_l) + b^l,    h^{l+1} = o^l  (plain)  or  h^l + s o^l  (residual, from l = 1 on),
    x^{l+1} = phi(norm(h^{l+1})),    x^0 = x,    f = W^L x^L / (gamma0 N_L)    (no gain and no bias at the readout).

Every entry of every W is N(0, 1), a bias is N(0, s_b^2), or both uniform with these variances where the chain says so; a
norm's gain starts at 1 and its shift at 0. One step is, for
*every* parameter theta of this form,

    v <- beta v + dL/dtheta,    theta <- theta - eta gamma0^2 N_L v - eta lambda theta,

and everything is measured before it. The observables, by name (``l`` counts weights, so ``backward.l`` is G^{l+1}):

    outputs     f                                                       (time, sample, output)
    losses      the loss on all training rows                           (time,)
    forward.l   Phi^l = x^l . x^l / N_l                                 (time, sample, sample)
    backward.l  G^{l+1} = k . k / N_{l+1}, k = gamma0 N_{l+1} df/do^l   (time, sample[, output], sample[, output])
    ntk.l       what W^l and b^l add to the NTK                         like backward.l
    ntk         K = gamma0^2 N_L sum over all parameters of df/dtheta df/dtheta, norms included

For a plain chain o^l is h^{l+1}, so k is the gradient field g^{l+1}; backward.L is 1 between equal outputs. Output axes
exist for C > 1 only, and with ``two_time`` a second time axis precedes the second sample axis (the layouts of the
package's ``Kernel``). Every array has one more axis in front of all: the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Parameters = dict[str, Tensor]
Observables = dict[str, Tensor]


@dataclass(frozen=True)
class Chain:
    """A network of any width.

    Attributes:
        depth: L, the number of hidden layers.
        activation: phi, applied elementwise.
        gamma0: the feature-learning strength.
        outputs: C.
        gain: g, a forward multiplier of every matrix but the readout.
        bias_std: s_b; None: no biases, 0.0: trained biases that start at zero.
        width_ratios: N_l / N_L for l = 1..L; None: all 1.
        branch_scale: s of a residual chain, usually 1 / sqrt(L); None: a plain chain.
        uniform: names of weights and biases (``"weight.0"``, ``"bias.1"``) that are drawn uniform instead of Gaussian.
        norm: LayerNorm of h before phi, without ("plain") or with ("affine") trained gain and shift; None: none.
    """

    depth: int
    activation: Callable[[Tensor], Tensor] = torch.tanh
    gamma0: float = 1.0
    outputs: int = 1
    gain: float = 1.0
    bias_std: float | None = None
    width_ratios: tuple[float, ...] | None = None
    branch_scale: float | None = None
    norm: Literal["plain", "affine"] | None = None
    uniform: frozenset[str] = frozenset()

    def widths(self, width: int) -> tuple[int, ...]:
        """N_1..N_L when the last hidden layer has this width."""
        return tuple(round(ratio * width) for ratio in self.width_ratios or (1.0,) * self.depth)


@dataclass(frozen=True)
class Training:
    """Data, loss and optimiser.

    Attributes:
        inputs: ``(sample, feature)``, the training rows.
        targets: ``(sample, output)`` or ``(sample,)`` floats, or ``(sample,)`` integer classes.
        lr: eta, the base learning rate, or one for every step.
        steps: T, the number of updates.
        loss: callable (outputs, targets) -> scalar, with its own reduction.
        momentum: beta.
        weight_decay: lambda, added to the gradient before the momentum, as torch.optim.SGD does.
        dampening: share of a gradient that the momentum leaves out, but for the first.
        nesterov: whether the momentum looks ahead.
        decoupled: whether the decay stands outside of the momentum instead.
        batches: one index tensor into the training rows per step; None: all rows in every step.
        test_inputs: ``(sample, feature)``, rows measured after the training rows and never trained on.
        centered: whether f stands for f - f_0, the outputs less those of step 0, in the loss and in the record.
    """

    inputs: Tensor
    targets: Tensor
    lr: float | Sequence[float]
    steps: int
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss
    momentum: float = 0.0
    weight_decay: float = 0.0
    batches: Sequence[Tensor] | None = None
    test_inputs: Tensor | None = None
    centered: bool = False
    dampening: float = 0.0
    nesterov: bool = False
    decoupled: bool = False

    def rate(self, step: int) -> float:
        """The base learning rate of a step."""
        return self.lr if isinstance(self.lr, float) else float(self.lr[step])

    def rows(self, dtype: torch.dtype) -> Tensor:
        """Training rows, then test rows."""
        parts = [self.inputs] if self.test_inputs is None else [self.inputs, self.test_inputs]
        return torch.cat(parts).to(dtype)

    def losses(self, outputs: Tensor, index: Tensor) -> Tensor:
        """The loss of every network on these training rows: ``(network, row, output)`` -> ``(network,)``."""
        targets = self.targets.to(outputs.dtype) if self.targets.is_floating_point() else self.targets
        if targets.is_floating_point() and targets.ndim == 1:
            targets = targets[:, None]
        return torch.vmap(self.loss, in_dims=(0, None))(outputs[:, index], targets[index])


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Attributes:
        features: x^l for l = 0..L, each ``(network, sample, N_l)``.
        layer_outputs: o^l for l = 0..L-1, each ``(network, sample, N_{l+1})``.
        standardised: what an affine norm's gain multiplies, per hidden layer (empty without affine norm).
        normed: that norm's output, per hidden layer (empty without affine norm).
        outputs: f, ``(network, sample, output)``.
    """

    features: tuple[Tensor, ...]
    layer_outputs: tuple[Tensor, ...]
    standardised: tuple[Tensor, ...]
    normed: tuple[Tensor, ...]
    outputs: Tensor


def initialise(
    chain: Chain,
    width: int,
    networks: int,
    input_dim: int,
    generator: torch.Generator,
    *,
    dtype: torch.dtype = torch.float64,
    antithetic: bool = False,
) -> Parameters:
    """Draw the unit-form parameters of many networks, the network on the leading axis.

    With ``antithetic`` network e + networks/2 is network e with the opposite readout, hence f -> -f at step 0. Each is
    a valid draw by itself, as N(0, 1) is even; the two are dependent.
    """
    draws = networks // 2 if antithetic else networks
    if antithetic and networks % 2:
        raise ValueError(f"Antithetic networks come in pairs. Got: {networks}.")

    def drawn(name: str, *shape: int) -> Tensor:
        if name in chain.uniform:
            return math.sqrt(3) * (2 * torch.rand(draws, *shape, generator=generator, dtype=dtype) - 1)
        return torch.randn(draws, *shape, generator=generator, dtype=dtype)

    sizes = (input_dim, *chain.widths(width), chain.outputs)
    weights = [f"weight.{layer}" for layer in range(chain.depth + 1)]
    parameters = {name: drawn(name, sizes[layer + 1], sizes[layer]) for layer, name in enumerate(weights)}
    for layer in range(chain.depth):
        if chain.bias_std is not None:
            parameters[f"bias.{layer}"] = chain.bias_std * drawn(f"bias.{layer}", sizes[layer + 1])
        if chain.norm == "affine":
            parameters[f"norm_gain.{layer}"] = torch.ones(draws, sizes[layer + 1], dtype=dtype)
            parameters[f"norm_shift.{layer}"] = torch.zeros(draws, sizes[layer + 1], dtype=dtype)
    if not antithetic:
        return parameters
    readout = f"weight.{chain.depth}"
    return {name: torch.cat([p, -p if name == readout else p]) for name, p in parameters.items()}


def forward(chain: Chain, parameters: Parameters, inputs: Tensor) -> Pass:
    """Evaluate every network on every row of ``inputs``, ``(sample, feature)``."""
    x = inputs.expand(len(parameters["weight.0"]), *inputs.shape)
    h = torch.zeros(())
    features, layer_outputs, standardised, normed = [x], [], [], []
    for layer in range(chain.depth):
        o = chain.gain / math.sqrt(x.shape[-1]) * torch.bmm(x, parameters[f"weight.{layer}"].mT)
        if chain.bias_std is not None:
            o = o + parameters[f"bias.{layer}"][:, None]
        layer_outputs.append(o)
        h = o if layer == 0 or chain.branch_scale is None else h + chain.branch_scale * o
        y = h if chain.norm is None else F.layer_norm(h, h.shape[-1:])
        if chain.norm == "affine":
            standardised.append(y)
            y = parameters[f"norm_gain.{layer}"][:, None] * y + parameters[f"norm_shift.{layer}"][:, None]
            normed.append(y)
        x = chain.activation(y)
        features.append(x)
    f = torch.bmm(x, parameters[f"weight.{chain.depth}"].mT) / (chain.gamma0 * x.shape[-1])
    return Pass(tuple(features), tuple(layer_outputs), tuple(standardised), tuple(normed), f)


def output_gradients(outputs: Tensor, points: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """df/dpoint for every output: ``(network, sample, neuron)`` -> ``(network, sample, output, neuron)``.

    Summing f over networks and samples first is exact, as each row of f depends on its own row of a point alone.
    """
    by_output = [torch.autograd.grad(f.sum(), points, retain_graph=True) for f in outputs.unbind(-1)]
    return tuple(torch.stack(gradients, dim=2) for gradients in zip(*by_output, strict=True))


def fields(chain: Chain, step: Pass) -> dict[str, Tensor]:
    """What kernels are Gram matrices of: features, k = gamma0 N df/do, and df/dtheta of the norms' parameters."""
    found = {f"features.{layer}": x.detach() for layer, x in enumerate(step.features)}
    gradients = output_gradients(step.outputs, step.layer_outputs + step.normed)
    for layer, gradient in enumerate(gradients[: chain.depth]):
        found[f"gradients.{layer}"] = chain.gamma0 * gradient.shape[-1] * gradient
    for layer, (gradient, y) in enumerate(zip(gradients[chain.depth :], step.standardised, strict=True)):
        found[f"norm_gain.{layer}"] = gradient * y.detach()[:, :, None]
        found[f"norm_shift.{layer}"] = gradient
    return found


def kernels(chain: Chain, fields: dict[str, Tensor]) -> Observables:
    """All kernels of one set of rows; kernels of backward type are ``(network, row, output, row, output)``."""
    width = fields[f"features.{chain.depth}"].shape[-1]
    networks, rows = fields["features.0"].shape[:2]
    like = fields["features.0"]

    def gram(rows: Tensor) -> Tensor:
        flat = rows.flatten(1, -2)
        return torch.bmm(flat, flat.mT).reshape(*rows.shape[:-1], *rows.shape[1:-1])

    found = {}
    ntk = torch.zeros((), dtype=like.dtype)
    for layer in range(chain.depth + 1):
        features = fields[f"features.{layer}"]
        phi = gram(features) / features.shape[-1]
        if layer < chain.depth:
            gradients = fields[f"gradients.{layer}"]
            fan_out = gradients.shape[-1]
            g = gram(gradients) / fan_out
            biased = 0.0 if chain.bias_std is None else 1.0
            weight_and_bias = width / fan_out * g * (chain.gain**2 * phi + biased)[:, :, None, :, None]
        else:
            identity = torch.eye(chain.outputs, dtype=like.dtype)
            g = identity[:, None].expand(networks, rows, chain.outputs, rows, chain.outputs)
            weight_and_bias = g * phi[:, :, None, :, None]
        found[f"forward.{layer}"], found[f"backward.{layer}"], found[f"ntk.{layer}"] = phi, g, weight_and_bias
        ntk = ntk + weight_and_bias
    for name in fields:
        if name.startswith("norm_"):
            ntk = ntk + chain.gamma0**2 * width * gram(fields[name])
    return found | {"ntk": ntk}


def measure(chain: Chain, times: Sequence[dict[str, Tensor]], two_time: bool) -> Observables:
    """Kernels of a run from its recorded fields, in the layouts of the module's docstring."""
    if two_time:
        time, (networks, sample) = len(times), times[0]["features.0"].shape[:2]
        every = {name: torch.cat([at[name] for at in times], dim=1) for name in times[0]}
        found = {}
        for name, kernel in kernels(chain, every).items():
            output = kernel.shape[2:3] if kernel.ndim == 5 else ()
            found[name] = kernel.reshape(networks, time, sample, *output, time, sample, *output)
        first, second = 3, 6
    else:
        at_times = [kernels(chain, at) for at in times]
        found = {name: torch.stack([at[name] for at in at_times], dim=1) for name in at_times[0]}
        first, second = 3, 5
    if chain.outputs > 1:
        return found
    return {n: k if n.startswith("forward") else k.squeeze(second).squeeze(first) for n, k in found.items()}


def train(
    chain: Chain,
    training: Training,
    parameters: Parameters,
    *,
    record: Sequence[int] | None = None,
    two_time: bool = False,
) -> Observables:
    """Train all networks at once, in place, and return the observables at the recorded steps.

    Args:
        chain: the network.
        training: data, loss and optimiser.
        parameters: from ``initialise``; they hold the trained values afterwards.
        record: increasing steps in 0..T at which to measure, before the update of that step; None: 0..T-1.
        two_time: kernels between all pairs of recorded steps instead of at equal steps.

    Returns:
        The observables by name, each with the network as leading axis.
    """
    readout = parameters[f"weight.{chain.depth}"]
    inputs, width = training.rows(readout.dtype), readout.shape[-1]
    record = range(training.steps) if record is None else record
    all_rows = torch.arange(len(training.inputs))
    velocity = {name: torch.zeros_like(p) for name, p in parameters.items()} if training.momentum else {}
    outputs, losses, times = [], [], []
    start = forward(chain, parameters, inputs).outputs.detach() if training.centered else 0.0
    for t in range(training.steps + 1):
        for p in parameters.values():
            p.requires_grad_(True)
        step = forward(chain, parameters, inputs)
        f = step.outputs - start
        if t in record:
            outputs.append(f.detach())
            losses.append(training.losses(f.detach(), all_rows))
            times.append(fields(chain, step))
        if t == training.steps:
            break
        batch = all_rows if training.batches is None else training.batches[t]
        loss = training.losses(f, batch).sum()  # networks share nothing, so each gets its own gradient
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        for (name, p), gradient in zip(parameters.items(), gradients, strict=True):
            p.requires_grad_(False)
            push = chain.gamma0**2 * width * gradient
            if training.weight_decay and not training.decoupled:
                push = push + training.weight_decay * p
            if training.momentum:
                share = 1.0 if t == 0 else 1 - training.dampening
                velocity[name] = training.momentum * velocity[name] + share * push
                push = push + training.momentum * velocity[name] if training.nesterov else velocity[name]
            if training.decoupled:
                p.mul_(1 - training.rate(t) * training.weight_decay)
            p.sub_(push, alpha=training.rate(t))
    for p in parameters.values():
        p.requires_grad_(False)
    return {
        "outputs": torch.stack(outputs, dim=1),
        "losses": torch.stack(losses, dim=1),
        **measure(chain, times, two_time),
    }
