"""describe: from a model and an example input to its Architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torch_dmft.architecture.axes import Label
from torch_dmft.architecture.check import can_run, followed, like_others, rooted, scaled, scaled_in_copy, standing
from torch_dmft.architecture.constants import compared, suspicious
from torch_dmft.architecture.facts import Weight, facts_of
from torch_dmft.architecture.roles import Architecture, Constant, DotProduct, Layer, Role, Vector
from torch_dmft.architecture.steps import Steps
from torch_dmft.architecture.ties import with_ties
from torch_dmft.architecture.trace import Trace, Use
from torch_dmft.architecture.train_mode import differences, is_dropout_alone
from torch_dmft.architecture.watch import Example, watch, watch_training
from torch_dmft.architecture.widen import WIDENED, materialise, owners_beside_scales, widened
from torch_dmft.core.arguments import checked
from torch_dmft.core.collection import collection_paused
from torch_dmft.core.errors import InvalidInputError, Place, UnsupportedModelError
from torch_dmft.core.torch_private import BatchNormBase, modules_of, own_parameters, parameters_of

Roles = Mapping[str, Role | str]


class Wrapper(nn.Module):
    """A module around ``model`` that adds no layers of its own; it is described as the model inside."""

    model: nn.Module


@checked
@collection_paused()
def describe(
    model: nn.Module,
    example_input: Example,
    *,
    roles: Roles | None = None,
    like: Architecture | None = None,
    roots: bool = False,
) -> Architecture:
    """Find every weight of a model, its role and its fan-in, and which axes are widths.

    The model runs in evaluation mode, and every torch function it calls is followed. A backward pass shows whether gradients
    are those of the functions seen, and a pass in train mode what differs there. An axis made by a weight is a width unless
    it is combined entry by entry with the data or reaches the output; a weight's role follows from whether its input and its
    output are widths. The model is left exactly as it was.

    Args:
        model: any module of linear, convolution, embedding and norm layers whose data flow torch functions carry; parameters of
            its own may multiply features, one number per neuron (layer scales) or one for all.
        example_input: ``(sample, ...)``, or a tuple or mapping of the arguments of ``forward``.
        roles: for module paths or names of weights, roles that overrule what is found.
        like: the architecture of this model at another width. A dot product over a width (the scores of attention) must then
            have a factor proportional to 1/width, and any other number that acts on features must be the same at both widths.
            Without ``like`` the model is compared with a wider copy of itself, if that can be built. Numbers that were stored
            when the model was built are the same in a copy, so they are judged by their value: they must not equal a common
            law of a width (width^p with p = 1/4, 1/2, 3/4, 1, 3/2, 2 or their negatives, its logarithm, sqrt(2/width) and its
            kin). A stored number with another law, such as width/64, is only found with ``like``. Train mode is taken over
            from ``like``.
        roots: whether dot products may be divided by the square root of their width, as a wider copy shows; parameters then
            have to hold the rest, which ``torch_dmft.uses.describe`` sees to. With ``like`` they may where its own are.

    Returns:
        The architecture; its layers are in the order of the forward pass.

    Raises:
        UnsupportedModelError: if a parameter cannot be scaled, gradients are cut or changed on their way, or a number in
            the forward pass depends on the width; the message lists every place and a remedy for each.
        InvalidInputError: if the model fails on the example input, or ``roles`` names nothing.
    """
    if isinstance(model, Wrapper):
        return describe(model.model, example_input, roles=roles, like=like, roots=roots)
    places, refused = standing(model)
    if not can_run(model):
        raise UnsupportedModelError(_REFUSAL, places)
    batch_norms = [
        m for _, m in modules_of(model) if isinstance(m, BatchNormBase) and (m.training or m.running_mean is None)
    ]
    steps = Steps(model)
    trace = watch(model, example_input, refused, steps, gradients=like is None)
    if trace.laid_out:
        growing, steps = _growing(model, trace, example_input), Steps(model)
        trace = watch(model, example_input, refused, steps, gradients=like is None, growing=growing)
    places += followed(trace, model, refused)
    products, constants = _products(trace), _constants(trace)
    products = products if like is None else like_others(products, like.dot_products)
    suspects = scaled(products, None if like is None else like.dot_products)
    suspects += compared(constants, like.constants) if like is not None else []
    if places:  # roles found past an unknown operation would only be misleading
        raise UnsupportedModelError(_REFUSAL, places + suspects)

    given = _given(trace, roles or {})
    layers = tuple(_layer(trace, path, use, given.get(path), places) for path, use in trace.uses.items())
    layers = with_ties(model, layers, places)
    vectors = _vectors(trace, places)
    places += _norms_without_width(vectors)
    if not any(layer.role is Role.READOUT for layer in layers) and not places:
        places.append(
            Place(
                "(model)",
                "a weight that leads from a width to the output is missing",
                "end the model with a readout layer",
            )
        )
    if places:
        raise UnsupportedModelError(_REFUSAL, places + suspects)
    if like is None:
        passes = watch_training(model, example_input)
        train_differs = differences(steps, passes)
        averages_out = bool(train_differs) and is_dropout_alone(steps, passes, _dropouts_on_widths(trace))
        couples_rows = any(model.get_submodule(path).training for path in passes[0].batch_norms)
    else:  # what does not depend on the width is known
        train_differs, couples_rows = like.train_differs, not like.row_independent
        averages_out = like.averages_out
    # A chain is data, weights and at most one known activation between two of them.
    is_plain = re.fullmatch("r*(La?)+Lr*", trace.letters) is not None and trace.letters.count("L") == len(layers)
    found = Architecture(
        layers,
        vectors,
        is_chain=is_plain and not train_differs,
        row_independent=not (batch_norms or couples_rows or trace.mixes_rows),
        dot_products=products,
        parts=_parts(trace),
        split=tuple(dict.fromkeys(trace.axes.root(one.whole) for one in trace.axes.splits)),
        shares_parts=_shares_parts(trace),
        constants=constants,
        outputs=trace.outputs,
        train_differs=train_differs,
        averages_out=averages_out,
    )
    if like is None and (products or trace.has_numbers):
        copy = _wide_copy(model, found, example_input, trace.growing)
        copies = None if copy is None else _products(copy)
        if roots and copies is not None:
            found, copies = replace(found, dot_products=rooted(products, copies)), rooted(copies, products)
        suspects = scaled_in_copy(found.dot_products, copies)
        suspects += _judged_by_a_copy(found, trace, copy, example_input)
    if suspects:
        raise UnsupportedModelError(_REFUSAL, suspects)
    return found


def _dropouts_on_widths(trace: Trace) -> int:
    """How many calls of dropout draw for every neuron of a width."""
    return sum(any(trace.axes.is_width(label) for label in labels) for labels in trace.masked)


def _products(trace: Trace) -> tuple[DotProduct, ...]:
    return tuple(product for label, product in trace.sums if trace.axes.is_width(label))


def _parts(trace: Trace) -> tuple[int, ...]:
    """The sizes of the axes that grow where a width is laid out in parts."""
    return tuple(size for label, size in trace.parts.items() if trace.axes.is_width(label))


def _shares_parts(trace: Trace) -> bool:
    written = {use.out_axis for use in trace.uses.values()}
    return trace.axes.shares_parts(label for label in written if trace.axes.is_width(label))


def _constants(trace: Trace) -> tuple[Constant, ...]:
    """The numbers that act on features, including those of sums that do not run over a width."""
    others = [product for label, product in trace.sums if not trace.axes.is_width(label) and product.factor != 1.0]
    factors = [Constant(product.path, product.function, product.factor, "factor", on_data=False) for product in others]
    return (*trace.numbers.values(), *factors)


def _judged_by_a_copy(found: Architecture, trace: Trace, copy: Trace | None, example_input: Example) -> list[Place]:
    """Numbers in the forward pass that depend on the width, by comparison with a wider copy of the model."""
    sizes = {size for leaf in tree_leaves(example_input) if isinstance(leaf, Tensor) for size in leaf.shape[1:]}
    if copy is None:
        return suspicious(found.constants, found, sizes)
    changed = compared(found.constants, _constants(copy))
    if copy.letters != trace.letters:
        changed.append(Place("(model)", "its steps differ at another width", _SIZES_ONLY))
    heads = {size for split in trace.axes.splits for size in split.sizes_of_parts}
    return changed or suspicious(found.constants, found, sizes, heads)


_SIZES_ONLY = "let the width change sizes only, and let nothing that grows with it (heads, groups) be a single one here"


def _growing(model: nn.Module, trace: Trace, example_input: Example) -> list[int | None]:
    """Which axis grows wherever a width is laid out without leaving one to torch: the one that does in a wider copy."""
    places: list[Place] = []
    layers = tuple(_layer(trace, path, use, None, places) for path, use in trace.uses.items())
    layers = with_ties(model, layers, places)
    found = Architecture(layers, _vectors(trace, places), is_chain=False, row_independent=True, parts=_parts(trace))
    copy = _wide_copy(model, found, example_input) if any(layer.role is Role.READOUT for layer in layers) else None
    if copy is None or [len(sizes) for sizes in copy.laid_out] != [len(sizes) for sizes in trace.laid_out]:
        return [None] * len(trace.laid_out)
    differ = [
        [place for place, (size, other) in enumerate(zip(sizes, others, strict=True)) if size != other]
        for sizes, others in zip(trace.laid_out, copy.laid_out, strict=True)
    ]
    return [one[0] if len(one) == 1 else None for one in differ]


def _wide_copy(
    model: nn.Module, found: Architecture, example_input: Example, growing: Sequence[int | None] | None = None
) -> Trace | None:
    """The trace of a copy of the model at another width; None if the copy cannot be built."""
    if not all(isinstance(module, WIDENED) for _, module in owners_beside_scales(model, found)):
        return None
    try:
        trace = watch(wider_copy(model, found), example_input, set(), gradients=False, growing=growing)
    except (UnsupportedModelError, InvalidInputError):
        return None
    return None if trace.places else trace


def wider_copy(model: nn.Module, found: Architecture) -> nn.Module:
    """A copy of a model at a larger width, its weights all zero.

    Args:
        model: the model; it is left as it was.
        found: what it is made of.

    Raises:
        UnsupportedModelError: if it cannot be built.
    """
    wide = widened(model, found, _ratio_of_the_copy(found) * found.width)
    materialise(wide, next(model.parameters()), found.bare)
    for name, parameter in wide.named_parameters():  # what a front that is frozen may detach, a trained one may not
        parameter.requires_grad_(model.get_parameter(name).requires_grad)
    return wide


_MANY, _SLOW = 64, 512
"""A copy has at least the first number of neurons in every layer, unless a layer would exceed the second number."""


def _ratio_of_the_copy(found: Architecture) -> int:
    """How many times wider a copy is: at least twice, and more for narrow layers, so that max(width, 8) differs too."""
    widths = {layer.in_features for layer in found.layers if layer.in_axis is not None}
    return max(2, min(_MANY // min(widths), _SLOW // max(widths)))


_REFUSAL = "This model cannot be scaled as it is:"


def _given(trace: Trace, roles: Roles) -> dict[str, Role]:
    """The roles that overrule, by module path."""
    given = {}
    for name, role in roles.items():
        path = name.removesuffix("weight").removesuffix(".")
        if path not in trace.uses:
            raise InvalidInputError(
                "`roles` must name layers with a weight.", got=repr(name), remedy=f"one of {', '.join(trace.uses)}"
            )
        if role not in set(Role) - {Role.VECTOR, Role.OUTPUT_BIAS}:
            raise InvalidInputError(
                "A role of a weight must be one of four.",
                got=repr(role),
                remedy="one of input, hidden, readout, embedding",
            )
        given[path] = Role(role)
    return given


def _scale(trace: Trace, name: str, label: Label) -> Vector:
    """A layer scale."""
    path, value = name.rpartition(".")[0], parameters_of(trace.model)[name].detach()
    return Vector(path, name, value.numel(), _axis(trace, label), is_scale=True, start=_number(value))


def _number(value: Tensor) -> float | None:
    """The one number that all entries of a parameter are; None if they differ, or are not known."""
    if value.is_meta:
        return None
    first = float(value.flatten()[0])
    return first if bool((value == first).all()) else None


def _scalars(trace: Trace) -> list[Vector]:
    """The parameters of one number, which a gradient of all neurons together moves."""
    parameters = parameters_of(trace.model)
    return [
        Vector(
            name.rpartition(".")[0],
            name,
            1,
            None,
            role=Role.INNER if name in trace.inside else Role.OUTER,
            start=float(parameters[name].detach()),
            is_scalar=True,
        )
        for name in trace.scalars
    ]


def _axis(trace: Trace, label: Label) -> int | None:
    return trace.axes.root(label) if label is not None and trace.axes.is_width(label) else None


def _layer(trace: Trace, path: str, use: Use, given: Role | None, places: list[Place]) -> Layer:
    """The layer of a use; a place is added if its role cannot be determined."""
    module = trace.modules[path]
    facts = facts_of(module)
    assert isinstance(facts, Weight)
    prefix = f"{path}." if path else ""
    role = given or _role(trace, path, use, facts)
    if role is None:
        reason, remedy = _without_role(trace, path, use)
        places.append(Place(path or "(model)", reason, remedy))
    named = use.activations
    return Layer(
        path=path,
        kind=facts.kind,
        role=role or Role.HIDDEN,
        weight=f"{prefix}weight",
        bias=f"{prefix}bias" if getattr(module, "bias", None) is not None else None,
        fan_in=facts.fan_in,
        in_features=facts.in_features,
        out_features=facts.out_features,
        taps=facts.taps,
        activation=next(iter(named)) if len(named) == 1 else None,
        in_axis=_axis(trace, use.in_axis),
        out_axis=_axis(trace, use.out_axis),
    )


def _vectors(trace: Trace, places: list[Place]) -> tuple[Vector, ...]:
    vectors = tuple(
        Vector(path, f"{path}.{name}" if path else name, parameter.numel(), _axis(trace, label))
        for path, label in trace.norms.items()
        for name, parameter in own_parameters(trace.modules[path]).items()
    )
    scales = [_scale(trace, name, label) for name, label in trace.scales.items()]
    return (*vectors, *scales, *_scalars(trace), *_bare(trace, places))


def _role(trace: Trace, path: str, use: Use, facts: Weight) -> Role | None:
    from_width, to_width = trace.axes.is_width(use.in_axis), trace.axes.is_width(use.out_axis)
    if to_width and path in trace.heads:
        return None
    if to_width and facts.kind == "embedding":
        return Role.EMBEDDING
    if to_width:
        return Role.HIDDEN if from_width else Role.INPUT
    return Role.READOUT if from_width and path in trace.heads else None


def _without_role(trace: Trace, path: str, use: Use) -> tuple[str, str]:
    """Why a weight has no role, and what to do."""
    name_it = f"name its role in roles={{{path!r}: ...}} if it has one"
    if trace.axes.is_width(use.out_axis):
        return "the output averages over its width, without a readout", "end the model with a readout layer"
    if trace.axes.is_width(use.in_axis):
        reason = (
            "its output is not a width (it meets the data, or single neurons are picked), and it is not the readout"
        )
        return reason, f"not yet; {name_it}"
    if path in trace.heads:
        return "it is input and readout layer in one, without a width on either side", "put a hidden layer before it"
    return "neither its input nor its output is a width", f"not yet; {name_it}"


def _bare(trace: Trace, places: list[Place]) -> tuple[Vector, ...]:
    """The parameters that belong to no layer; a place is added for each that has not exactly one width."""
    written = {trace.axes.root(use.out_axis) for use in trace.uses.values()}
    found = []
    for name, dims in trace.bare.items():
        widths = [place for place, label in enumerate(dims) if label is not None and trace.axes.is_width(label)]
        axes = [_axis(trace, dims[place]) for place in widths]
        if len(widths) != 1 or axes[0] not in written or name in trace.scales:
            reason = f"has {len(widths)} axes that are widths" if len(widths) != 1 else "meets no features of a layer"
            reason = "multiplies features, too" if name in trace.scales else reason
            fix = "add it to features, or put it beside them as a token, so that one axis runs over their neurons"
            places.append(Place(name, f"is a parameter outside of layers and {reason}", fix))
            continue
        value = trace.model.get_parameter(name).detach()
        start = _number(value) or None  # zeros are rows of size zero
        found.append(Vector(name.rpartition(".")[0], name, value.numel(), axes[0], place=widths[0], start=start))
    return tuple(found)


def _norms_without_width(vectors: tuple[Vector, ...]) -> list[Place]:
    paths = dict.fromkeys(vector.path for vector in vectors if vector.axis is None and not vector.is_scalar)
    fix = "not yet; build it with affine=False (elementwise_affine=False), or normalise the data beforehand"
    return [
        Place(path, "its gain and shift act on features of the data, the output or one head, not on a width", fix)
        for path in paths
    ]
