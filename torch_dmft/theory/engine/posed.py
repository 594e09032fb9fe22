"""A problem posed to the engine: its twin, its inputs in fewer dimensions, and the answer under its own names."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from torch_dmft.core.trajectory import Trajectory
from torch_dmft.parameterization import Plan
from torch_dmft.parameterization.uniform import UNIFORM
from torch_dmft.theory.engine.layers import InfiniteReadout
from torch_dmft.theory.engine.lazy_layer import LazyLayer
from torch_dmft.theory.engine.networks import frozen_as, zero_starts
from torch_dmft.theory.engine.training import rows_at_once
from torch_dmft.theory.engine.twin import infinite_width
from torch_dmft.theory.network import ChainNetwork
from torch_dmft.theory.problem import Problem


def enough_neurons(problem: Problem) -> int:
    """The smallest power of two of which the rows of the data and their gradients take at most an eighth."""
    return int(2 ** math.ceil(math.log2(8 * rows_at_once(problem) * (1 + problem.outputs))))


def twin_of(
    problem: Problem, neurons: int, *, tolerance: float, generator: torch.Generator, law: str, responses: bool
) -> Plan:
    """The infinite-width twin of a problem's network."""
    example = problem.tensor[:2]
    settings: dict[str, Any] = {
        "tolerance": tolerance,
        "generator": generator,
        "law": law,
        "responses": responses,
        "rank": rows_at_once(problem) * (3 + problem.outputs),
        "whole": not is_closed(problem),
    }
    network = problem.network
    settings["uniform"] = uniform_in(problem)
    if network.chain is not None:
        settings |= {"gamma0": problem.gamma0, "gain": network.gains, "bias_std": network.bias_stds}
    twin = infinite_width(network.source, example, neurons=neurons, **settings)
    for module in twin.model.modules():
        if isinstance(module, LazyLayer):
            module.matrix.jointly = problem.batches is not None
    start_at_zero(problem, twin)
    if twin.architecture.train_differs:  # the model that it is made of may be in eval mode by now
        twin.model.train()
    return frozen_as(problem, twin)


def uniform_in(problem: Problem) -> frozenset[str]:
    """The parameters that start as uniform numbers in a problem, by the names they have in the model that it is built as.

    Hidden weights are left out: each field is a sum over infinitely many of their entries, so that only their variance matters.
    """
    network, starts = problem.network, problem.training.starts
    names = {
        f"{built}.{kind}": f"{path}.{kind}" for built, path in network.names.items() for kind in ("weight", "bias")
    }
    names |= {name: name for name in network.row_stds}
    hidden = set(network.hidden)
    return frozenset(built for built, name in names.items() if starts.get(name) == UNIFORM and name not in hidden)


def start_at_zero(problem: Problem, twin: Plan) -> None:
    """Set the weights of a twin to zero that start at zero in the problem."""
    zero = zero_starts(problem, twin)
    with torch.no_grad():
        for name in zero:
            twin.model.get_parameter(name).zero_()
    for module in twin.model.modules():
        if isinstance(module, InfiniteReadout) and any(
            module.weight is twin.model.get_parameter(name) for name in zero
        ):
            module.drawn.fill_(True)


def rotated(problem: Problem) -> Problem:
    """The same problem with the inputs of a chain as rows, in an orthonormal basis of their span if that is smaller.

    A Gaussian first layer does not see rotations of the input, and coordinates that no row uses are never trained. Of
    independent rows the basis is the one in which each has a coordinate of its own, as far as that goes: the symmetric root
    of their Gram matrix. Adam, which treats every entry of a weight by itself, sees rotations, and so do uniform weights.
    """
    chain = problem.chain
    if chain is None:
        return problem
    flat = problem.tensor.flatten(1)
    if problem.tensor.ndim > 2:  # images before nn.Flatten, which is no part of a chain
        problem = replace(problem, inputs=flat)
    first = f"{problem.network.paths[0]}.weight"
    if problem.training.kind(first) not in ("SGD", "Muon") or problem.training.starts.get(first) == UNIFORM:
        return problem
    if flat.shape[1] <= len(flat):
        return problem
    left, singular, _ = torch.linalg.svd(flat.double(), full_matrices=False)
    used = singular > singular[0] * 1e-12 * flat.shape[1]
    coordinates = left[:, used] * singular[used]
    if bool(used.all()):
        coordinates = coordinates @ left.T
    dim = coordinates.shape[1]
    inputs = (coordinates * math.sqrt(dim / flat.shape[1])).to(problem.tensor)
    network = ChainNetwork(replace(chain, input_dim=dim), problem.network.paths)
    return replace(problem, inputs=inputs, network=network)


def is_closed(problem: Problem) -> bool:
    """Whether training moves the hidden weights within the bases of the engine: SGD and Muon do, Adam does not.

    Weights that leave the bases are kept entry by entry, see ``LazyLayer``.
    """
    training = problem.training
    return all(training.kind(name) in ("SGD", "Muon") for name in problem.network.hidden if name not in training.frozen)


def renamed(trajectory: Trajectory, problem: Problem) -> Trajectory:
    """The answer with the module paths of the problem's network."""
    paths = problem.network.paths
    layers = tuple(replace(layer, name=name) for layer, name in zip(trajectory.layers, paths, strict=True))
    return replace(trajectory, layers=layers)
