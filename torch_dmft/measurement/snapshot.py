"""Snapshot: one measurement of a network, outputs and kernels of every layer at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_dmft.architecture import Layer
from torch_dmft.core.undisturbed import undisturbed
from torch_dmft.measurement.capture import Taps, Use, capture
from torch_dmft.measurement.gradients import Layouts, find_layouts, gradients
from torch_dmft.measurement.moment import LayerSnapshot, Part, Snapshot, averaged, squeeze_outputs
from torch_dmft.measurement.normal_form import (
    Layout,
    Stream,
    backward_gram,
    forward_gram,
    input_vectors,
    patches,
    per_sample,
    positions,
    vocabulary,
)
from torch_dmft.measurement.precision import precision_note, precision_of
from torch_dmft.measurement.self_check import combination, contradiction, squares, wrong
from torch_dmft.measurement.subject import Subject
from torch_dmft.measurement.wanted import Wanted, require_room
from torch_dmft.measurement.watched import Known, measure_watched, measured_rows
from torch_dmft.uses.failures import outputs_on
from torch_dmft.uses.outputs import Example, count, moved, output_rows, rows
from torch_dmft.uses.ownership import close
from torch_dmft.uses.products import bias_ntk, gram, owner_jacobian, tied_ntk, weight_ntk


def snapshot(subject: Subject, inputs: Example, *, layouts: Layouts | Known | None = None) -> Snapshot:
    """Measure a network on inputs with samples first, leaving it exactly as it was.

    Raises:
        UnsupportedModelError: if a layer was not seen, its samples cannot be told apart, or the measurement contradicts an
            ordinary backward pass.
        InsufficientMemoryError: if the estimate exceeds what is free.
    """
    known, found = (layouts, None) if isinstance(layouts, Known) else (None, layouts)
    if not (subject.is_chain or subject.is_sampled):
        return measure_watched(subject, inputs, known)
    some = measured_rows(subject, inputs)
    with undisturbed(subject.run):
        if found is None and not subject.is_sampled and not _is_steady(subject.run, some):
            return measure_watched(subject, inputs)  # which finds the place
        with capture(subject) as taps:
            outputs = output_rows(outputs_on(subject.run, some), count(some))
        taken = measure(taps, outputs, layouts=found, retain_graph=found is None)
        if found is None and subject.wanted.is_whole:
            _check(subject, outputs, taken)
        elif found is None:
            one = combination(outputs)
            whole = replace(subject, wanted=Wanted())
            _check(whole, one, measure(replace(taps, subject=whole), one, layouts=taken.layouts, retain_graph=True))
    return taken


def _is_steady(run: nn.Module, inputs: Example) -> bool:
    """Whether two passes give the same outputs, or at least none that are finite and differ."""
    one, other = (output_rows(outputs_on(run, inputs), count(inputs)).detach() for _ in range(2))
    return close(one, other) or not bool(one.isfinite().all())


def _check(subject: Subject, outputs: Tensor, taken: Snapshot) -> None:
    """Hold the NTK shares of layers against an ordinary backward pass.

    Raises:
        UnsupportedModelError: if they differ; with the layers.
    """
    rates = subject.rates
    trained = {name: value for name, value in subject.model.named_parameters() if rates.get(name, 0.0)}
    backward = {name: rates[name] * square for name, square in squares(outputs, trained).items()}
    known = {
        layer.path: (layer.weight if layer.multiplier is None else None, layer.bias)
        for layer in subject.architecture.layers
    }
    given = {layer.name: layer.ntk for layer in taken.layers if layer.ntk is not None}
    of_layers = {
        path: torch.stack([backward[n] for n in names if n in backward]).sum()
        for path, names in known.items()
        if any(n in backward for n in names)
    }
    off = wrong({path: given[path] for path in of_layers}, of_layers, outputs)
    if off:
        raise contradiction({path: (path, factor) for path, factor in off.items()})


def returns_one_number(model: nn.Module, inputs: Example) -> bool:
    """Whether a model returns ``(sample,)``, one number for each, rather than ``(sample, output)``."""
    some = moved(rows(inputs, [0, 1]), next(model.parameters()).device)
    with undisturbed(model):  # with gradients, of which a model may make its outputs
        return bool(outputs_on(model, some).ndim == 1)


def measure(
    taps: Taps,
    outputs: Float[Tensor, "sample output"],
    *,
    layouts: Layouts | None = None,
    retain_graph: bool = False,
) -> Snapshot:
    """Kernels from one captured forward pass; costs one backward pass per output and layerwise products.

    Args:
        taps: what ``capture`` kept while the network ran.
        outputs: what it returned, attached to the graph.
        layouts: from an earlier snapshot of the same network. None finds them out, which costs one more backward pass
            unless the network is a plain chain.
        retain_graph: keep the graph, for a training step on the same forward pass.

    Raises:
        UnsupportedModelError: if the samples of a layer cannot be told apart.
        InsufficientMemoryError: if the estimate exceeds what is free.
    """
    subject = taps.subject
    certain = True
    if layouts is None:
        layouts, certain = find_layouts(taps, outputs)
    _require_memory(taps, layouts, outputs)
    known, wanted, number = layouts, subject.wanted, outputs.shape[1]

    def part(some: list[int]) -> Part:
        functions = outputs if len(some) == number else outputs[:, some]
        return _part(taps, known, functions, retain_graph=retain_graph or some[-1] < number - 1)

    parts = map(part, wanted.blocks(number))
    layers, total = next(parts) if wanted.per_output else averaged(parts, number, fields=wanted.fields)
    precision = precision_of((use.output for use in taps.flat()), outputs.dtype)
    said = precision_note(precision, subject.model)
    return Snapshot(outputs.detach(), layers, total, layouts if certain else None, said, precision)


def _part(taps: Taps, layouts: Layouts, outputs: Float[Tensor, "sample output"], *, retain_graph: bool) -> Part:
    """The layers and the NTK of some functions of the network."""
    subject = taps.subject
    shared = {name: subject.model.get_parameter(name) for name in subject.architecture.shared if subject.rate(name)}
    shared = shared if subject.wanted.ntk else {}
    found = gradients(taps, layouts, outputs, retain_graph=retain_graph or bool(shared))
    uses = {
        path: [UseWithGradient(*parts) for parts in zip(taps.uses[path], layouts[path], found[path], strict=True)]
        for path in taps.uses
    }
    layers, ntks = [], []
    for layer in subject.architecture.layers:
        stream = _stream(subject, layer, uses[layer.path])
        ntk = _layer_ntk(subject, layer, uses, stream) if subject.wanted.ntk else None
        ntks += [] if ntk is None else [ntk]
        layers.append(
            LayerSnapshot(
                name=layer.path,
                forward=forward_gram(stream, stream),
                backward=squeeze_outputs(backward_gram(stream, stream)),
                ntk=None if ntk is None else squeeze_outputs(ntk),
                stream=stream,
            )
        )
    if not subject.wanted.ntk:
        return tuple(layers), None
    if shared:
        jacobians = _shared_jacobians(shared, outputs, retain_graph=retain_graph)
        ntks += [subject.rate(name) * gram(jacobian) for name, jacobian in jacobians.items()]
    vectors = subject.architecture.vectors
    owners = dict.fromkeys(vector.path for vector in vectors if vector.is_norm)
    ntks += [_owner_ntk(subject, path, uses[path]) for path in owners]
    ntks += [_scale_ntk(subject, vector.name, uses[vector.name]) for vector in vectors if vector.is_scale]
    return tuple(layers), squeeze_outputs(reduce(torch.add, ntks))


@dataclass(frozen=True, eq=False)
class UseWithGradient:
    """One call of a module, where its samples are, and df_c/d(output) per sample: ``(sample, output, row, ...)``."""

    use: Use
    layout: Layout
    gradient: Tensor

    @property
    def samples(self) -> int:
        """P."""
        return len(self.gradient)

    def layer_gradient(self, layer: Layer) -> Float[Tensor, "sample output position neuron"]:
        """The gradient in normal form."""
        rows = self.gradient.shape[:2]
        return positions(self.gradient.flatten(0, 1), layer).unflatten(0, rows)


def _stream(subject: Subject, layer: Layer, uses: list[UseWithGradient]) -> Stream:
    tokens = vocabulary(layer, [one.use.inputs for one in uses])
    return Stream(
        layer,
        subject.gamma0,
        inputs=tuple(
            input_vectors(one.use.inputs, layer, one.layout, one.samples, tokens).to(one.gradient.dtype) for one in uses
        ),
        outputs=tuple(positions(per_sample(one.use.output.detach(), one.layout, one.samples), layer) for one in uses),
        gradients=tuple(one.layer_gradient(layer) for one in uses),
    )


def _layer_ntk(
    subject: Subject, layer: Layer, uses: Mapping[str, list[UseWithGradient]], stream: Stream
) -> Float[Tensor, "sample output sample output"]:
    """What weight and bias add to the NTK. Uses are further positions: their gradients add up first.

    A readout whose weight is that of an embedding adds its bias only; the embedding has what the weight adds by both.
    """
    shares = [one for one in subject.architecture.layers if one.weight == layer.weight and one is not layer]
    if stream.is_plain and not shares:
        pairs = stream.gradients[0].shape[:2]
        by_bias = stream.gradient_products[0].reshape(*pairs, *pairs)
        by_weight = by_bias * stream.input_products[0][:, None, :, None]
        rates = subject.rate(layer.weight), 0.0 if layer.bias is None else subject.rate(layer.bias)
        return rates[0] * by_weight + rates[1] * by_bias if rates[1] else rates[0] * by_weight
    x, g = _factors(subject, layer, uses[layer.path])
    by_bias = g.new_zeros(()) if layer.bias is None else subject.rate(layer.bias) * bias_ntk(g)
    if layer.multiplier is not None:
        samples, outputs = g.shape[:2]
        return by_bias.expand(samples, outputs, samples, outputs)
    by_weight = weight_ntk(x, g)
    for readout in shares:
        tokens = vocabulary(layer, [one.use.inputs for one in uses[layer.path]])
        y, k = _factors(subject, readout, uses[readout.path])
        by_weight = by_weight + weight_ntk(y, k) + tied_ntk(x, g, y, k[..., tokens])
    return subject.rate(layer.weight) * by_weight + by_bias


def _factors(subject: Subject, layer: Layer, uses: list[UseWithGradient]) -> tuple[Tensor, Tensor]:
    """What multiplies a weight, ``(row, position, group, feature)``, and df_c/dh, ``(sample, output, position, neuron)``."""
    module = subject.model.get_submodule(layer.path)
    tokens = vocabulary(layer, [one.use.inputs for one in uses])
    g = torch.cat([one.layer_gradient(layer) for one in uses], dim=2)
    x = [patches(one.use.inputs, layer, module, one.layout, one.samples, tokens).to(g.dtype) for one in uses]
    rows = max(len(part) for part in x)
    return torch.cat([part.expand(rows, -1, -1, -1) for part in x], dim=1), g


def _shared_jacobians(
    parameters: Mapping[str, Tensor], outputs: Float[Tensor, "sample output"], *, retain_graph: bool
) -> dict[str, Float[Tensor, "sample output entry"]]:
    """df_c(mu) by parameters that are one tensor for all samples; one backward pass per sample and output."""
    found = [
        torch.autograd.grad(
            f,
            list(parameters.values()),
            retain_graph=retain_graph or number < outputs.numel() - 1,
            allow_unused=True,
            materialize_grads=True,
        )
        for number, f in enumerate(outputs.flatten())
    ]
    return {
        name: torch.stack([each[index].flatten() for each in found]).unflatten(0, outputs.shape)
        for index, name in enumerate(parameters)
    }


def _owner_ntk(
    subject: Subject, path: str, uses: list[UseWithGradient]
) -> Float[Tensor, "sample output sample output"]:
    """What the gain and shift of a norm layer add to the NTK."""
    owner = subject.model.get_submodule(path)
    jacobians = [
        owner_jacobian(owner, per_sample(one.use.inputs, one.layout, one.samples), one.gradient) for one in uses
    ]
    prefix = f"{path}." if path else ""
    grams = [
        subject.rate(prefix + name) * gram(torch.stack([jacobian[name] for jacobian in jacobians]).sum(0))
        for name in jacobians[0]
    ]
    return torch.stack(grams).sum(0)


def _scale_ntk(
    subject: Subject, name: str, uses: list[UseWithGradient]
) -> Float[Tensor, "sample output sample output"]:
    """What a layer scale adds to the NTK: df/dscale is df/dproduct times what it multiplies, summed over positions."""
    shape = subject.model.get_parameter(name).shape
    jacobians = []
    for one in uses:
        terms = one.gradient * per_sample(one.use.inputs, one.layout, one.samples)[:, None]
        along = next(back for back in range(1, len(shape) + 1) if shape[-back] > 1)
        jacobians.append(terms.movedim(-along, 2).flatten(3).sum(3))
    return subject.rate(name) * gram(torch.stack(jacobians).sum(0))


def _require_memory(taps: Taps, layouts: Layouts, outputs: Tensor) -> None:
    samples, count = outputs.shape
    fields = sum(
        use.output.numel() / (1 if layout is Layout.SHARED else samples)
        for path, uses in taps.uses.items()
        for use, layout in zip(uses, layouts[path], strict=True)
    )
    under_kernels = sum(
        layer.fan_in * use.output.numel() / layer.out_features / samples
        for layer in taps.subject.architecture.layers
        for use in taps.uses[layer.path]
        if layer.kind == "conv"
    )

    def estimate(wanted: Wanted, rows: int) -> int:
        together = wanted.together(count)
        kernels = 2 * (rows * together) ** 2 * (len(taps.uses) * (1 + wanted.ntk) + 1)
        kept = count if wanted.fields else together
        entries = kernels + rows * ((together + kept) * fields + under_kernels * wanted.ntk)
        return int(entries * outputs.element_size())

    require_room(taps.subject.wanted, samples, count, outputs.device, estimate)
