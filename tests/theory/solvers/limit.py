"""A chain ``Problem`` seen from finite networks: ensembles of ``tests.reference``, extrapolated in 1/N."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tests.reference.ensembles import Limit, extrapolate
from tests.reference.networks import Chain, Training
from torch_dmft.core.activation import activation
from torch_dmft.theory.problem import Problem


def chain_of(problem: Problem) -> Chain:
    """The problem's network in the reference's terms."""
    network = problem.chain
    layer = network.hidden[0]
    return Chain(
        network.depth,
        activation(layer.activation).function,
        problem.gamma0,
        network.outputs,
        layer.gain,
        layer.bias_std,
        tuple(hidden.width_ratio for hidden in network.hidden),
    )


def training_of(problem: Problem) -> Training:
    """The problem's data, loss and optimiser in the reference's terms."""
    train = problem.train_samples
    return Training(
        problem.inputs[:train],
        problem.targets,
        problem.training.lr.tolist(),
        problem.steps,
        problem.loss,
        problem.momentum,
        problem.weight_decay,
        problem.batches,
        problem.inputs[train:] if problem.samples > train else None,
        dampening=problem.training.constant("dampening") or 0.0,
        nesterov=bool(problem.training.constant("nesterov")),
        decoupled=bool(problem.training.constant("decoupled")),
    )


def limit(
    problem: Problem, record: Sequence[int], networks: Mapping[int, int], *, order: int = 1, two_time: bool = False
) -> Limit:
    """The N -> infinity network from ``networks`` (width -> number), with its standard error."""
    generator = torch.Generator().manual_seed(0)
    return extrapolate(
        chain_of(problem), training_of(problem), networks, generator, order=order, record=record, two_time=two_time
    )
