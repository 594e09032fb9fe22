"""A batch for a model that came without data: its own example, else random rows or tokens that fit its first layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.loss import pairs_entries
from torch_dmft.core.undisturbed import undisturbed
from torch_dmft.referee.losses import BatchLoss, has_step, loss_on_batches, of_outputs, usual_loss
from torch_dmft.uses.outputs import arguments, moved, select

_ROWS = 16
_LENGTHS = (8, 16, 32, 64, 4)
"""Numbers of tokens that are tried, one after the other."""
_SIDES = (8, 28, 32, 16, 64, 224)
"""Sides of images that are tried."""
_EXAMPLES = ("example_input", "example_input_array", "dummy_inputs")
"""Where models keep an example of what they are called with: this package's name, Lightning's and transformers'."""

_TARGETS = "targets: random"
"""How what is said of random targets begins."""
_REMEDY = "data=, a function seed -> batches (--data module:function), or a method example_input() of the model"


def random_batch(
    model: nn.Module, loss: Any, generator: torch.Generator
) -> tuple[tuple[Any, Tensor], BatchLoss, tuple[str, ...]]:
    """A batch ``(inputs, targets)``, the loss on it, and what is to be said of both.

    Args:
        model: is run to see whether it takes the inputs, and left as it was.
        loss: the user's, or None.
        generator: where rows, tokens and targets are drawn from.

    Raises:
        InvalidInputError: if no inputs that were tried are taken, or the loss takes no random targets.
    """
    inputs, outputs, said = _inputs(model, generator)
    kinds = [_classes, _numbers] if _are_classes(outputs) else [_numbers, _classes]
    kinds = [_numbers] if loss is not None and pairs_entries(loss) else kinds
    steps_itself = loss is None and has_step(model)
    if loss is None and not steps_itself:
        targets, what = kinds[0](outputs, generator)
        name = "squared error" if targets.is_floating_point() else "cross-entropy"
        of_batch = of_outputs(usual_loss)
        return (inputs, targets), of_batch, (said, f"targets: {what}, with {name}, as no data and no loss were given")
    of_batch, own = loss_on_batches(model, loss)
    failures: list[Exception] = []
    for kind in kinds:
        targets, what = kind(outputs, generator)
        try:
            with undisturbed(model):
                of_batch(model, moved((inputs, targets), outputs.device))
        except Exception as error:
            failures.append(error)
            continue
        notes = (said, f"targets: {what}, as no data were given", *own)
        return (inputs, targets), of_batch, notes
    name = "training_step of the model" if steps_itself else "loss"
    raise InvalidInputError(
        f"The {name} does not take a batch (inputs, targets) with random targets.", got=str(failures[0]), remedy=_REMEDY
    ) from failures[0]


def _inputs(model: nn.Module, generator: torch.Generator) -> tuple[Any, Tensor, str]:
    """Inputs that the model takes, its outputs on them, and where they are from."""
    device = next(iter(model.parameters())).device
    for name in _EXAMPLES:
        example = getattr(model, name, None)
        if callable(example):
            example = example()
        if example is not None:
            inputs = moved(example, device)
            return inputs, _run(model, inputs), f"inputs: the model's own {name}"
    failure: Exception | None = None
    for candidate, what in _candidates(model, generator):
        inputs = candidate.to(device)
        if inputs.is_floating_point():
            inputs = inputs.to(next(one.dtype for one in model.parameters() if one.is_floating_point()))
        try:
            return (
                inputs,
                _run(model, inputs),
                f"inputs: {what} that fit the first layer, as the model has no example_input",
            )
        except Exception as error:
            failure = failure or error
    raise InvalidInputError(
        "The model takes no inputs that fit its first layer; data must be given.",
        got=f"{type(failure).__name__}: {failure}".rstrip(".\n") if failure else "no layer of a known kind",
        remedy=_REMEDY,
    ) from failure


def _run(model: nn.Module, inputs: Any) -> Tensor:
    with undisturbed(model), torch.no_grad():
        args, kwargs = arguments(inputs)
        return select(model(*args, **kwargs), None).detach()


def _candidates(model: nn.Module, generator: torch.Generator) -> Iterator[tuple[Tensor, str]]:
    """Inputs that may fit the first layer of a known kind, the likeliest first."""

    def rows(*shape: int) -> Tensor:
        return torch.randn(_ROWS, *shape, generator=generator, device="cpu")

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            for length in _LENGTHS:
                shape = (_ROWS // 4, length)
                yield torch.randint(module.num_embeddings, shape, generator=generator, device="cpu"), "random tokens"
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            for side in _SIDES:
                yield rows(module.in_channels, *[side] * (module.weight.ndim - 2)), "random images"
        elif isinstance(module, nn.RNNBase):
            yield rows(_LENGTHS[0], module.input_size), "random sequences"
        elif isinstance(module, nn.MultiheadAttention):
            yield rows(_LENGTHS[0], module.embed_dim), "random sequences"
        elif isinstance(features := getattr(module, "in_features", None), int):
            yield rows(features), "random rows"
            yield rows(_LENGTHS[0], features), "random sequences"
        else:
            continue
        return


def _are_classes(outputs: Tensor) -> bool:
    """Whether outputs look like scores of classes: rows, or tokens, of more than one number."""
    return outputs.ndim in (2, 3) and outputs.shape[-1] > 1


def require_same_targets(notes: Iterable[tuple[int, Sequence[str]]], axis: str = "width") -> None:
    """Refuse random targets that are others at another width, as they were drawn for something else than the outputs.

    Args:
        notes: widths and what was said of their set-ups.
        axis: what a width is called.

    Raises:
        InvalidInputError: if they differ.
    """
    said = {
        width: note.removeprefix("targets: ").split(", as no")[0].split(", with ")[0]
        for width, several in notes
        for note in several
        if note.startswith(_TARGETS)
    }
    if len(set(said.values())) > 1:
        raise InvalidInputError(
            f"What the model returns first must have one shape at every {axis}, as random targets are drawn for it.",
            got="; ".join(f"{what} at {width}" for width, what in said.items()),
            remedy="data, and a loss(model, batch) that takes what is trained; or a model that returns its outputs first",
        )


def _classes(outputs: Tensor, generator: torch.Generator) -> tuple[Tensor, str]:
    classes = max(outputs.shape[-1], 1)
    targets = torch.randint(classes, outputs.shape[:-1], generator=generator, device="cpu")
    return targets.to(outputs.device), f"random classes of {classes}"


def _numbers(outputs: Tensor, generator: torch.Generator) -> tuple[Tensor, str]:
    targets = torch.randn(outputs.shape, generator=generator, device="cpu")
    return targets.to(outputs.device, outputs.dtype), f"random numbers of shape {tuple(outputs.shape[1:])} for each row"
