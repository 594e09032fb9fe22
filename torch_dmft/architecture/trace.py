"""What is known of the tensors of one forward pass: their axes, and which weights they went through."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from torch_dmft.architecture.axes import Axes, Label
from torch_dmft.architecture.call import Call, version
from torch_dmft.architecture.facts import Norm, Weight, facts_of
from torch_dmft.architecture.roles import Constant, DotProduct
from torch_dmft.core.errors import Place
from torch_dmft.core.torch_private import modules_of, own_parameters

CONSTANT: int = -1
"""The serial number of values that depend on neither data nor parameters."""


@dataclass(frozen=True)
class Sum:
    """A sum of products over an axis that may be a width: its label and size, what took it, and in which module."""

    label: int
    size: int
    function: str
    path: str


@dataclass(eq=False, slots=True)  # not frozen, like calls
class Value:
    """What is known of a tensor.

    Attributes:
        dims: a label for each of its axes.
        weights: paths of the weights whose output this is, up to norms, reshaping and constant factors.
        serial: number of the operation that made it; 0 for the data.
        factor: product of the constants it was multiplied by since anything else happened to it.
        scaled: module, function and serial number of the last of these multiplications, None if there was none.
        sum: the sum over a width that it is, up to ``factor`` and reshaping; None for anything else.
        source: path of the weight that was applied to make it, if one was.
        made_from: the values it was made from.
        past_weights: whether it depends on a weight.
        trained: whether it depends on a parameter that is trained.
        cut: what to complain of if it has an effect on the output, because gradients do not follow it back.
        is_scalar: whether it is a parameter of one number, or made of such alone.
    """

    dims: tuple[Label, ...]
    weights: frozenset[str] = frozenset()
    serial: int = CONSTANT
    factor: float = 1.0
    scaled: tuple[str, str, int] | None = None
    sum: Sum | None = None
    source: str | None = None
    made_from: tuple[Value, ...] = ()
    past_weights: bool = False
    trained: bool = False
    cut: Place | None = None
    is_scalar: bool = False


def ancestry(values: list[Value], *, past_weights: bool) -> Iterator[Value]:
    """These values and all they were made from; without ``past_weights``, no further back than to the next weight."""
    seen, ahead = set(map(id, values)), list(values)
    while ahead:
        value = ahead.pop()
        yield value
        for before in value.made_from if past_weights or value.source is None else ():
            if id(before) not in seen:
                seen.add(id(before))
                ahead.append(before)


def _size(tensor: Tensor) -> tuple[float, float]:
    """The root mean square of a tensor, and its relative standard error if the entries were drawn independently."""
    squares = tensor.detach().double().square()
    mean = float(squares.mean())
    error = float((squares / mean - 1).square().mean().sqrt()) / (2 * math.sqrt(squares.numel())) if mean else 0.0
    return math.sqrt(mean), error


@dataclass
class Use:
    """How a weight was used: its axes, the activations its output met (None: unknown), and its last output."""

    in_axis: Label
    out_axis: int
    activations: set[str | None] = field(default_factory=set)
    output: Tensor | None = None


class Trace:
    """The notes taken during a forward pass of ``model``.

    Tensors are known by identity and kept alive, so that identities stay unique and an in-place operation simply gives
    its tensor a new value.

    Attributes:
        axes: the labels of all axes.
        uses: the weights in the order of their first use, by module path.
        norms: the axis that each norm layer reached normalises, by module path.
        scales: the axis that each layer scale reached runs along, by parameter name.
        heads: paths of the weights that reach the model's output without another weight in between.
        used: identities of the parameters reached.
        places: what could not be followed.
        trained: identities of the parameters that are trained.
        bare: the axes of parameters that belong to no layer and are added to features, or put beside them, by name.
        scalars: parameters of one number, by name.
        inside: of these, the names of those that a weight comes after.
        laid_out: the sizes of the axes that widths were laid out on without leaving one to torch, in order.
        growing: for each of these layouts, the place of the axis that grows, or None if nothing tells; None at first, when the
            last one is taken for it.
        parts: of widths that are laid out in parts, the axis that grows and its size.
        sums: sums of products, each with the axis it runs over.
        numbers: what acted on features along with them, by what makes it one; a factor counts when its product is complete.
        has_numbers: whether any number acted on features, even one that changes nothing here, such as a factor of 1.
        must_be_fixed: axes, each with the complaint that is due if it turns out to be a width.
        letters: the operations in order: L linear layer, a named activation, r reshape, x anything else.
        mixes_rows: whether an operation combined different samples.
        modules: the modules of the model by path.
        running: paths of the modules that are running, outermost first.
        samples: how many samples the example has.
        shared_unseen: memory of features that ``data`` gave access to, so that writing there goes unnoticed.
        outputs: how many numbers the model returns per sample.
        masked: of every call of dropout, the axes for each entry of which it draws anew in train mode.
    """

    def __init__(self, model: nn.Module, refused: set[str], growing: Sequence[int | None] | None = None) -> None:
        self.model = model
        self.axes = Axes()
        self.uses: dict[str, Use] = {}
        self.norms: dict[str, Label] = {}
        self.scales: dict[str, Label] = {}
        self.heads: set[str] = set()
        self.used: set[int] = set()
        self.places: dict[Place, None] = {}
        self.bare: dict[str, tuple[Label, ...]] = {}
        self.scalars: dict[str, Value] = {}
        self.inside: set[str] = set()
        self.laid_out: list[tuple[int, ...]] = []
        self.growing = growing
        self.parts: dict[int, int] = {}
        self.sums: dict[tuple[Label, DotProduct], None] = {}
        self.numbers: dict[tuple[object, ...], Constant] = {}
        self.has_numbers = False
        self.must_be_fixed: list[tuple[Label, Place]] = []
        self.letters = ""
        self.mixes_rows = False
        self.running: list[str] = []
        self.serial = 0
        self.samples = 0
        self.outputs = 0
        self.masked: list[tuple[Label, ...]] = []
        self.shared_unseen: set[int] = set()
        self._refused = refused
        self.modules: dict[str, nn.Module] = {}
        self._values: dict[int, tuple[Tensor, Value, tuple[int, bool]]] = {}
        self._last_call: Call | None = None
        self._last_features: list[tuple[Tensor, Value]] = []
        self._owners: dict[int, dict[str, str]] = {}
        self.trained: set[int] = set()
        known: set[int] = set()
        for path, module in modules_of(model, once=False):
            if id(module) not in known:
                known.add(id(module))
                self.modules[path] = module
            for name, parameter in own_parameters(module).items():
                self._owners.setdefault(id(parameter), {})[path] = f"{path}.{name}" if path else name
                if parameter.requires_grad:
                    self.trained.add(id(parameter))

    # Tensors

    def assign(self, tensor: Tensor, value: Value) -> None:
        """Set what is known of a tensor."""
        self._values[id(tensor)] = (tensor, value, (version(tensor), tensor.requires_grad))

    def value(self, tensor: Tensor) -> Value:
        """What is known of a tensor; one that was never seen is a constant."""
        held = self._values.get(id(tensor))
        return held[1] if held else Value((None,) * tensor.ndim)

    def features(self, call: Call) -> list[tuple[Tensor, Value]]:
        """The arguments of a call that depend on the data or on parameters."""
        if call is not self._last_call:
            held = [self._values[id(tensor)] for tensor in call.tensors if id(tensor) in self._values]
            self._last_call = call
            self._last_features = [(tensor, value) for tensor, value, _ in held if value.serial != CONSTANT]
        return self._last_features

    def mixed(self, call: Call) -> list[tuple[Tensor, Value]]:
        """Of these the ones that have axes to be told apart: those that are not one number, unless all are."""
        features = self.features(call)
        return [one for one in features if not one[1].is_scalar] or features

    def changed(self, tensors: list[Tensor]) -> list[Value]:
        """What was known of tensors that were written, or given other gradients, in a way that was not seen."""
        found = []
        for tensor in tensors:
            held = self._values.get(id(tensor))
            if held is not None and held[2] != (version(tensor), tensor.requires_grad) and held[1].serial != CONSTANT:
                found.append(held[1])
        return found

    def is_lost(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on parameters by a way that was not seen."""
        return tensor.requires_grad and id(tensor) not in self._values and id(tensor) not in self._owners

    # Parameters

    def parameters(self, call: Call) -> list[Tensor]:
        """The parameters of the model among a call's arguments."""
        return [tensor for tensor in call.tensors if id(tensor) in self._owners]

    def layer_of(self, parameter: Tensor | None) -> tuple[str, Weight | Norm] | None:
        """Path and facts of the layer that owns a parameter, if that layer is the module that is running."""
        owned = self.path in self._owners.get(id(parameter), {})
        facts = facts_of(self.modules[self.path]) if owned else None
        return None if facts is None else (self.path, facts)

    def scale_of(self, parameter: Tensor) -> str | None:
        """Name of a parameter with entries along one axis, of a module that is no layer."""
        path, name = next(iter(self._owners[id(parameter)].items()))
        is_vector = max(parameter.shape, default=1) == parameter.numel() > 1
        return name if is_vector and facts_of(self.modules[path]) is None else None

    def bare_name(self, parameter: Tensor) -> str | None:
        """The name of a parameter that a module of the user's own holds, which is no layer; None of any other."""
        path, name = next(iter(self._owners[id(parameter)].items()))
        module = self.modules[path]
        return None if facts_of(module) is not None or type(module).__module__.startswith("torch.") else name

    def misused(self, call: Call, parameter: Tensor) -> None:
        """Complain of a parameter used otherwise than its layer's type says."""
        path, name = next(iter(self._owners[id(parameter)].items()))
        if path in self._refused:
            return
        reason = f"is used by `{call.name}` in {self.path or 'the model'!r}, outside the layer that owns it"
        self.complain(Place(name, reason, "call the nn.Linear, nn.Conv, nn.Embedding or norm module that owns it"))

    # Complaints

    @property
    def path(self) -> str:
        """Path of the module that is running."""
        return self.running[-1] if self.running else ""

    def place(self, reason: str, remedy: str) -> Place:
        """A complaint about the module that is running."""
        return Place(self.path or "(model)", reason, remedy)

    def complain(self, place: Place) -> None:
        """Note a complaint, unless it lies within a module that is refused already."""
        if not self._refused.intersection(self.running):
            self.places[place] = None

    def activation(self, weights: frozenset[str], name: str | None) -> None:
        """Note that the outputs of these weights met an activation."""
        for path in weights:
            self.uses[path].activations.add(name)

    # Parts of widths

    def grows(self, sizes: tuple[int, ...]) -> int | None:
        """The place of the axis that grows in the next layout of a width on axes of these sizes; None if nothing tells."""
        number = len(self.laid_out)
        self.laid_out.append(sizes)
        if self.growing is None:
            return len(sizes) - 1
        return self.growing[number] if number < len(self.growing) else None

    # Numbers

    def settle(self, value: Value, *, is_added: bool = False) -> None:
        """Note the factor that a value has in the end: that of a sum of products, or of features (to be added to others)."""
        if value.sum is not None:
            product = DotProduct(value.sum.path, value.sum.function, value.sum.size, value.factor)
            self.sums[value.sum.label, product] = None
        elif value.scaled is not None and not math.isclose(value.factor, 1.0, rel_tol=1e-9):
            path, function, _ = value.scaled
            kind, on_data = "branch" if is_added else "factor", not value.past_weights
            self.numbers[value.scaled, value.factor] = Constant(path, function, value.factor, kind, on_data)

    def note_numbers(self, call: Call, arguments: Iterable[Any] | None = None) -> None:
        """Note the numbers, and the size of the constant tensors, that act on features otherwise than as a factor.

        Args:
            call: the call.
            arguments: those of its arguments that count; None for all.
        """
        on_data = not any(value.past_weights for _, value in self.features(call))
        for leaf in (*call.args, *call.kwargs.values()) if arguments is None else arguments:
            if isinstance(leaf, Tensor):
                is_constant = self.value(leaf).serial == CONSTANT and id(leaf) not in self._owners
                if not (is_constant and leaf.is_floating_point() and leaf.numel()):
                    continue
                number, error = _size(leaf)
                constant = Constant(self.path, call.name, number, "tensor", on_data, leaf.numel(), error)
            elif isinstance(leaf, int | float) and not isinstance(leaf, bool):
                constant = Constant(self.path, call.name, float(leaf), "number", on_data)
            else:
                continue
            self.has_numbers = True
            if constant.number != 0:
                self.numbers["noted", len(self.numbers)] = constant

    # Order

    def number(self, letter: str, inputs: list[tuple[Tensor, Value]]) -> int:
        """Number an operation, and note its letter if it goes on where the last operation ended, x if not."""
        goes_on = len(inputs) == 1 and inputs[0][1].serial == self.serial
        self.letters += letter if goes_on else "x"
        self.serial += 1
        return self.serial
