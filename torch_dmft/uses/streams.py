"""The residual streams of a model, and where every parameter stands to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_dmft.architecture import Part, Stream
from torch_dmft.core.errors import Place, UnsupportedModelError
from torch_dmft.core.listed import listed
from torch_dmft.core.undisturbed import all_graded
from torch_dmft.uses.branch_ends import Branch, branch_of
from torch_dmft.uses.outputs import Example, moved
from torch_dmft.uses.passes import prepared, see
from torch_dmft.uses.residual import Features, ResidualSum, residual_sums
from torch_dmft.uses.sums import Sums

REFUSAL = "The residual branches of this model cannot be scaled with their number:"


def streams_of(model: nn.Module, run: nn.Module, inputs: Example) -> tuple[Stream, ...]:
    """The residual streams of a model; it is left as it was.

    Args:
        model: the model.
        run: maps the inputs to its outputs.
        inputs: what it is run on.

    Raises:
        UnsupportedModelError: if there are none, or a branch cannot be multiplied by a number through its last parameters;
            with every place and a remedy.
    """
    with _watched(model, run):
        features = _features(model, run, inputs)
        sums = residual_sums(features)
        branches = [_branches(features, stream, sums) for stream in sums]
        places = [one for stream in branches for one in stream if isinstance(one, Place)]
        if not sums:
            places.append(_NONE)
        owned = [[one for one in stream if isinstance(one, Branch)] for stream in branches]
        streams, shared = _parts(features, owned)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    ends = [name for stream in streams for name, part in stream.parts.items() if part is Part.END and name in frozen]
    places += [Place(name, "it ends a residual branch and is frozen", "train it, or leave depth= out") for name in ends]
    if places or shared:
        raise UnsupportedModelError(REFUSAL, places or shared)
    return tuple(streams)


_NONE = Place(
    "(model)",
    "no residual branch was found: no sum h + b(h) with a weight in b",
    "leave depth= out: without a stream there is no such scaling in depth",
)


def stream_states(model: nn.Module, run: nn.Module, inputs: Example) -> dict[str, Tensor]:
    """What a model's streams are behind every residual sum, by the names of the parameters that end its branch."""
    with _watched(model, run):
        with Sums() as made:
            features = _features(model, run, inputs)
        sums = residual_sums(features)
        branches = [one for stream in sums for one in _branches(features, stream, sums)]
    return {name: made.values[one.sum.node] for one in branches if isinstance(one, Branch) for name in one.ends}


@contextmanager
def _watched(model: nn.Module, run: nn.Module) -> Iterator[None]:
    with prepared(model, run), all_graded(model), sdpa_kernel(SDPBackend.MATH):
        yield


def _features(model: nn.Module, run: nn.Module, inputs: Example) -> Features:
    return Features(see(model, run, moved(inputs, next(model.parameters()).device)).taken)


def _branches(features: Features, stream: list[ResidualSum], sums: list[list[ResidualSum]]) -> list[Branch | Place]:
    stops = {one.node for each in sums for one in each}
    return [branch_of(features, one, stops) for one in stream]


def _parts(features: Features, streams: list[list[Branch]]) -> tuple[list[Stream], list[Place]]:
    """Where the parameters of every stream stand, and those that no rule fits."""
    owners = {node: (number, one) for number, stream in enumerate(streams) for one in stream for node in one.nodes}
    between = {node: number for number, stream in enumerate(streams) for node in _between(features, stream)}
    standing: dict[str, dict[object, tuple[int, Part, str]]] = defaultdict(dict)
    outside: set[str] = set()
    for node in features.uses:
        number, owner = owners.get(node, (between.get(node), None))
        for name in features.names(node):
            if number is None:
                outside.add(name)
            elif owner is None:
                standing[name][node] = number, Part.BETWEEN, "the stream"
            else:
                part = Part.END if name in owner.ends and node in owner.way else Part.INSIDE
                standing[name][owner, part] = number, part, owner.path or "(model)"
    places = []
    found: list[tuple[dict[str, Part], dict[str, int]]] = [({}, {}) for _ in streams]
    for name, several in standing.items():
        number, part, _ = next(iter(several.values()))
        is_one = len({one[:2] for one in several.values()}) == 1 and name not in outside
        if is_one and (part is Part.INSIDE or len(several) == 1):
            found[number][0][name] = part
            if len(several) > 1:
                found[number][1][name] = len(several)
            continue
        paths = sorted({path for *_, path in several.values()}) + ["outside of branches"] * (name in outside)
        ends = "ends a branch and " if any(one[1] is Part.END for one in several.values()) else ""
        reason = f"one parameter {ends}is used in several places: {listed(paths)}"
        places.append(Place(name, reason, "a parameter of its own for every place, or leave depth= out"))
    return [Stream(len(stream), parts, shared) for stream, (parts, shared) in zip(streams, found, strict=True)], places


def _between(features: Features, stream: list[Branch]) -> Iterator[Node]:
    """The nodes with parameters that the stream itself passes between two of its sums, projected skips left out."""
    sums = [one.sum.node for one in stream]
    for one in stream:
        for earlier in sums:
            way = features.between(earlier, one.sum.stream)
            nearer = any(way & features.bit(other) for other in sums)
            if not way or nearer or way & features.weighing:
                continue
            yield from (node for node in features.in_bits(way) if node in features.uses)
