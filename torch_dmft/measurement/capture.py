r"""Capture: what goes into and comes out of every weight during one forward pass.

A forward hook on each layer keeps its input and its output and hands a *clone* of the output on, so that an in-place
ReLU or ``x += y`` behind the layer changes the clone only. Gradients are taken afterwards, by ``torch.autograd.grad``
with respect to the kept outputs; no backward hook is ever registered. Products with layer scales are kept likewise, by a
mode of torch functions. Each call of a layer is kept apart, so a reused layer has several uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torch_dmft.core.errors import Place, UnsupportedModelError
from torch_dmft.core.threads import of_this_thread
from torch_dmft.measurement.subject import Subject


@dataclass(frozen=True, eq=False)
class Use:
    """One call of a module, or one product with a layer scale.

    Attributes:
        inputs: a detached copy of what went in.
        output: what came out, attached to the graph.
    """

    inputs: Tensor
    output: Tensor


@dataclass(frozen=True, eq=False)
class Taps:
    """The uses of every weight and norm layer during one forward pass.

    Attributes:
        subject: the network.
        uses: module path -> its calls in order; of a layer scale, by its name, the products with it.
    """

    subject: Subject
    uses: Mapping[str, list[Use]] = field(default_factory=dict)

    def flat(self) -> list[Use]:
        """All uses of all modules."""
        return [use for uses in self.uses.values() for use in uses]


@contextmanager
def capture(subject: Subject) -> Iterator[Taps]:
    """Keep the inputs and outputs of all layers while the body runs the network once.

    Example:
        >>> with capture(subject) as taps:  # doctest: +SKIP
        ...     outputs = subject.run(inputs)
        >>> snapshot = measure(taps, outputs)  # doctest: +SKIP

    Raises:
        UnsupportedModelError: if a layer was never called, listing all such layers.
    """
    layers = [layer.path for layer in subject.architecture.layers]
    vectors = subject.architecture.vectors
    owners = [vector.path for vector in vectors if vector.is_norm]
    scales = {vector.name: subject.model.get_parameter(vector.name) for vector in vectors if vector.is_scale}
    multiplied = {layer.multiplier.path for layer in subject.architecture.layers if layer.multiplier is not None}
    taps = Taps(subject, {path: [] for path in dict.fromkeys([*layers, *owners, *scales])})
    handles = [
        subject.model.get_submodule(path).register_forward_hook(
            of_this_thread(partial(_keep, uses)),
            with_kwargs=True,
            prepend=path in multiplied,  # what a readout with a tied weight makes, before it is multiplied
        )
        for path, uses in taps.uses.items()
        if path not in scales
    ]
    try:
        with _Scales({id(value): taps.uses[name] for name, value in scales.items()}) if scales else nullcontext():
            yield taps
    finally:
        for handle in handles:
            handle.remove()
    silent = [path for path, uses in taps.uses.items() if not uses]
    if silent:
        raise UnsupportedModelError(
            "Layers were not seen during the forward pass:",
            [
                Place(
                    path or "the model itself",
                    "its forward hook did not fire, as in a compiled model or one that bypasses the module",
                    "measure the uncompiled module: keep it and train torch.compile(module), the weights are shared",
                )
                for path in silent
            ],
        )


class _Scales(TorchFunctionMode):
    """Keeps what layer scales multiply, and the product."""

    def __init__(self, uses: Mapping[int, list[Use]]) -> None:
        super().__init__()
        self._uses = uses

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        numbers = [number for number, one in enumerate(args[:2]) if id(one) in self._uses]
        if not numbers or getattr(func, "__name__", "") not in _PRODUCTS:
            return result
        other = args[1 - numbers[0]]
        return _keep(self._uses[id(args[numbers[0]])], None, (other,), {}, result)


_PRODUCTS = frozenset({"mul", "multiply", "__mul__", "__rmul__"})


def _keep(
    uses: list[Use], module: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> Tensor:
    """A forward hook, once ``uses`` is bound."""
    inputs = args[0] if args else next(iter(kwargs.values()))
    if not output.requires_grad:  # nothing trainable up to here, yet the gradient of this output is wanted
        output = output.detach().requires_grad_()
    uses.append(Use(inputs.detach().clone(), output))
    return output.clone()
