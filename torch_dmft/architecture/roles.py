"""The nouns of an architecture: roles, layers (modules with a weight), vectors, and which axes are widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NoReturn

from torch_dmft.core.arguments import typed
from torch_dmft.core.errors import InvalidInputError, Place
from torch_dmft.core.numbers import shown


class _Word(StrEnum):
    """One of some words, which others are refused for by name."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        words = ", ".join(f'"{one}"' for one in cls)
        raise InvalidInputError(f"A {cls.__name__.lower()} must be one of {words}.", got=shown(value), remedy=words)


class Role(_Word):
    """Which sides of a parameter are widths; this alone decides its scaling."""

    INPUT = "input"  # fan-in is not a width, fan-out is
    HIDDEN = "hidden"  # fan-in and fan-out are widths
    READOUT = "readout"  # fan-in is a width, fan-out is not
    VECTOR = "vector"  # one number per neuron: bias, norm gain and shift
    EMBEDDING = "embedding"  # one row of neurons per token
    OUTPUT_BIAS = "output bias"  # one number per output: the readout's bias, with no width on either side
    CODE = "code"  # fan-in is a width, fan-out is not, and widths come after it: an inner code, a rank, a gate
    INNER = "inner"  # no side is a width, and widths come after it
    OUTER = "outer"  # no side is a width, and none comes after it: behind the readout


class Part(_Word):
    """Where a parameter stands to a residual stream h_{k+1} = h_k + b_k(h_k)."""

    INSIDE = "in a branch"  # it acts within b_k
    END = "ends a branch"  # b_k is proportional to it: the last weight and its bias, or gain and shift of a last norm layer
    BETWEEN = "between branches"  # it acts on the stream itself, as the norm layers behind every sum of BERT


@typed
@dataclass(frozen=True)
class Stream:
    """A stream of features to which residual branches are added one after another.

    Attributes:
        branches: L, the number of branches: a block of a transformer has two, attention and MLP, a block of a ResNet one.
        parts: where its parameters stand, by name; those before the first branch and behind the last are left out.
        shared: for those that several branches have inside of them, how many.
    """

    branches: int
    parts: Mapping[str, Part]
    shared: Mapping[str, int] = field(default_factory=dict)


@typed
@dataclass(frozen=True)
class Multiplier:
    """What a readout is multiplied by in the forward pass, as its weight makes features as well (tied weights).

    Attributes:
        path: path of the module whose output is multiplied.
        present: what the model multiplies it by already, as far as that depends on the width and no parameter makes up for it.
        number: what it is multiplied by beside; 1 as long as nobody has scaled the model.
    """

    path: str
    present: float = 1.0
    number: float = 1.0


@typed
@dataclass(frozen=True)
class Layer:
    """A module with a weight: Linear, Conv or Embedding.

    Attributes:
        path: module path, ``"encoder.0"``.
        kind: ``"linear"``, ``"conv"`` or ``"embedding"``: how its inputs and outputs are laid out
            (linear: features last; conv: features on axis 1, positions after; embedding: integer inputs).
        role: the weight's role.
        weight: name of the weight parameter, ``"encoder.0.weight"``.
        bias: name of the bias parameter, or None.
        fan_in: inputs per output neuron, kernel taps included.
        in_features: features (channels) of the input, over which Phi averages.
        out_features: features (channels) of the output, over which G averages.
        taps: kernel positions, 1 for linear layers; fan_in = taps * in_features / groups.
        activation: name of the elementwise activation that the output meets first, norms and reshapes aside
            (``torch_dmft.core.activation``); None if it meets none, an unknown one, or several.
        in_axis: id of the width axis of the input (layers that read or write one residual stream share it), None if it
            is not a width.
        out_axis: id of the width axis of the output, None if it is not a width.
        fold: by what its outputs are multiplied, as parameters hold numbers that the forward pass lacks (``Fold``).
        fold_in: by what the features that it reads are multiplied likewise.
        fold_powers: the powers of the width that ``fold_in`` and ``fold`` are proportional to where all widths grow alike.
        is_read_by_zeros: of a code, whether the weights that read it start at zero, as those of LoRA do.
        multiplier: of a readout whose weight is that of another layer as well, what gives it its size; the weight has the role
            of the other layer.
    """

    path: str
    kind: str
    role: Role
    weight: str
    bias: str | None
    fan_in: int
    in_features: int
    out_features: int
    taps: int = 1
    activation: str | None = None
    in_axis: int | None = None
    out_axis: int | None = None
    fold: float = 1.0
    is_read_by_zeros: bool = False
    multiplier: Multiplier | None = None
    fold_in: float = 1.0
    fold_powers: tuple[float, float] = (0.0, 0.0)

    @property
    def width(self) -> int | None:
        """How many features it makes, None if they are no width."""
        return None if self.out_axis is None else self.out_features


