"""All numbers of a run as one vector, each once: what symmetry or the data give is left out."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.kernel import Kernel
from torch_dmft.core.trajectory import LayerKernels, Trajectory


def entries(run: Trajectory) -> Float[Tensor, " entry"]:
    """Outputs, losses, Phi^1..Phi^L, G^1..G^L and the whole NTK of a run at equal times, in float64.

    Phi^0 and G^{L+1}, which the data give, and the parts of the NTK, products of Phi and G, are left out.
    """
    kernels = [layer.forward for layer in run.layers[1:]] + [layer.backward for layer in run.layers[:-1]]
    parts = [run.outputs, run.losses, *(_upper(kernel.array) for kernel in [*kernels, run.known_ntk])]
    return torch.cat([part.flatten().double() for part in parts])


def with_entries(run: Trajectory, numbers: Float[Tensor, " entry"]) -> Trajectory:
    """A trajectory in the layout of ``run`` with other numbers; Phi^0 and G^{L+1} are zero."""
    depth, rest = len(run.layers) - 1, numbers.to(run.outputs)

    def taken(shape: torch.Size) -> Tensor:
        nonlocal rest
        found, rest = rest[: shape.numel()], rest[shape.numel() :]
        return found.reshape(shape)

    def kernel(like: Kernel) -> Kernel:
        return Kernel(_symmetric(taken(_upper(like.array).shape), like.array.shape))

    outputs, losses = taken(run.outputs.shape), taken(run.losses.shape)
    forward = [kernel(layer.forward) for layer in run.layers[1:]]
    backward = [kernel(layer.backward) for layer in run.layers[:-1]]
    first, last = (Kernel(torch.zeros_like(given.array)) for given in (run.layers[0].forward, run.layers[-1].backward))
    layers = [
        LayerKernels(run.layers[at].name, phi, g, None)
        for at, phi, g in zip(range(depth + 1), [first, *forward], [*backward, last], strict=True)
    ]
    return replace(
        run,
        outputs=outputs,
        losses=losses,
        layers=tuple(layers),
        ntk=kernel(run.known_ntk),
        stderr=None,
        replicas=(),
        curvature=None,
    )


def _upper(array: Float[Tensor, "time ..."]) -> Float[Tensor, "time pair"]:
    """The entries on and above the diagonal of symmetric matrices over (sample) or (sample, output)."""
    rows = math.isqrt(array[0].numel())
    left, right = torch.triu_indices(rows, rows, device=array.device)
    return array.reshape(len(array), rows, rows)[:, left, right]


def _symmetric(upper: Float[Tensor, "time pair"], shape: torch.Size) -> Float[Tensor, "time ..."]:
    rows = math.isqrt(shape[1:].numel())
    left, right = torch.triu_indices(rows, rows, device=upper.device)
    full = upper.new_zeros(len(upper), rows, rows)
    full[:, left, right] = upper
    full[:, right, left] = upper
    return full.reshape(shape)
