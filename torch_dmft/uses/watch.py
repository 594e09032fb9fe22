r"""Which operation uses which parameter: found while the model runs, operator by operator.

Every operator of torch that runs is seen, those inside library functions such as ``multi_head_attention_forward`` and
``lstm`` included. What is computed from parameters and constants alone is a *weight*: a parameter itself, a transpose or a
slice of it, a matrix that a parametrization makes. What depends on the inputs is *data*. A **use** is an operator that takes
a weight and data: there, and nowhere else, the parameters meet the samples, so that

.. math:: \frac{\partial f}{\partial \theta}
    = \sum_{\text{uses}} \frac{\partial f}{\partial\,\text{weight}} \frac{\partial\,\text{weight}}{\partial \theta}.

Uses in which the weight is the matrix of a product have forward and backward kernels; all have a share in the NTK.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torch_dmft.core.errors import Place, UnsupportedModelError
from torch_dmft.core.threads import of_this_thread
from torch_dmft.core.torch_private import (
    backward_pass,
    modules_of,
    operator_name,
    parameters_of,
    storage_key,
    writes_to,
)
from torch_dmft.uses.derivatives import Derivative, Derivatives
from torch_dmft.uses.steps import Step, Steps
from torch_dmft.uses.views import are_apart, geometry

DATA = frozenset({"\0data"})
"""The label of tensors that depend on the inputs; a weight's label is the names of its parameters, a constant has none."""

_KINDS = {True: "data", False: "weight"}

Slot = tuple[int, int | None]
"""A place among the arguments of an operator: its position, and that within a list such as the one ``cat`` takes."""


@dataclass(eq=False)
class Use:
    """One operator that takes a weight and data, or a weight and constants as an embedding of positions does.

    What an operator overwrites later in the pass is kept here as it was.

    Attributes:
        operator: its plain name, ``"addmm"``.
        function: the operator.
        args: its arguments as they were.
        kwargs: its arguments by name.
        weights: which arguments are weights, and the names of their parameters.
        path: path of the module that was running.
        output: what came out, attached to the graph.
        edge: where in the graph the output was made; None if no gradient flows into it.
        meets_data: whether data was among the arguments.
        origins: where in the graph those weights were made that were overwritten.
        per_sample: weights that have a part for every sample (learned queries, expanded and projected): they are no one matrix.
        step: its number among the steps, where they are noted.
        is_derived: whether autograd made it inside of the forward pass: the adjoint of another use.
    """

    operator: str
    function: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    weights: dict[Slot, frozenset[str]]
    path: str
    output: Tensor
    edge: GradientEdge | None
    meets_data: bool
    origins: dict[Slot, GradientEdge]
    per_sample: set[Slot] = field(default_factory=set)
    step: int | None = None
    is_derived: bool = False

    def argument(self, slot: Slot) -> Tensor:
        """The argument in a slot."""
        i, j = slot
        found: Tensor = self.args[i] if j is None else self.args[i][j]
        return found

    def is_attached(self, slot: Slot) -> bool:
        """Whether gradients flow into the argument in a slot."""
        return slot in self.origins or self.argument(slot).requires_grad

    def save(self, slot: Slot | None) -> None:
        """Keep the output (None) or an argument as it is now."""
        if slot is None:
            self.output = self.output.detach().clone()
            return
        tensor, (i, j) = self.argument(slot), slot
        if slot in self.weights and tensor.requires_grad:
            self.origins[slot] = get_gradient_edge(tensor)
        if j is None:
            self.args[i] = tensor.detach().clone()
        else:
            self.args[i][j] = tensor.detach().clone()


@dataclass(frozen=True, eq=False)
class Pass:
    """A forward pass that was watched.

    Attributes:
        outputs: f, ``(sample, output)``, attached to the graph.
        uses: in the order in which they ran.
        steps: the operators on features, where they were noted.
        among: products of parameters with parameters, where steps were noted: no sample reaches them.
        returned: likewise, for every module that ran where in the graph what it returned was made, call by call; None for
            what is no tensor, or has no gradients.
        derivatives: those that it took by ``torch.autograd.grad``, where steps were noted.
        unseen: paths of modules that let autograd run in another way, likewise.
    """

    outputs: Tensor
    uses: tuple[Use, ...]
    steps: tuple[Step, ...] = ()
    among: tuple[Use, ...] = ()
    returned: Mapping[str, Sequence[GradientEdge | None]] = field(default_factory=dict)
    derivatives: tuple[Derivative, ...] = ()
    unseen: tuple[str, ...] = ()