@typed
@dataclass(frozen=True)
class Vector:
    """A parameter that belongs to no layer: numbers for each neuron, or one for all of them.

    Gain and shift of norm layers, layer scales, positions, class tokens, the factor of a residual branch.

    Attributes:
        path: module path of the owner.
        name: parameter name.
        size: number of entries.
        axis: id of the width axis; None if it has none, or it is not known.
        role: its role.
        fan_in: inputs per neuron, if it is the matrix of a product that has no kernels (experts in one operator).
        is_scale: whether it is a layer scale, which the code of its module multiplies features by.
        start: of what is no norm layer's, the one number that all of it start at; None if they differ, or are drawn.
        place: of a tensor that is added to features, put beside them or rearranged (positions, class tokens, layer scales
            that are reshaped), which of its axes is the width; None for any other.
        is_scalar: whether it is a single number that the code of its module computes with: a factor of a branch, a temperature.
    """

    path: str
    name: str
    size: int
    axis: int | None
    role: Role = Role.VECTOR
    fan_in: int = 1
    is_scale: bool = False
    start: float | None = None
    place: int | None = None
    is_scalar: bool = False

    @property
    def is_norm(self) -> bool:
        """Whether it belongs to a norm layer, as far as one instance tells."""
        return not self.is_scale and not self.is_scalar and self.place is None


@typed
@dataclass(frozen=True)
class Attribute:
    """A number that a module multiplies features by, and what it has to be instead: the scale of attention scores.

    Attributes:
        path: path of the module.
        name: the attribute.
        value: what it has to be.
    """

    path: str
    name: str
    value: float


@typed
@dataclass(frozen=True)
class Fold:
    """A number that the forward pass lacks, or has too much, and that parameters hold instead.

    Attributes:
        factors: what parameters are multiplied by beside what their roles say, by name.
        reason: which number, in words.
        of_scores: whether it is the 1/sqrt(d) that the scores q.k / sqrt(d) of attention lack.
        powers: the power of the width that each factor is proportional to where all widths grow alike.
    """

    factors: Mapping[str, float]
    reason: str
    of_scores: bool = False
    powers: Mapping[str, float] = field(default_factory=dict)


@typed
@dataclass(frozen=True)
class DotProduct:
    """A sum of products over a width, such as the scores factor * q.k of attention.

    It has a limit if the factor falls like 1/size. Divided by sqrt(size) it has one for independent vectors only, while
    training aligns them, so that one of these has to hold another 1/sqrt(size).

    Attributes:
        path: path of the module that takes it.
        function: plain name of the torch function that takes it.
        size: neurons summed over: d, the width of a head.
        factor: the constant that multiplies the sum before anything else happens to it.
        power: 1 if the factor falls like 1/size, 1/2 if it does like 1/sqrt(size) and parameters hold the rest (``Fold``).
    """

    path: str
    function: str
    size: int
    factor: float
    power: float = 1.0

    @property
    def scale(self) -> float:
        """Factor * size^power, which has to be the same at every width."""
        return float(self.factor * self.size**self.power)


@typed
@dataclass(frozen=True)
class Constant:
    """A number that acts on features in the forward pass, such as the 1/2 of h / 2.

    It has to be the same at every width, because the scale of every weight is set by its parameterization and by nothing else.

    Attributes:
        path: path of the module in which it is.
        function: plain name of the torch function that brings it in.
        number: the number; for the factor of a product of several, all of them together; for a tensor of constants, their
            root mean square.
        kind: ``"factor"`` if features are multiplied by the number; ``"branch"`` if they are added to others next, as those
            of a residual branch; ``"number"`` or ``"tensor"`` if it, or a tensor of constants, acts in another way.
        on_data: whether it acts on the data, before any weight.
        entries: how many numbers a tensor of constants has.
        error: the relative standard error of its root mean square if its entries are random; 0 if they all have one size.
    """

    path: str
    function: str
    number: float
    kind: str
    on_data: bool
    entries: int = 1
    error: float = 0.0


