"""Measuring any module: it is watched while it runs, and what was seen is checked against an ordinary backward pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from torch_dmft.core.errors import InsufficientMemoryError, Place, UnsupportedModelError
from torch_dmft.core.memory import require_memory
from torch_dmft.core.torch_private import ConvBase, padding_twice, parameters_of
from torch_dmft.core.undisturbed import all_graded
from torch_dmft.measurement.batch_norm import Statistics
from torch_dmft.measurement.gather import Flow, gather
from torch_dmft.measurement.moment import LayerSnapshot, Part, Snapshot, averaged, squeeze_outputs
from torch_dmft.measurement.normal_form import backward_gram, forward_gram
from torch_dmft.measurement.precision import precision_note, precision_of
from torch_dmft.measurement.self_check import combination, contradiction, squares, wrong
from torch_dmft.measurement.shares import Shares, shares, stream
from torch_dmft.measurement.subject import Subject
from torch_dmft.measurement.wanted import Wanted, require_room
from torch_dmft.uses.anatomy import Names
from torch_dmft.uses.failures import outputs_on
from torch_dmft.uses.forms import Product
from torch_dmft.uses.outputs import Example, copied, count, output_rows, rows
from torch_dmft.uses.ownership import Owners, chosen, close, copies, find_owners
from torch_dmft.uses.parts import parts
from torch_dmft.uses.passes import prepared, watched_pass
from torch_dmft.uses.products import gram
from torch_dmft.uses.watch import Pass, gradients_of


@dataclass(frozen=True, eq=False)
class Known:
    """What the first measurement of a network found out, for those that follow.

    Attributes:
        owners: where the samples are; None if they are measured one by one.
        by_samples: parameters of which uses are not seen; their gradients are taken sample by sample.
        notes: what is not known of this network, in words.
        steps: the uses of parameters that it had then, with the shapes of what came out; None if nobody asks.
    """

    owners: Owners | None
    by_samples: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    steps: tuple[tuple[Hashable, tuple[int, ...]], ...] | None = None

    def still_holds(self, whole: Pass) -> bool:
        """Whether the network does what it did then; samples that are measured one by one may take part of the steps each."""
        if self.steps is None:
            return True
        if self.owners is None:
            return {step for step, _ in steps_of(whole)} <= {step for step, _ in self.steps}
        return steps_of(whole) == self.steps


def steps_of(whole: Pass) -> tuple[tuple[Hashable, tuple[int, ...]], ...]:
    """The uses of parameters in a pass: operator, module and weights, and the shape of what came out."""
    return tuple(
        ((use.operator, use.path, tuple(use.weights.items()), use.meets_data), tuple(use.output.shape))
        for use in whole.uses
    )


def measure_watched(subject: Subject, inputs: Example, known: Known | None = None) -> Snapshot:
    """Measure a network of any kind, leaving it exactly as it was.

    Args:
        subject: the network; its architecture names the layers that are listed.
        inputs: what its ``run`` is given, samples first.
        known: from an earlier measurement of the same network on the same probe; None for the first, which finds out where
            samples are and checks itself. So does a later one if the network uses its parameters in other steps than before.

    Raises:
        UnsupportedModelError: if samples interact, the outputs are random, or the check fails; with the place.
        InsufficientMemoryError: if gradients that have to be written out do not fit.
    """
    rates = subject.rates  # before frozen parameters are given gradients
    statistics = Statistics(subject.model, subject.run, subject.batch_norm)
    batch = inputs if subject.trained_rows is None else rows(inputs, list(subject.trained_rows))
    with prepared(subject.model, subject.run), statistics.set(subject.run, batch):
        taken = _measured_somehow(subject, rates, measured_rows(subject, inputs), known)
    return replace(taken, notes=(*statistics.notes, *taken.notes))


def measured_rows(subject: Subject, inputs: Example) -> Any:
    """The inputs of the rows that are measured."""
    return inputs if subject.kernel_rows is None else rows(inputs, list(subject.kernel_rows))


def _measured_somehow(subject: Subject, rates: Mapping[str, float], inputs: Example, known: Known | None) -> Snapshot:
    """Measure with gradients for everything; where a frozen weight's memory is overwritten, with those of the trained alone."""
    try:
        with all_graded(subject.model):
            return _measured(subject, rates, inputs, known, attached=False)
    except RuntimeError as error:
        frozen = any(not parameter.requires_grad for parameter in parameters_of(subject.model).values())
        if not frozen or "inplace operation" not in str(error):
            raise
        # What a frozen weight read may be overwritten, but not while everything has gradients.
        return _measured(subject, rates, inputs, known, attached=True)


