"""What is known of the tensors of one forward pass: their axes, and which weights they went through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torch_dmft.architecture.axes import Axes, Label
from torch_dmft.architecture.roles import DotProduct
from torch_dmft.architecture.rules import Norm, Weight, rule
from torch_dmft.core.errors import Place

CONSTANT: int = -1
"""The serial number of values that depend on neither data nor parameters."""


@dataclass(frozen=True)
class Sum:
    """A sum of products over an axis that may be a width: its label and size, what took it, and in which module."""

    label: int
    size: int
    function: str
    path: str


@dataclass(frozen=True)
class Value:
    """What is known of a tensor.

    Attributes:
        dims: a label for each of its axes.
        weights: paths of the weights whose output this is, up to norms, reshaping and constant factors.
        sources: paths of the weights it depends on without another weight in between.
        serial: number of the operation that made it; 0 for the data.
        factor: product of the constants it was multiplied by since anything else happened to it.
        sum: the sum over a width that it is, up to ``factor`` and reshaping; None for anything else.
    """

    dims: tuple[Label, ...]
    weights: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    serial: int = CONSTANT
    factor: float = 1.0
    sum: Sum | None = None

    @property
    def past_weights(self) -> bool:
        """Whether the tensor has an axis that a weight made."""
        return any(self.dims)


@dataclass
class Use:
    """How a weight was used: its axes, the activations its output met (None: unknown), and its last output."""

    in_axis: Label
    out_axis: int
    activations: set[str | None] = field(default_factory=set)
    output: Tensor | None = None


@dataclass(frozen=True)
class Call:
    """One call of a torch function, with its plain name (``add`` for ``Tensor.__iadd__``, ``relu`` for ``relu_``)."""

    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    @property
    def input(self) -> Tensor:
        """The first argument."""
        return self.argument(0, "input")

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor among the arguments."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @property
    def results(self) -> list[Tensor]:
        """Every tensor in the result."""
        return [leaf for leaf in tree_leaves(self.result) if isinstance(leaf, Tensor)]


class Trace:
    """The notes taken during a forward pass of ``model``.

    Tensors are known by identity and kept alive, so that identities stay unique and an in-place operation simply gives
    its tensor a new value.

    Attributes:
        axes: the labels of all axes.
        uses: the weights in the order of their first use, by module path.
        norms: the axis that each norm layer reached normalises, by module path.
        heads: paths of the weights that reach the model's output without another weight in between.
        used: identities of the parameters reached.
        places: what could not be followed.
        dot_products: sums of products, each with the axis it runs over.
        must_be_fixed: axes, each with the complaint that is due if it turns out to be a width.
        letters: the operations in order: L linear layer, a named activation, r reshape, x anything else.
        mixes_rows: whether an operation combined different samples.
        running: paths of the modules that are running, outermost first.
    """

    def __init__(self, model: nn.Module, refused: set[str]) -> None:
        self.model = model
        self.axes = Axes()
        self.uses: dict[str, Use] = {}
        self.norms: dict[str, Label] = {}
        self.heads: set[str] = set()
        self.used: set[int] = set()
        self.places: list[Place] = []
        self.dot_products: list[tuple[Label, DotProduct]] = []
        self.must_be_fixed: list[tuple[Label, Place]] = []
        self.letters = ""
        self.mixes_rows = False
        self.running: list[str] = []
        self.serial = 0
        self._refused = refused
        self._values: dict[int, tuple[Tensor, Value]] = {}
        self._owners: dict[int, dict[str, str]] = {}
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                self._owners.setdefault(id(parameter), {})[path] = f"{path}.{name}" if path else name

    # Tensors

    def assign(self, tensor: Tensor, value: Value) -> None:
        """Set what is known of a tensor."""
        self._values[id(tensor)] = (tensor, value)

    def value(self, tensor: Tensor) -> Value:
        """What is known of a tensor; one that was never seen is a constant."""
        held = self._values.get(id(tensor))
        return held[1] if held else Value((None,) * tensor.ndim)

    def features(self, call: Call) -> list[tuple[Tensor, Value]]:
        """The arguments of a call that depend on the data or on parameters."""
        pairs = [(tensor, self.value(tensor)) for tensor in call.tensors]
        return [(tensor, value) for tensor, value in pairs if value.serial != CONSTANT]

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
        facts = rule(self.model.get_submodule(self.path)) if owned else None
        return None if facts is None else (self.path, facts)

    def misused(self, call: Call, parameter: Tensor) -> None:
        """Complain of a parameter used otherwise than its layer's rule says."""
        path, name = next(iter(self._owners[id(parameter)].items()))
        if path in self._refused:
            return
        reason = f"is used by `{call.name}` in {self.path or 'the model'!r}, outside a layer with a scaling rule"
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
        if place not in self.places and not self._refused.intersection(self.running):
            self.places.append(place)

    def activation(self, weights: frozenset[str], name: str | None) -> None:
        """Note that the outputs of these weights met an activation."""
        for path in weights:
            self.uses[path].activations.add(name)

    def settle_sum(self, value: Value) -> None:
        """Note the factor that a sum of products has in the end."""
        if value.sum is None:
            return
        found = DotProduct(value.sum.path, value.sum.function, value.sum.size, value.factor)
        if (value.sum.label, found) not in self.dot_products:
            self.dot_products.append((value.sum.label, found))

    # Order

    def number(self, letter: str, inputs: list[tuple[Tensor, Value]]) -> int:
        """Number an operation, and note its letter if it goes on where the last operation ended, x if not."""
        goes_on = len(inputs) == 1 and inputs[0][1].serial == self.serial
        self.letters += letter if goes_on else "x"
        self.serial += 1
        return self.serial
