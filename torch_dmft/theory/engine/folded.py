r"""Kernels of networks whose parameters hold a number that depends on the width, in the units of another width.

Queries hold the 1/sqrt(d) that scores q.k / sqrt(d) lack. A field c h that holds a number c has gradients
times 1/c, so that its G is that of h times 1/c^2, and a weight that reads such features has a Phi times c^2. Both follow powers
of the width and have no limit until they are in the units of one width. NTKs have none, as rates hold c too.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch_dmft.architecture import Architecture, Layer
from torch_dmft.core.factors import weighted
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.trajectory import LayerKernels, Trajectory


def in_units_of(run: Trajectory, own: Architecture, other: Architecture) -> Trajectory:
    """A run of a network with the kernels that fields have in the units of the same network at another width.

    Args:
        run: as it was measured.
        own: architecture of the network.
        other: architecture at the width whose units are wanted.
    """
    if not (own.folds and other.folds):
        return run
    mine, theirs = ({layer.path: layer for layer in one.layers} for one in (own, other))

    def converted(layer: LayerKernels) -> LayerKernels:
        if layer.name not in mine or layer.name not in theirs:
            return layer
        here, there = mine[layer.name], theirs[layer.name]
        read, made = _read(there, other) / _read(here, own), there.fold / here.fold
        if math.isclose(read, 1.0) and math.isclose(made, 1.0):
            return layer
        return replace(layer, forward=_times(layer.forward, read**2), backward=_times(layer.backward, made**-2))

    return replace(run, layers=tuple(converted(layer) for layer in run.layers))


def _read(layer: Layer, architecture: Architecture) -> float:
    """What the features that a weight reads are multiplied by: that of its outputs, without what it holds itself."""
    return layer.fold / architecture.factors.get(layer.weight, 1.0)


def _times(kernel: Kernel, number: float) -> Kernel:
    return Kernel(kernel.array * number, weighted([kernel.factors], [number]))
