"""Finite networks trained with Langevin noise, the oracle's networks in a loop of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from tests.reference.ensembles import Estimate, Limit, fit
from tests.reference.networks import fields, forward, initialise, measure
from tests.theory.solvers.limit import chain_of, training_of
from torch_dmft.theory.problem import Problem


def noisy_networks(problem: Problem, step: int, networks: Mapping[int, int]) -> Limit:
    """Outputs and kernels at one step of the infinitely wide network, from ``networks`` (width -> number).

    theta <- (1 - eta lambda) theta - eta gamma0^2 N_L dL/dtheta + sqrt(2 T eta) N(0, 1) for every unit-form parameter.
    """
    generator = torch.Generator().manual_seed(0)
    chain, training = chain_of(problem), training_of(problem)
    inputs = training.rows(torch.float32)
    rows = torch.arange(len(training.inputs))
    spread = math.sqrt(2 * problem.temperature * problem.lr)
    estimates = []
    for width, count in networks.items():
        parameters = initialise(chain, width, count, inputs.shape[1], generator, dtype=torch.float32, antithetic=True)
        for _ in range(step):
            for parameter in parameters.values():
                parameter.requires_grad_(True)
            loss = training.losses(forward(chain, parameters, inputs).outputs, rows).sum()
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                parameter.requires_grad_(False)
                parameter.mul_(1 - problem.lr * problem.weight_decay)
                parameter.sub_(gradient, alpha=problem.lr * chain.gamma0**2 * width)
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=spread)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        last = forward(chain, parameters, inputs)
        found = measure(chain, [fields(chain, last)], two_time=False)
        found = {"outputs": last.outputs.detach()[:, None], **found}
        pairs = {name: values.double().unflatten(0, (2, -1)).mean(0) for name, values in found.items()}
        estimates.append(
            Estimate(
                width,
                count // 2,
                {name: values.mean(0) for name, values in pairs.items()},
                {name: values.std(0) / math.sqrt(count / 2) + 1e-7 for name, values in pairs.items()},
            )
        )
    return fit(estimates)