def _measured(
    subject: Subject, rates: Mapping[str, float], inputs: Example, known: Known | None, *, attached: bool
) -> Snapshot:
    model, run = subject.model, subject.run
    _refuse_unplanned(model, rates)
    parameters: dict[str, Tensor] = {n: value for n, value in parameters_of(model).items() if rates.get(n, 0.0)}
    earlier = _outputs(run, inputs) if known is None else None
    whole = watched_pass(model, run, inputs, attached=attached)
    wanted, outputs = subject.wanted, whole.outputs.shape[1]
    _require_memory(whole, len(parameters), wanted)
    first = known is None or not known.still_holds(whole)
    if known is None or first:
        earlier = _outputs(run, inputs) if earlier is None else earlier
        known = _find_out(subject, inputs, whole, earlier, attached=attached)
    taken = _Taken(whole, (whole,))
    if known.owners is None:
        alone = [watched_pass(model, run, rows(inputs, [mu]), attached=attached) for mu in range(len(whole.outputs))]
        taken = _Taken(whole, tuple(alone))
    if first and not wanted.is_whole:
        known = _known_of_one(subject, rates, taken, known, parameters)

    def again() -> Tensor:
        return watched_pass(model, run, inputs, attached=attached).outputs

    if wanted.per_output:
        checks = first and wanted.ntk
        known, (layers, total) = _part(subject, rates, taken, known, parameters, first=checks, last=True, again=again)
    else:
        blocks = [*wanted.blocks(outputs)]
        parts_ = (taken.of(itemgetter((slice(None), block))) for block in blocks)
        each = (
            _part(subject, rates, part, known, parameters, first=False, last=block is blocks[-1])[1]
            for part, block in zip(parts_, blocks, strict=True)
        )
        layers, total = averaged(each, outputs, fields=wanted.fields)
    precision = precision_of((part.use.output for part in taken.products()), whole.outputs.dtype)
    said = (*known.notes, *precision_note(precision, model))
    return Snapshot(whole.outputs.detach(), layers, total, known, said, precision)


def _outputs(run: nn.Module, inputs: Example) -> Tensor:
    return output_rows(outputs_on(run, copied(inputs)), count(inputs)).detach()


@dataclass(frozen=True, eq=False)
class _Taken:
    """Watched passes: ``whole`` over all samples at once, and those that are measured, itself or one of every sample."""

    whole: Pass
    passes: tuple[Pass, ...]

    def of(self, function: Callable[[Tensor], Tensor]) -> _Taken:
        """The same passes of a function ``(sample, output)`` of the outputs."""
        whole, *alone = (replace(one, outputs=function(one.outputs)) for one in (self.whole, *self.passes))
        return _Taken(whole, tuple(alone))

    def products(self) -> Iterator[Product]:
        """All products in the pass of all samples."""
        return (part for use in self.whole.uses for part in parts(use) if isinstance(part, Product))


def _part(
    subject: Subject,
    rates: Mapping[str, float],
    taken: _Taken,
    known: Known,
    parameters: dict[str, Tensor],
    *,
    first: bool,
    last: bool,
    again: Callable[[], Tensor] | None = None,
) -> tuple[Known, Part]:
    """The kernels of all outputs of some passes; the first time held against an ordinary backward pass.

    The graph of the last part goes as soon as it was used; ``again`` gives its outputs with a new one.
    """
    wanted = subject.wanted
    retain_graph = not last or bool(known.by_samples) or (first and again is None)
    trained = parameters.keys() if wanted.ntk else frozenset()
    backward = squares(taken.whole.outputs, parameters) if first else {}  # before there are gradients of every use
    how = {"retain_graph": retain_graph, "fields": wanted.fields}
    gathered = [gather(one, known.owners, trained, **how) for one in taken.passes]
    of_products = {n: v for n, v in parameters.items() if n not in known.by_samples}
    found = shares(gathered, of_products, ntk=wanted.ntk)
    ntk = None
    if wanted.ntk:
        ntk = found.ntk | _by_samples(taken.whole.outputs, {name: parameters[name] for name in known.by_samples})
    if ntk is not None and first:
        known, ntk = _checked(taken.whole, known, found, ntk, parameters, backward, None if retain_graph else again)
    layers, total = _layers(subject, rates, found, ntk, *taken.whole.outputs.shape)
    if total is not None and first:
        _check_total(total, taken.whole.outputs, rates, backward)
    return known, (layers, None if total is None else squeeze_outputs(total))


