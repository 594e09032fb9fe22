"""Which rows inside the network belong to which sample, and the gradients of every output by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.core.errors import Place, UnsupportedModelError
from torch_dmft.measurement.capture import Taps
from torch_dmft.measurement.normal_form import Layout, per_sample

Layouts = Mapping[str, Sequence[Layout]]


def find_layouts(taps: Taps, outputs: Float[Tensor, "sample output"]) -> tuple[Layouts, bool]:
    """Where every use has its samples, told from the rows that the outputs of sample 0 depend on.

    Returns:
        The layouts, and whether they are certain: where all gradients vanish (a readout that starts at zero) they are
        a guess by shape, which leaves G and the NTK right, being zero, but not always Phi.

    Raises:
        UnsupportedModelError: if a tensor with one row per sample mixes samples, listing all such layers.
    """
    if taps.subject.architecture.is_chain:
        return {path: [Layout.FIRST] * len(uses) for path, uses in taps.uses.items()}, True
    samples = len(outputs)
    weights = torch.arange(1, outputs.shape[1] + 1, device=outputs.device, dtype=outputs.dtype)  # a sum may be constant
    flat = [use.output for use in taps.flat()]
    found_gradients = torch.autograd.grad(
        outputs[0] @ weights, flat, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    remaining = iter(found_gradients)
    layouts, mixed = {}, []
    for path, uses in taps.uses.items():
        found = [_layout(next(remaining), samples) for _ in uses]
        layouts[path] = [layout for layout in found if layout is not None]
        if None in found:
            mixed.append(path)
    if mixed:
        raise UnsupportedModelError(
            "The outputs of one sample depend on the rows of others:",
            [
                Place(
                    path or "the model itself",
                    f"sample 0 depends on several of its {samples} rows",
                    f"if the rows are positions, of which there happen to be {samples} too, use another number of "
                    "samples; a model that mixes samples in eval mode (batch statistics) has no kernels",
                )
                for path in mixed
            ],
        )
    return layouts, all(bool(gradient.any()) for gradient in found_gradients)


def _layout(gradient: Tensor, samples: int) -> Layout | None:
    touched = gradient.reshape(len(gradient), -1).any(1)
    if len(gradient) % samples == 0 and not touched[len(gradient) // samples :].any():
        return Layout.FIRST
    if gradient.ndim > 2 and gradient.shape[1] == samples and not gradient[:, 1:].any():
        return Layout.SECOND
    return None if len(gradient) == samples else Layout.SHARED


def gradients(
    taps: Taps, layouts: Layouts, outputs: Float[Tensor, "sample output"], *, retain_graph: bool
) -> dict[str, list[Float[Tensor, "sample output row ..."]]]:
    """df_c(mu)/d(output of each use), per sample.

    Rows of different samples do not interact, so the gradient of sum_mu f_c(mu) holds those of all samples: one
    backward pass per output. Tensors shared by all samples need one per sample and output.
    """
    samples, count = outputs.shape
    flat = [use.output for use in taps.flat()]
    kinds = [layout for found in layouts.values() for layout in found]
    result = []
    for tensor, layout in zip(flat, kinds, strict=True):
        like = per_sample(tensor.detach(), layout, samples)
        result.append(like.new_empty(samples, count, *like.shape[1:]))
    shared = [index for index, layout in enumerate(kinds) if layout is Layout.SHARED]
    own = [index for index, layout in enumerate(kinds) if layout is not Layout.SHARED]
    passes: list[tuple[Tensor, list[int], int, slice]] = []
    for c in range(count):
        passes.append((outputs[:, c].sum(), own, c, slice(None)))
        if shared:
            passes += [(outputs[mu, c], shared, c, slice(mu, mu + 1)) for mu in range(samples)]
    for number, (scalar, wanted, c, rows) in enumerate(passes):
        found = torch.autograd.grad(
            scalar,
            [flat[index] for index in wanted],
            retain_graph=retain_graph or number < len(passes) - 1,
            allow_unused=True,
            materialize_grads=True,
        )
        for index, gradient in zip(wanted, found, strict=True):
            result[index][rows, c] = per_sample(gradient, kinds[index], samples)
    remaining = iter(result)
    return {path: [next(remaining) for _ in uses] for path, uses in taps.uses.items()}
