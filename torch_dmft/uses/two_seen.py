"""What two watched passes of one model at two widths say of its parameters: roles, places, scores, laws.

A matrix whose input differs is contracted over a width, one whose output differs makes one; what is downstream of it tells a
code from a readout, and inner parameters from outer ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from torch_dmft.architecture import Architecture, Attribute, Fold, Layer, Multiplier, Role, Vector
from torch_dmft.core.errors import Place
from torch_dmft.core.listed import listed
from torch_dmft.uses.anatomy import Names, anatomy
from torch_dmft.uses.balance import Imbalance, own_scale
from torch_dmft.uses.derivatives import sources
from torch_dmft.uses.folds import Balance, Folds, balance
from torch_dmft.uses.forms import Product
from torch_dmft.uses.forward_check import Site, sites
from torch_dmft.uses.graph import activation_behind, ancestors, followers
from torch_dmft.uses.passes import Seen
from torch_dmft.uses.scale import Scale
from torch_dmft.uses.ties import Tie, tie_of
from torch_dmft.uses.watch import Slot, Use


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix that features are multiplied with, at both widths.

    Attributes:
        names: the parameters it is made of.
        path: path of the module that multiplies.
        kind: as in ``Layer``.
        sizes: features of its input and of its output, and fan-in.
        fan_ins: at both widths.
        grows: whether its input and its output are widths.
        node: where its output is in the graph; None if no gradient flows into it.
        weight: its numbers.
    """

    names: frozenset[str]
    path: str
    kind: str
    sizes: tuple[int, int, int]
    fan_ins: tuple[int, int]
    grows: tuple[bool, bool]
    node: Node | None
    weight: Tensor

    @classmethod
    def of(cls, use: Use, slot: Slot, kind: str, sizes: tuple[int, int, int], others: tuple[int, int, int]) -> Matrix:
        """The matrix in an argument of an operator."""
        grows = sizes[0] != others[0], sizes[1] != others[1]
        node = None if use.edge is None else use.edge.node
        return cls(
            use.weights[slot], use.path, kind, sizes, (sizes[2], others[2]), grows, node, use.argument(slot).detach()
        )


def matrices_of(one: Seen, two: Seen) -> list[Matrix]:
    """The matrices of all products, in order, and behind them those of operators that have no kernels."""
    found = [
        Matrix.of(a.use, a.slot, a.kind, a.features(), b.features())
        for a, b in zip(one.forward, two.forward, strict=True)
    ]
    for a, b in zip(one.taken.uses, two.taken.uses, strict=True):
        for slot in a.weights if a.operator == "_grouped_mm" and a.meets_data and not a.is_derived else ():
            if slot == (1, None):  # (experts, in, out)
                (into, out), (other_into, other_out) = (use.argument(slot).shape[-2:] for use in (a, b))
                sizes, others = (into, out, into), (other_into, other_out, other_into)
                found.append(Matrix.of(a, slot, "linear", sizes, others))
    for a, b in zip(one.taken.among, two.taken.among, strict=True):
        chosen = _own_matrix(a)
        if chosen is not None:
            product, wider = Product(a, *chosen), Product(b, *chosen)
            found.append(Matrix.of(a, chosen[0], "linear", product.features(), wider.features()))
    return found


def _own_matrix(use: Use) -> tuple[Slot, Slot, str, bool] | None:
    """Of a product of parameters with parameters: the module's own weight, the other factor, and on which side it stands."""
    if use.operator not in ("mm", "addmm"):
        return None
    at = 1 if use.operator == "addmm" else 0
    left, right = (at, None), (at + 1, None)
    own = {f"{use.path}.weight".removeprefix("."), f"{use.path}.in_proj_weight".removeprefix(".")}
    if use.weights.get(right, frozenset()) <= own:
        return right, left, "linear", False
    if use.weights.get(left, frozenset()) <= own:
        return left, right, "linear", True
    return None