def _known_of_one(
    subject: Subject, rates: Mapping[str, float], taken: _Taken, known: Known, parameters: dict[str, Tensor]
) -> Known:
    """Hold the NTK of one combination of the outputs against a backward pass, where the whole of it is not measured."""
    whole = replace(subject, wanted=Wanted())
    try:
        return _part(whole, rates, taken.of(combination), known, parameters, first=True, last=False)[0]
    except InsufficientMemoryError:
        if subject.wanted.ntk:
            raise
        note = "not held against a backward pass, as the NTK of one output needs more memory than is free"
        return replace(known, notes=(*known.notes, note))


def _require_memory(whole: Pass, parameters: int, wanted: Wanted) -> None:
    """Refuse kernels and gradients of more outputs than fit.

    Raises:
        InsufficientMemoryError: if the estimate exceeds what is free.
    """
    samples, outputs = whole.outputs.shape
    layers = sum(isinstance(part, Product) for use in whole.uses for part in parts(use))
    fields = sum(use.output.numel() * use.output.element_size() for use in whole.uses if use.meets_data) / samples
    size = whole.outputs.element_size()

    def estimate(wanted: Wanted, rows_: int) -> int:
        pairs = (rows_ * wanted.together(outputs)) ** 2 * size
        kernels = pairs * (2 * layers + (parameters + 1) * wanted.ntk)
        kept = outputs if wanted.fields else wanted.together(outputs)
        return int((wanted.together(outputs) + kept) * rows_ * fields) + kernels

    require_room(wanted, samples, outputs, whole.outputs.device, estimate)


def _find_out(subject: Subject, inputs: Example, whole: Pass, earlier: Tensor | None, *, attached: bool) -> Known:
    model, run, samples = subject.model, subject.run, len(whole.outputs)
    _refuse_unbounded(whole)
    if earlier is not None and not close(whole.outputs.detach(), earlier):
        raise _random_at(whole, watched_pass(model, run, inputs, attached=attached))
    apart = ((mu, rows(inputs, [mu] * copies(samples))) for mu in chosen(samples))
    alone = ((mu, watched_pass(model, run, given, attached=attached)) for mu, given in apart)

    def touched(mu: int) -> list[Tensor | None]:
        weights = torch.arange(1, whole.outputs.shape[1] + 1, device="cpu").to(
            whole.outputs
        )  # a plain sum may be constant
        return gradients_of(whole.outputs[mu] @ weights, whole.uses)

    return Known(find_owners(whole, alone, touched), steps=steps_of(whole))


def _refuse_unbounded(whole: Pass) -> None:
    if bool(whole.outputs.isfinite().all()):
        return
    path = next((use.path for use in whole.uses if not bool(use.output.isfinite().all())), "(model)")
    raise UnsupportedModelError(
        "The outputs of the model are not finite, and nothing can be measured at first:",
        [Place(path or "(model)", "NaN or infinity comes in here", "weights and inputs that give finite outputs")],
    )


def _random_at(one: Pass, other: Pass) -> UnsupportedModelError:
    """The error for a model that gives other outputs when it is run again, with the place where two passes part."""
    pairs = zip(one.uses, other.uses, strict=False)
    path = next(
        (a.path for a, b in pairs if a.output.shape != b.output.shape or not torch.equal(a.output, b.output)), "(model)"
    )
    return UnsupportedModelError(
        "The model gives other outputs when it is run again in evaluation mode:",
        [
            Place(
                path or "(model)",
                "random numbers, or a state that changes, come in before this place",
                "switch them off",
            )
        ],
    )


