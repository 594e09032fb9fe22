"""A problem posed to the engine: its twin, its inputs in fewer dimensions, and the answer under its own names."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from torch_dmft.core.trajectory import Trajectory
from torch_dmft.parameterization import Plan
from torch_dmft.theory.chains.assembly import layer_names
from torch_dmft.theory.engine.twin import infinite_width
from torch_dmft.theory.problem import Problem


def enough_neurons(problem: Problem) -> int:
    """The power of two from which on the rows of the data, and their gradients, take at most an eighth of the directions."""
    return int(2 ** math.ceil(math.log2(8 * problem.samples * (1 + problem.outputs))))


def twin_of(
    problem: Problem, neurons: int, *, tolerance: float, generator: torch.Generator, law: str, responses: bool
) -> Plan:
    """The infinite-width twin of a problem's network."""
    example = problem.inputs[:2]
    settings: dict[str, Any] = {
        "tolerance": tolerance,
        "generator": generator,
        "law": law,
        "responses": responses,
        "rank": problem.samples * (3 + problem.outputs),
    }
    if problem.chain is None:
        assert problem.network is not None  # a problem without a chain has a network
        return infinite_width(problem.network, example, neurons=neurons, **settings)
    chain = problem.chain
    names = [str(2 * index) for index in range(chain.depth)]
    return infinite_width(
        chain.build,
        example,
        gamma0=problem.gamma0,
        neurons=neurons,
        gain={name: layer.gain for name, layer in zip(names, chain.hidden, strict=True)},
        bias_std={name: layer.bias_std or 0.0 for name, layer in zip(names, chain.hidden, strict=True)},
        **settings,
    )


def rotated(problem: Problem) -> Problem:
    """The same problem with the inputs of a chain in an orthonormal basis of their span, if that is smaller.

    A Gaussian first layer does not see rotations of the input, and coordinates that no row uses are never trained. Of
    independent rows the basis is the one in which each has a coordinate of its own, as far as that goes: the symmetric root
    of their Gram matrix. Adam, which treats every entry of a weight by itself, sees rotations.
    """
    flat = problem.inputs.flatten(1)
    if problem.chain is None or flat.shape[1] <= len(flat) or problem.optimizer != "sgd":
        return problem
    left, singular, _ = torch.linalg.svd(flat.double(), full_matrices=False)
    used = singular > singular[0] * 1e-12 * flat.shape[1]
    coordinates = left[:, used] * singular[used]
    if bool(used.all()):
        coordinates = coordinates @ left.T
    dim = coordinates.shape[1]
    inputs = (coordinates * math.sqrt(dim / flat.shape[1])).to(problem.inputs)
    return replace(problem, inputs=inputs, chain=replace(problem.chain, input_dim=dim))


def renamed(trajectory: Trajectory, problem: Problem) -> Trajectory:
    """With the module paths of the problem's own network."""
    if problem.chain is None:
        return trajectory
    names = layer_names(problem, problem.chain)
    layers = tuple(replace(layer, name=name) for layer, name in zip(trajectory.layers, names, strict=True))
    return replace(trajectory, layers=layers)
