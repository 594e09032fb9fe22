"""What a model is run on and what of its outputs is f: any arguments that ``forward`` takes, any structure that it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map

from torch_dmft.core.errors import InvalidInputError

Example = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""A tensor is the one argument of ``forward``; a tuple or a list holds its arguments by position, a mapping by name. Any
structure of dictionaries, lists and tuples may be inside."""

Selection = str | int | Callable[[Any], Tensor]
"""A key, an index or a function of what the model returns."""

_USUAL = ("logits", "prediction_logits", "out", "output", "outputs")
"""Names under which libraries return what the loss is taken of."""


def arguments(inputs: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of ``forward`` by position and by name."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def tensors(inputs: Any) -> list[Tensor]:
    """Every tensor among the inputs."""
    return [leaf for leaf in tree_leaves(plain(inputs)) if isinstance(leaf, Tensor)]


def named_tensors(inputs: Any) -> list[tuple[str, Tensor]]:
    """Every tensor among the inputs and where it is: ``"inputs"``, ``"inputs['mask']"``, ``"inputs[1]"``."""
    leaves, _ = tree_flatten_with_path(plain(inputs))
    return [(f"inputs{keystr(path)}", leaf) for path, leaf in leaves if isinstance(leaf, Tensor)]


def plain(inputs: Any) -> Any:
    """Inputs in plain dictionaries, also where libraries have mappings of their own (``BatchEncoding``)."""
    if isinstance(inputs, Mapping):
        return {key: plain(value) for key, value in inputs.items()}
    if type(inputs) in (tuple, list):
        return type(inputs)(plain(value) for value in inputs)
    return inputs


def count(inputs: Example) -> int:
    """P: how many samples the inputs hold, the length of their first tensor."""
    leaves = [leaf for leaf in tensors(inputs) if leaf.ndim]
    return len(leaves[0]) if leaves else 0


def rows(inputs: Example, chosen: Tensor | list[int]) -> Any:
    """The inputs of some samples alone: tensors that have one row per sample are cut, all else is handed on."""
    samples = count(inputs)
    index = chosen if isinstance(chosen, Tensor) else torch.tensor(chosen, device="cpu")

    def cut(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == samples:
            return leaf[index.to(leaf.device)]
        return leaf

    return tree_map(cut, plain(inputs))


def moved(inputs: Example, device: torch.device) -> Any:
    """The inputs on another device."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, plain(inputs))


def copied(inputs: Example) -> Any:
    """The inputs as they are now, apart from all graphs."""
    with torch.inference_mode(False):
        return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, plain(inputs))


def select(returned: Any, outputs: Selection | None) -> Tensor:
    """The outputs f among what a model returned.

    Args:
        returned: a tensor, a tuple or a mapping.
        outputs: a key, an index or a function; None for the tensor itself, the first entry of a tuple, and of a mapping the
            entry that is called ``"logits"`` (or as libraries usually call it) or that is alone.

    Raises:
        InvalidInputError: if nothing is found there.
    """
    if callable(outputs):
        found: Any = outputs(returned)
        if torch.is_grad_enabled() and any(one.requires_grad for one in tensors(returned)):
            _require_gradients(found)
    elif outputs is not None:
        try:
            found = returned[outputs]
        except (KeyError, IndexError, TypeError) as error:
            raise InvalidInputError(
                f"The model returns nothing under {outputs!r}.",
                got=_shown(returned),
                remedy="another key or index as outputs",
            ) from error
    elif isinstance(returned, Mapping):
        floats = {
            key: value for key, value in returned.items() if isinstance(value, Tensor) and value.is_floating_point()
        }
        key = next((name for name in _USUAL if name in floats), None)
        if key is None and len(floats) != 1:
            raise InvalidInputError(
                "It is not known which of the model's outputs is f.",
                got=_shown(returned),
                remedy="outputs=, one of these keys",
            )
        found = floats[key] if key is not None else next(iter(floats.values()))
    elif isinstance(returned, tuple | list) and returned:
        found = returned[0]
    else:
        found = returned
    if not isinstance(found, Tensor):
        raise InvalidInputError(
            "The outputs must be a tensor.",
            got=_shown(found),
            remedy="outputs=, a key, an index or a function of what the model returns",
        )
    if not found.is_floating_point():
        raise InvalidInputError(
            "The outputs must be real floating-point numbers.",
            got=str(found.dtype),
            remedy="outputs=, another part of them",
        )
    return found


def _require_gradients(found: Any) -> None:
    """Refuse a selection of outputs whose gradients are cut, as if the network could not learn."""
    if isinstance(found, Tensor) and found.is_floating_point() and not found.requires_grad:
        raise InvalidInputError(
            "The outputs must depend on the parameters.",
            got=f"`outputs` gave a tensor of shape {tuple(found.shape)} without gradients",
            remedy="outputs=, a function without detach(), item() or numpy()",
        )


def _shown(returned: Any) -> str:
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    if isinstance(returned, Mapping):
        return f"a mapping with the keys {', '.join(map(str, returned))}"
    if isinstance(returned, tuple | list):
        return f"{type(returned).__name__} of {len(returned)}: {', '.join(type(one).__name__ for one in returned)}"
    return type(returned).__name__


class Runs(nn.Module):
    """A model that takes any inputs as one argument and returns its outputs as one tensor.

    Attributes:
        model: the model.
        selection: which part of its outputs, or what function of them, is f; None for the usual one.
    """

    def __init__(self, model: nn.Module, outputs: Selection | None = None) -> None:
        super().__init__()
        self.model = model
        self.selection = outputs

    @property
    def selects(self) -> bool:
        """Whether a part of its outputs, or a function of them, is chosen."""
        return self.selection is not None

    def forward(self, inputs: Example) -> Tensor:
        """The outputs f on these inputs."""
        args, kwargs = arguments(inputs)
        return select(self.model(*args, **kwargs), self.selection)


def output_rows(outputs: Tensor, samples: int) -> Float[Tensor, "sample output"]:
    """A model's output as ``(sample, output)``.

    Raises:
        InvalidInputError: if it has another shape.
    """
    if outputs.ndim == 1:
        outputs = outputs.unsqueeze(1)
    if outputs.ndim != 2 or len(outputs) != samples:
        raise InvalidInputError(
            "The model must return one row of outputs per sample.",
            got=f"shape {tuple(outputs.shape)} for {samples} samples",
            remedy=_to_rows(outputs, samples),
        )
    return outputs


def _to_rows(outputs: Tensor, samples: int) -> str:
    """What makes rows of outputs of another shape."""
    if outputs.ndim > 2 and len(outputs) == samples:
        if outputs.ndim > 3:
            return "outputs=, a function of what the model returns: out.mean((2, 3)) of every channel, out.flatten(1) of all"
        return (
            "outputs=, a function of what the model returns: out[:, -1] of one place, out.mean(1) of the mean over places, "
            "out.flatten(1) of all of them"
        )
    if outputs.ndim > 1 and outputs.shape[1] == samples:
        return "outputs=, a function that puts the samples first: out.transpose(0, 1)"
    return (
        "outputs=, a key, an index or a function that gives (sample, output); the samples are the rows of the first tensor of "
        "the inputs"
    )
