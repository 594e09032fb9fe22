"""Ensembles of finite networks whose readout is their embedding, in unit form: the oracle of tied weights in infinite width.

    e_p = m omega[x_p],  h_p = e_p + W tanh(e_p) / sqrt(N),  f_v = omega_v . <tanh(h_p)> / (gamma0 N) with a mean over places p

omega, one vector per token, and W have entries N(0, 1), and every number learns at the rate eta gamma0^2 N. The loss is the
mean cross entropy of f against one token for each sample. Independent of the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.reference.ensembles import Limit, fit
from tests.reference.pairs import descend, estimate, gram


def train(
    inputs: Tensor,
    targets: Tensor,
    width: int,
    networks: int,
    *,
    vocabulary: int,
    size: float,
    lr: float,
    steps: int,
    gamma0: float,
    generator: torch.Generator,
    record: tuple[int, ...],
) -> dict[str, Tensor]:
    """Observables of many networks before each recorded step, with a leading network axis.

    Args:
        inputs: ``(sample, place)`` tokens.
        targets: ``(sample,)`` tokens.
        width: N.
        networks: how many.
        vocabulary: number of tokens.
        size: m.
        lr: eta.
        steps: of gradient descent.
        gamma0: richness.
        generator: source of the weights.
        record: the steps to record.
    """
    shapes = {"omega": (vocabulary, width), "mix": (width, width)}
    theta = {
        name: torch.randn(networks, *shape, generator=generator, dtype=torch.float32).requires_grad_()
        for name, shape in shapes.items()
    }
    rate, length = gamma0**2 * width, inputs.shape[1]
    one_hot = F.one_hot(inputs, vocabulary).float()
    found: dict[str, list[Tensor]] = {}
    for step in range(steps + 1):
        written = [size * theta["omega"][:, inputs]]  # (network, sample, place, neuron)
        read = [one_hot.expand(networks, *one_hot.shape), torch.tanh(written[0])]
        written.append(torch.einsum("nof,nptf->npto", theta["mix"], read[1]) / math.sqrt(width))
        last = torch.tanh(written[0] + written[1]).mean(2)
        f = torch.einsum("nvf,npf->npv", theta["omega"], last) / (gamma0 * width)
        losses = F.cross_entropy(f.mT, targets.expand(networks, -1), reduction="none").mean(1)
        if step in record:
            of_each = [
                torch.autograd.grad(one.sum(), [*written, *theta.values()], retain_graph=True)
                for one in f.flatten(1).unbind(1)
            ]
            pairs = (networks, *f.shape[1:], *f.shape[1:])
            now = {"outputs": f, "losses": losses}
            for index, features in enumerate((1, width)):
                rows = torch.stack([each[index] for each in of_each], dim=1)  # a sample's own rows alone are not zero
                g = torch.stack([rows[:, n, n // vocabulary] for n in range(rows.shape[1])], dim=1)
                now[f"forward.{index}"] = gram(read[index]) / (length * features)
                now[f"backward.{index}"] = (gram(gamma0 * width * length * g) / (length * width)).reshape(pairs)
                jacobian = torch.stack([each[2 + index].flatten(1) for each in of_each], dim=1)
                now[f"ntk.{index}"] = rate * gram(jacobian).reshape(pairs)
            now["forward.2"] = gram(last) / width
            eye = torch.eye(vocabulary).reshape(1, 1, vocabulary, 1, vocabulary)
            now["backward.2"] = eye.expand(networks, len(inputs), vocabulary, len(inputs), vocabulary)
            now["ntk"] = now["ntk.0"] + now["ntk.1"]
            for name, values in now.items():
                found.setdefault(name, []).append(values.detach())
        descend(theta.values(), losses, lr * rate)
    return {name: torch.stack(values, dim=1) for name, values in found.items()}


def limit(inputs: Tensor, targets: Tensor, networks: Mapping[int, int], **settings: object) -> Limit:
    """Infinite width, from ensembles of several widths trained a few at a time."""
    estimates = []
    for width, count in networks.items():
        at_once = max(2, 2 * (2**18 // width**2))
        parts = [
            train(inputs, targets, width, min(at_once, count - start), **settings)  # type: ignore[arg-type]
            for start in range(0, count, at_once)
        ]
        estimates.append(estimate(width, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}))
    return fit(estimates)