class Watch(TorchDispatchMode):
    """Sees every operator that runs in its ``with`` block.

    Args:
        model: the parameters to follow.
        inputs: the tensors that are data.
        notes_steps: whether to note every operator on features and weights, and their scales.
    """

    def __init__(self, model: nn.Module, inputs: Iterable[Tensor], *, notes_steps: bool = False) -> None:
        super().__init__()
        self.running: list[str] = []
        self.returned: dict[str, list[GradientEdge | None]] = {}
        self._labels: dict[int, frozenset[str]] = {}
        self._extents: dict[int, list[tuple[int, int, str]]] = {}
        for name, parameter in parameters_of(model).items():
            start = parameter.data_ptr()
            extent = (start, start + parameter.numel() * parameter.element_size(), name)
            self._extents.setdefault(storage_key(parameter), []).append(extent)
            self._labels[storage_key(parameter)] = frozenset({name})
        alone = {key: extents[0][2] for key, extents in self._extents.items() if len(extents) == 1}
        self.steps = Steps(alone) if notes_steps else None
        for leaf in inputs:
            self._labels[storage_key(leaf)] = DATA
        self._overwritten: dict[int, dict[Any, Tensor]] = {}
        self._uses: list[Use] = []
        self.among: list[Use] = []
        self._kept: dict[int, list[tuple[Use, Slot | None]]] = {}
        self._pending: tuple[Use, list[Tensor]] | None = None
        self.derivatives: list[Derivative] = []
        self.unseen: dict[str, None] = {}
        self._outside, self._is_differentiating = backward_pass(), False

    def finish(self) -> tuple[Use, ...]:
        """All uses, in order."""
        self._settle()
        return tuple(self._uses)

    def label(self, tensor: Tensor) -> frozenset[str] | None:
        """What a tensor depends on: data, the parameters named, or constants alone."""
        key = storage_key(tensor)
        found = self._labels.get(key)
        if key in self._overwritten:  # data stand in some parts of a tensor that was made of parameters
            views = self._overwritten[key]
            known = views.get(geometry(tensor))
            return DATA if known is not None or not all(are_apart([tensor, view]) for view in views.values()) else found
        if found is None or key not in self._extents or len(self._extents[key]) == 1:
            return found
        place = tensor.data_ptr()  # several parameters in one storage, as cuDNN keeps those of a recurrent network
        return frozenset(name for start, end, name in self._extents[key] if start <= place < end) or found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator and note what it is to the parameters."""
        kwargs = kwargs or {}
        self._settle()
        name = operator_name(func).removeprefix("aten::")
        if name == "lift_fresh":
            self._labels.pop(storage_key(args[0]), None)
            return func(*args, **kwargs)
        slots = _slots(args)
        labels = {slot: self.label(leaf) for slot, leaf in slots.items()}
        written = writes_to(func, args)
        self._refuse_to_change(written, name)
        is_data = any(label is DATA for label in labels.values())
        weights = {slot: label for slot, label in labels.items() if label is not None and label is not DATA}
        graded = torch.is_grad_enabled()
        is_derived = backward_pass() not in (None, self._outside)
        if is_derived and not self._is_differentiating:
            self.unseen[self.path] = None
        for tensor in written:
            for earlier, slot in self._kept.pop(storage_key(tensor), ()):
                earlier.save(slot)
        is_position = name in LAYERS and any(label is None for label in labels.values())
        use: Use | None = None
        if graded and weights and (is_data or is_position):
            some = next(iter(slots.values()))
            use = Use(name, func, _listed(args), kwargs, weights, self.path, some, None, is_data, {})
            use.is_derived = is_derived
            for overwritten in [slot for slot, leaf in slots.items() if _among(leaf, written)]:
                use.save(overwritten)
        result = func(*args, **kwargs)
        if self.steps is not None and any(label is not None for label in labels.values()):
            kinds = [_KINDS[label is DATA] if (label := labels.get((i, None))) else None for i in range(len(args))]
            self.steps.note(self.path, name, args, kwargs, kinds, result, written, is_derived=is_derived)
            if use is not None:
                use.step = len(self.steps.taken) - 1
            elif name in LAYERS and len(weights) > 1 and not is_data and isinstance(result, Tensor) and not is_derived:
                self.among.append(Use(name, func, _listed(args), kwargs, weights, self.path, result, None, False, {}))
        out_label = DATA if is_data else frozenset[str]().union(*weights.values()) or None
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        keys = {storage_key(leaf) for leaf in slots.values()}
        for leaf in (*made, *written):
            self._mark(leaf, out_label, is_new=storage_key(leaf) not in keys)
        floats = [leaf for leaf in made if leaf.is_floating_point() or leaf.is_complex()]
        if use is not None and floats:
            self._pending = use, floats
        return result

    def _mark(self, leaf: Tensor, label: frozenset[str] | None, *, is_new: bool) -> None:
        """Note what the result of an operator, or what it has written, depends on."""
        key = storage_key(leaf)
        if key in self._extents:
            return
        if is_new:
            self._overwritten.pop(key, None)
        known = self._labels.get(key)
        if label is DATA and not is_new and known is not None and known is not DATA:
            self._overwritten.setdefault(key, {})[geometry(leaf)] = leaf.detach()
        elif label is not None:
            self._labels[key] = label
        elif is_new:
            self._labels.pop(key, None)

    def _settle(self) -> None:
        """Look up where in the graph the outputs of the last use are: autograd sets it after the operator has run."""
        if self._pending is None:
            return
        (use, candidates), self._pending = self._pending, None
        attached = [leaf for leaf in candidates if leaf.requires_grad]
        use.output = (attached or candidates)[0]
        use.edge = get_gradient_edge(use.output) if attached else None
        self._uses.append(use)
        kept: list[tuple[Slot | None, Tensor]] = [(None, use.output), *_slots(tuple(use.args)).items()]
        for slot, leaf in kept:
            if storage_key(leaf) not in self._extents:
                self._kept.setdefault(storage_key(leaf), []).append((use, slot))

    @property
    def path(self) -> str:
        """Path of the module that is running."""
        return self.running[-1] if self.running else ""

    @contextmanager
    def differentiating(self) -> Iterator[None]:
        """Let autograd run in the body."""
        before, self._is_differentiating = self._is_differentiating, True
        try:
            yield
        finally:
            self._is_differentiating = before

    def differentiated(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        given: Sequence[Tensor | None],
        made: Sequence[Tensor | None],
    ) -> None:
        """Note a derivative.

        Args:
            outputs: of which it was taken.
            inputs: by which.
            given: what the outputs were multiplied with; empty for ones.
            made: the derivatives by each input; None for one that nothing depends on.
        """
        self._settle()
        nodes = (frozenset(one.grad_fn for one in some if one is not None and one.grad_fn) for some in (made, outputs))
        self.derivatives.append(Derivative(self.path, tuple(one.shape for one in inputs), *nodes))
        if self.steps is not None:
            self.steps.differentiated(self.path, outputs, inputs, given, made)

    def _refuse_to_change(self, written: list[Tensor], name: str) -> None:
        for tensor in written:
            if storage_key(tensor) in self._extents:
                names = ", ".join(sorted(self.label(tensor) or ()))
                raise UnsupportedModelError(
                    "Measuring would change a parameter:",
                    [
                        Place(
                            self.path or "(model)",
                            f"its forward pass writes to {names} ({name})",
                            "let the forward pass leave parameters as they are (max_norm=None in embeddings)",
                        )
                    ],
                )


LAYERS = frozenset({"mm", "addmm", "bmm", "convolution", "embedding"})
"""Operators whose weight has kernels even where it meets constants only, as an embedding of positions does."""


@contextmanager
def watching(model: nn.Module, watch: Watch) -> Iterator[None]:
    """Watch what runs in the body.

    Args:
        model: the module paths to name.
        watch: what watches.
    """
    paths = {id(module): path for path, module in modules_of(model)}

    def enter(module: nn.Module, args: Any) -> None:
        if id(module) in paths:
            watch.running.append(paths[id(module)])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in paths:
            path = watch.running.pop()
            if watch.steps is not None:
                has_edge = isinstance(output, Tensor) and output.requires_grad
                watch.returned.setdefault(path, []).append(get_gradient_edge(output) if has_edge else None)

    enter, leave = of_this_thread(enter), of_this_thread(leave)
    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
    try:
        with ExitStack() as stack:
            if watch.steps is not None:
                stack.enter_context(Derivatives(watch))
            stack.enter_context(watch)
            yield
    finally:
        for hook in hooks:
            hook.remove()


def edges_of(uses: Iterable[Use]) -> dict[int, GradientEdge]:
    """Where the gradients of uses are taken."""
    return {number: use.edge for number, use in enumerate(uses) if use.edge is not None and use.meets_data}


def gradients_of(scalar: Tensor, uses: Sequence[Use], *, retain_graph: bool = True) -> list[Tensor | None]:
    """Gradients of a number by the outputs of all uses."""
    edges = edges_of(uses)
    found: list[Tensor | None] = [None] * len(uses)
    if edges and scalar.requires_grad:
        gradients = torch.autograd.grad(scalar, list(edges.values()), retain_graph=retain_graph, allow_unused=True)
        for number, gradient in zip(edges, gradients, strict=True):
            found[number] = gradient
    return found


def _slots(args: tuple[Any, ...]) -> dict[Slot, Tensor]:
    """Every tensor among the arguments of an operator."""
    found: dict[Slot, Tensor] = {}
    for i, arg in enumerate(args):
        if isinstance(arg, Tensor):
            found[i, None] = arg
        elif isinstance(arg, tuple | list):
            found |= {(i, j): leaf for j, leaf in enumerate(arg) if isinstance(leaf, Tensor)}
    return found


def _listed(args: tuple[Any, ...]) -> list[Any]:
    return [[*arg] if isinstance(arg, tuple | list) else arg for arg in args]


def _among(tensor: Any, many: Iterable[Any]) -> bool:
    return any(tensor is one for one in many)