@typed
@dataclass(frozen=True)
class Architecture:
    """What ``describe`` found in a model: every parameter is in exactly one place.

    Attributes:
        layers: modules with a weight, in the order of the forward pass: weights l = 0..L.
        vectors: the remaining parameters.
        is_chain: whether the data flow is a plain chain of linear layers and known elementwise activations: no norm, no
            skip, a layer without an activation is linear, every entry of the data is read and every output returned, in order,
            and train mode does the same.
        row_independent: whether each output row depends on its own input row alone (False with BatchNorm in train
            mode).
        dot_products: sums of products over a width, in the order of the forward pass.
        parts: of every width that is laid out on several axes, the size of the one that grows: the size of a head where their
            number is fixed, their number where their size is.
        split: the widths that are laid out in parts, by their ids.
        groups: of norms over groups whose number grows with the width, as far as two widths tell, the size of a group, by
            module path; None where that depends on the width as well. Of all others the number is taken to be fixed.
        shares_parts: whether neurons of one width meet several of another one by one, as keys do that queries share.
        constants: numbers that act on features, in the order of the forward pass.
        outputs: how many numbers the model returns per sample; fewer than the readout's out_features if the model returns only
            some of them.
        train_differs: the places at which the forward pass in train mode is random, or another than in evaluation mode, which
            is the one that is described (dropout, stochastic depth, ``if self.training``); BatchNorm is left to
            ``row_independent``.
        averages_out: whether that is dropout alone, drawn anew for every neuron of a width, so that averages over neurons are
            not random in the limit of infinite width.
        attributes: numbers of modules that have to be set for the forward pass to be the same at every width.
        folds: numbers that the forward pass lacks and parameters hold.
        notes: what was assumed, or has no limit, in words.
        streams: residual streams whose branches are scaled with their number; () if that was not asked for.
        is_traced: whether the data flow between the layers is known, axis by axis; False if all that is known is the uses of
            the parameters.
    """

    layers: tuple[Layer, ...]
    vectors: tuple[Vector, ...]
    is_chain: bool
    row_independent: bool
    dot_products: tuple[DotProduct, ...] = ()
    parts: tuple[int, ...] = ()
    split: tuple[int, ...] = ()
    groups: Mapping[str, int | None] = field(default_factory=dict)
    constants: tuple[Constant, ...] = ()
    outputs: int = 0
    train_differs: tuple[Place, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    folds: tuple[Fold, ...] = ()
    notes: tuple[str, ...] = ()
    streams: tuple[Stream, ...] = ()
    is_traced: bool = True
    averages_out: bool = False
    shares_parts: bool = False

    @property
    def has_parts(self) -> bool:
        """Whether a width is laid out in parts (heads), so that neurons of one width can meet each other."""
        return bool(self.parts)

    @property
    def factors(self) -> dict[str, float]:
        """What parameters are multiplied by beside what their roles say, by name."""
        return {name: factor for fold in self.folds for name, factor in fold.factors.items()}

    @property
    def lacks_roots(self) -> bool:
        """Whether scores are divided by the square root of a width, so that parameters have to hold the rest."""
        return any(product.power != 1.0 for product in self.dot_products)

    def folded_at(self, ratio: float) -> Architecture:
        """The architecture with what its parameters hold where every width is so many times its own."""

        def layer(one: Layer) -> Layer:
            numbers = [
                fold * ratio**power for fold, power in zip((one.fold_in, one.fold), one.fold_powers, strict=True)
            ]
            return replace(one, fold_in=numbers[0], fold=numbers[1])

        folds = tuple(
            replace(fold, factors={name: one * ratio ** fold.powers[name] for name, one in fold.factors.items()})
            for fold in self.folds
        )
        return replace(self, layers=tuple(map(layer, self.layers)), folds=folds)

    def holding(self, other: Architecture) -> Architecture:
        """The architecture with what parameters hold in another one of the same layers."""
        found = {layer.path: layer for layer in other.layers}

        def layer(one: Layer) -> Layer:
            its = found[one.path]
            return replace(one, fold_in=its.fold_in, fold=its.fold, fold_powers=its.fold_powers)

        return replace(self, layers=tuple(map(layer, self.layers)), folds=other.folds)

    @property
    def random(self) -> tuple[Place, ...]:
        """The places of ``train_differs`` that no limit of wide networks averages out."""
        return () if self.averages_out else self.train_differs

    @property
    def bare(self) -> dict[str, Vector]:
        """The parameters that are added to features, put beside them or rearranged, by name."""
        return {vector.name: vector for vector in self.vectors if vector.place is not None}

    @property
    def shared(self) -> tuple[str, ...]:
        """The names of parameters each entry of which acts on every sample by code that is no layer's."""
        return tuple(vector.name for vector in self.vectors if vector.place is not None or vector.is_scalar)

    @property
    def readout(self) -> Layer:
        """The readout layer."""
        return next(layer for layer in self.layers if layer.role is Role.READOUT)

    @property
    def width(self) -> int:
        """N_L, the fan-in of the readout: the width every scaling rule refers to."""
        return self.readout.fan_in