class Comparison:
    """One model at two widths, seen."""

    def __init__(self, model: nn.Module, other: nn.Module, one: Seen, two: Seen) -> None:
        self.model, self.other, self.one, self.two = model, other, one, two
        self.names = Names.of(model)
        self.parameters = dict(model.named_parameters())
        others = dict(other.named_parameters())
        self.grows = {
            name: sum(a != b for a, b in zip(own.shape, others[name].shape, strict=True))
            for name, own in self.parameters.items()
        }
        self.matrices = matrices_of(one, two)
        self.follows = followers(one.taken.outputs)
        last = one.taken.outputs.grad_fn
        of = sources(one.taken.derivatives)
        self.matters = {last, *ancestors([last], sources=of)} if last is not None else set()
        growing = [m.node for m in self.matrices if m.node is not None and m.node in self.matters and any(m.grows)]
        self.inside = ancestors(growing, sources=of)
        self.roles = [self._role(matrix) for matrix in self.matrices]
        self.ties = self._ties()

    def _ties(self) -> dict[str, Tie | Place]:
        """Weights that make features and read out, by name: where the readout can be multiplied, or what is in the way."""
        uses: dict[str, dict[Role, list[Matrix]]] = {}
        for matrix, role in zip(self.matrices, self.roles, strict=True):
            for name in matrix.names if len(matrix.names) == 1 else ():
                uses.setdefault(name, {}).setdefault(role, []).append(matrix)
        found = {}
        for name, several in uses.items():
            if len(several) == 2 and Role.READOUT in several and (Role.EMBEDDING in several or Role.INPUT in several):
                paths, nodes = zip(*((one.path, one.node) for one in several[Role.READOUT]), strict=True)
                found[name] = tie_of(name, paths, nodes, self.one.taken, self.parameters)
        return found

    def _reads_tied(self, number: int) -> bool:
        """Whether a matrix is the readout of a tied weight."""
        return self.roles[number] is Role.READOUT and not self.ties.keys().isdisjoint(self.matrices[number].names)

    def _role(self, matrix: Matrix) -> Role:
        into, out = matrix.grows
        if out:
            return Role.EMBEDDING if matrix.kind == "embedding" else Role.HIDDEN if into else Role.INPUT
        is_inside = matrix.node is None or matrix.node in self.inside
        if into:
            return Role.CODE if is_inside or matrix.node not in self.matters else Role.READOUT
        return Role.INNER if is_inside else Role.OUTER

    def places(self) -> list[Place]:
        """What cannot be scaled."""
        places = []
        found: dict[str, dict[Role, str]] = {}
        for matrix, role in zip(self.matrices, self.roles, strict=True):
            where = matrix.path or "(model)"
            if len(matrix.names) > 1:
                made = f"its matrix is computed from several parameters: {listed(sorted(matrix.names))}"
                places.append(Place(where, made, _UNMADE))
                continue
            (name,) = matrix.names
            if role is not Role.INNER and role is not Role.OUTER and not self._is_itself(matrix, name):
                made = f"its matrix is computed from {name} (a parametrization, a factor, a normalisation)"
                places.append(Place(where, made, _UNMADE))
            found.setdefault(name, {})[role] = where
        places += [tie for tie in self.ties.values() if isinstance(tie, Place)]
        places += self._of_derivatives()
        for name, several in found.items():
            if len(several) > 1 and name not in self.ties:
                uses = listed(f"{role} in {where}" for role, where in several.items())
                untie = "untie them (tie_word_embeddings=False in transformers), as no size fits both; measuring works"
                places.append(Place(name, f"one weight is {uses}", untie))
        used = {name for matrix in self.matrices for name in matrix.names}
        for name, axes in self.grows.items():
            if name not in used and axes > 1:
                places.append(
                    Place(
                        name,
                        f"{axes} of its axes are widths, and no product with it was seen",
                        "use it as the matrix of a product; measuring needs no scaling",
                    )
                )
        if Role.READOUT not in self.roles:
            places.append(
                Place(
                    "(model)",
                    "a weight that leads from a width to the output is missing",
                    "end the model with a readout layer",
                )
            )
        return list(dict.fromkeys(places))

    def _of_derivatives(self) -> Iterator[Place]:
        """Derivatives in the forward pass that are not those of outputs by the data."""
        for path in self.one.taken.unseen:
            reason = "autograd runs in its forward pass, and it was not seen what it was asked for"
            yield Place(
                path or "(model)", reason, "take derivatives by torch.autograd.grad; measuring needs no scaling"
            )
        for one, two in zip(self.one.taken.derivatives, self.two.taken.derivatives, strict=True):
            if one.by != two.by:
                reason = (
                    "it takes a derivative by features, of which there are as many as the width: each vanishes like 1/N"
                )
                remedy = "take derivatives by what is no width, such as the data; measuring needs no scaling"
                yield Place(one.path or "(model)", reason, remedy)

    def _is_itself(self, matrix: Matrix, name: str) -> bool:
        """Whether a matrix holds entries of the parameter as they are."""
        some = matrix.weight.reshape(-1)[:_SOME]
        return bool(torch.isin(some, self.parameters[name].detach().to(some.dtype)).all())

    def balance(self, one: Seen, two: Seen) -> Balance:
        """What makes scales the same at both widths, in a pass at each."""
        trained = {name for name, parameter in self.parameters.items() if parameter.requires_grad}
        readouts = [m.names for m, role in zip(self.matrices, self.roles, strict=True) if role is Role.READOUT]
        ties = [self.ties.get(next(iter(names))) for names in readouts]
        alone = len(ties) == 1 and isinstance(ties[0], Tie) and ties[0].bias is None
        return balance(one.taken.steps, two.taken.steps, is_free=trained.__contains__, is_multiplied=alone)

    def own_scales(self, unbalanced: Sequence[Imbalance]) -> list[tuple[Attribute, Attribute]]:
        """Attributes that hold the scale of scores, as they have to be at both widths."""
        found = [own_scale(self.model, self.other, one) for one in unbalanced if one.is_of_scores]
        return [one for one in found if one is not None]

    def architecture(self, balanced: Balance) -> Architecture:
        """What the model is made of."""
        seen = self.one
        found = anatomy(self.model, seen.forward, seen.last, seen.taken.outputs.shape[1])
        of_path = self.names.layers(seen.forward)
        numbers: dict[str, int] = {}
        for number, product in enumerate(seen.forward):
            numbers.setdefault(of_path[self.names.key(product)], number)
        layers = tuple(self._layer(layer, numbers[layer.path], balanced) for layer in found.layers)
        biases = {layer.bias for layer in layers if layer.multiplier is not None}
        vectors = tuple(self._vector(vector) for vector in found.vectors if vector.name not in biases)
        folds = tuple(
            Fold(
                {name: math.exp(own) for name, (own, _) in held.items()},
                cause.reason,
                cause.is_of_scores,
                {name: (other - own) / math.log(self.growth) for name, (own, other) in held.items()},
            )
            for held, cause in balanced.made
        )
        return replace(found, layers=layers, vectors=vectors, folds=folds, notes=tuple(self._notes(layers, numbers)))

    def _layer(self, layer: Layer, number: int, balanced: Balance) -> Layer:
        matrix, role = self.matrices[number], self.roles[number]
        tie = self.ties.get(layer.weight)
        bias, multiplier = layer.bias, None
        if isinstance(tie, Tie):
            bias = None if bias == tie.bias else bias
            if self._reads_tied(number):
                bias, multiplier = tie.bias, Multiplier(tie.path, present=math.exp(balanced.outputs[0]))
        scales = zip(*(scales_of(seen, seen.forward[number]) for seen in (self.one, self.two)), strict=True)
        (read, wide_read), (made, wide_made) = ((balanced.shift(one, 0), balanced.shift(two, 1)) for one, two in scales)
        return replace(
            layer,
            role=role,
            bias=bias,
            multiplier=multiplier,
            activation=None if matrix.node is None else activation_behind(matrix.node, self.follows),
            in_axis=1 if matrix.grows[0] else None,
            out_axis=1 if matrix.grows[1] else None,
            fold=math.exp(made),
            fold_in=math.exp(read),
            fold_powers=((wide_read - read) / math.log(self.growth), (wide_made - made) / math.log(self.growth)),
            is_read_by_zeros=role is Role.CODE and self._is_read_by_zeros(number) and not self._follows_trained(number),
        )

    def _is_read_by_zeros(self, number: int) -> bool:
        by_node = {matrix.node: matrix for matrix in self.matrices if matrix.node is not None}
        start = self.matrices[number].node
        ahead, seen, readers = [start], {start}, []
        while ahead:
            node = ahead.pop()
            if node in by_node and node is not start:
                readers.append(by_node[node])
            elif node is not None:
                news = [after for after in self.follows.get(node, ()) if after not in seen]
                seen.update(news)
                ahead += news
        return bool(readers) and not any(bool(reader.weight.any()) for reader in readers)

    def _follows_trained(self, number: int) -> bool:
        """Whether weights that are trained come before a matrix; a random start would send them gradients of 1/sqrt(N)."""
        node = self.matrices[number].node
        before = set() if node is None else ancestors([node])
        return any(
            matrix.node in before and any(self.parameters[name].requires_grad for name in matrix.names)
            for matrix in self.matrices
        )

    def _vector(self, vector: Vector) -> Vector:
        as_matrix = [n for n, matrix in enumerate(self.matrices) if vector.name in matrix.names]
        if as_matrix:
            fan_in = self.matrices[as_matrix[0]].sizes[2]
            return replace(vector, axis=1, role=self.roles[as_matrix[0]], fan_in=fan_in)
        if self.grows[vector.name]:
            return replace(vector, axis=1)
        own = [use for use in self.one.taken.uses if not use.is_derived]
        uses = [use.edge for use in own if any(vector.name in names for names in use.weights.values())]
        is_inside = any(edge is not None and edge.node in self.inside for edge in uses)
        return replace(vector, role=Role.INNER if is_inside else Role.OUTER)

    def shifts(self, which: int, balanced: Balance) -> dict[Site, float]:
        """Logarithms of what the features that products take are multiplied by, in the model (0) or the other (1)."""
        seen = (self.one, self.two)[which]
        shifts: list[tuple[str, float]] = []
        for number, product in enumerate(seen.forward):
            if self._reads_tied(number):
                (name,) = self.matrices[number].names
                shift = balanced.outputs[which] - balanced.folds.get(name, (0.0, 0.0))[which]
            else:
                shift = balanced.shift(scales_of(seen, product)[0], which)
            if product.kind != "embedding":
                shifts.append((product.use.path, shift))
        return sites(shifts)

    def laws(self, which: int, folds: Folds) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of what is drawn anew to compare sizes: of the model (0) or of the other (1).

        Matrices are of their fan-in at either width, embeddings as they are, and other random parameters as in the model, each
        with the number that it holds.
        """
        drawn = (Role.INPUT, Role.HIDDEN, Role.READOUT, Role.CODE)
        laws, embeddings = {}, set()
        for number, (matrix, role) in enumerate(zip(self.matrices, self.roles, strict=True)):
            for name in matrix.names if not self._reads_tied(number) else ():
                if role in drawn:
                    laws[name] = (0.0, matrix.fan_ins[which] ** -0.5)
                elif role is Role.EMBEDDING:
                    embeddings.add(name)
        own, others = self.parameters, dict(self.other.named_parameters())
        for name, value in own.items():
            if name not in laws and self.grows[name] and _is_random(value):
                numbers = (others if which and name in embeddings else own)[name].detach().double()
                laws[name] = (float(numbers.mean()), float(numbers.std()))
        held = {name: math.exp(both[which]) for name, both in folds.items()}
        return {name: (mean * held.get(name, 1.0), std * held.get(name, 1.0)) for name, (mean, std) in laws.items()}

    def fixed(self) -> dict[str, Tensor]:
        """Random parameters without a width: a few numbers, of which two models have others."""
        drawn = self.laws(0, {})
        return {
            name: value.detach()
            for name, value in self.parameters.items()
            if name not in drawn and not self.grows[name] and _is_random(value)
        }

    @property
    def growth(self) -> float:
        """The other width in units of this one."""
        readout = next(matrix for matrix, role in zip(self.matrices, self.roles, strict=True) if role is Role.READOUT)
        return readout.fan_ins[1] / readout.fan_ins[0]

    def _notes(self, layers: Sequence[Layer], numbers: Mapping[str, int]) -> Iterator[str]:
        codes = [layer.path for layer in layers if layer.role is Role.CODE and not layer.is_read_by_zeros]
        saddles = [path for path in codes if self._is_read_by_zeros(numbers[path])]
        if saddles:
            yield (
                f"{listed(saddles)}: read by weights that start at zero, so that neither side has a gradient in the limit; "
                "freeze the layers before them (then they start at random), or start what reads them at random"
            )
            codes = [path for path in codes if path not in saddles]
        if codes:
            yield (
                f"{listed(codes)}: their outputs are no width but widths follow, so that they start at zero like 1/sqrt(N) in "
                "the limit, and what reads them learns late"
            )
        growth = self.growth
        for layer in layers:
            if layer.role not in (Role.HIDDEN, Role.READOUT, Role.CODE) or layer.kind == "embedding":
                continue
            into, wider = (seen.forward[numbers[layer.path]].features()[0] for seen in (self.one, self.two))
            fixed = (into * growth - wider) / (growth - 1) if growth != 1 else 0.0
            if fixed > _FEW * into:
                yield (
                    f"{layer.path}: about {fixed:.0f} of its {into} inputs do not grow with the width; their share of its "
                    "output vanishes in the limit"
                )


_UNMADE = (
    "multiply with the parameter itself (torch.nn.utils.parametrize.remove_parametrizations for a parametrization); measuring "
    "needs no scaling"
)


def _is_random(parameter: Tensor) -> bool:
    """Whether its entries differ."""
    return bool((parameter != parameter.flatten()[0]).any()) if parameter.numel() else False


_SOME = 64
"""Entries of a matrix that are looked for in its parameter."""

_FEW = 0.02
"""The share of fixed inputs from which on they are mentioned."""


def scales_of(seen: Seen, product: Product) -> tuple[Scale, Scale]:
    """The scales of what a product takes, beside its weight, and of what it makes."""
    if product.use.step is None:
        return Scale(), Scale()
    step = seen.taken.steps[product.use.step]
    is_second = product.kind == "linear" and product.slot[0] < product.data[0]
    return step.scales[is_second] if len(step.scales) > is_second else Scale(), step.made