def _by_samples(outputs: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Shares of parameters whose uses are not seen: one backward pass for every sample and output."""
    if not parameters:
        return {}
    require_memory(
        outputs.numel() * sum(value.numel() for value in parameters.values()) * 8,
        outputs.device,
        what=f"Gradients of {', '.join(parameters)} sample by sample",
        remedy="a probe with fewer samples",
    )
    found: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for number in outputs.flatten():
        gradients = torch.autograd.grad(number, list(parameters.values()), retain_graph=True, allow_unused=True)
        for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
            found[name].append(torch.zeros_like(value) if gradient is None else gradient)
    return {name: gram(torch.stack(rows_).unflatten(0, outputs.shape)) for name, rows_ in found.items()}


def _checked(
    whole: Pass,
    known: Known,
    found: Shares,
    ntk: dict[str, Tensor],
    parameters: dict[str, Tensor],
    backward: Mapping[str, Tensor],
    again: Callable[[], Tensor] | None,
) -> tuple[Known, dict[str, Tensor]]:
    """Hold the shares against a backward pass; parameters whose uses were not all seen are taken sample by sample."""
    dtype = torch.promote_types(whole.outputs.dtype, torch.float16)
    off = wrong(ntk, backward, whole.outputs, dtype=dtype)
    if not off:
        return known, ntk
    multiplied = {name: flow.product.use.path for flows in found.flows for flow in flows for name in flow.product.names}
    misread = {name: (multiplied[name], factor) for name, factor in off.items() if name in multiplied}
    if misread:
        raise contradiction(misread)
    note = f"uses of {', '.join(off)} that could not be followed: their shares of the NTK are taken sample by sample"
    known = replace(known, by_samples=frozenset(off), notes=(*known.notes, note))
    outputs = whole.outputs if again is None else again()
    return known, ntk | _by_samples(outputs, {name: parameters[name] for name in off})


def _check_total(total: Tensor, outputs: Tensor, rates: Mapping[str, float], backward: Mapping[str, Tensor]) -> None:
    """Hold the whole NTK against a backward pass: nothing is in it but what is trained, each at its rate.

    Raises:
        UnsupportedModelError: if it differs.
    """
    expected = sum(
        (rates[name] * square for name, square in backward.items()), outputs.new_zeros((), dtype=torch.float64)
    )
    dtype = torch.promote_types(outputs.dtype, torch.float16)
    off = wrong({"the NTK": total}, {"the NTK": expected}, outputs, dtype=dtype)
    if off:
        raise contradiction({"the NTK": ("(model)", off["the NTK"])})


def _layers(
    subject: Subject,
    rates: Mapping[str, float],
    found: Shares,
    ntk: dict[str, Tensor] | None,
    samples: int,
    outputs: int,
) -> Part:
    """The layers of the architecture with their kernels, and the NTK ``(sample, output, sample, output)``."""
    shares_left = {} if ntk is None else {name: rates[name] * share for name, share in ntk.items()}
    like = next(flow.gradients for flows in found.flows for flow in flows)
    blank = like.new_zeros(()).expand(samples, outputs, samples, outputs)
    total = None if ntk is None else sum(shares_left.values(), start=blank.clone())
    names = Names.of(subject.model)
    named = names.layers(flow.product for flows in found.flows for flow in flows)
    layers = []
    for layer in subject.architecture.layers:
        own = [[f for f in flows if named[names.key(f.product)] == layer.path] for flows in found.flows]
        some = next((flow for flows in own for flow in flows), None)
        border = () if some is None else _border(subject.model, some)
        through = stream(layer, subject.gamma0, own, samples, outputs, border)
        members = {layer.weight, layer.bias} | (set() if some is None else set(some.product.names))
        share = blank
        for name in sorted(name for name in members if name in shares_left):
            share = share + shares_left.pop(name)
        layers.append(
            LayerSnapshot(
                name=layer.path,
                forward=forward_gram(through, through),
                backward=squeeze_outputs(backward_gram(through, through)),
                ntk=None if ntk is None else squeeze_outputs(share),
                stream=through,
            )
        )
    return tuple(layers), total


def _border(model: nn.Module, flow: Flow) -> Sequence[int]:
    """What a convolution module has put around its input by copying (circular, reflected)."""
    module = model.get_submodule(flow.product.use.path)
    if flow.product.kind == "conv" and isinstance(module, ConvBase) and module.padding_mode != "zeros":
        return padding_twice(module)
    return ()


def _refuse_unplanned(model: nn.Module, rates: Mapping[str, float]) -> None:
    added = [name for name, parameter in parameters_of(model).items() if parameter.requires_grad and name not in rates]
    if added:
        raise UnsupportedModelError(
            "The model has parameters that its plan does not know:",
            [Place(name, "it was added after the model was wrapped", "wrap the model as it is now") for name in added],
        )
