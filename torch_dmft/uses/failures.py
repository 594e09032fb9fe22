"""What a model's failure on the inputs says to the user, instead of what it says deep inside of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch_dmft.core.errors import DMFTError, InvalidInputError
from torch_dmft.uses.outputs import Example, Runs, named_tensors


def outputs_on(run: nn.Module, inputs: Example) -> Any:
    """What a module returns on inputs.

    Raises:
        InvalidInputError: if it fails; with the reason, where that is known.
    """
    torch.clear_autocast_cache()  # of weights that an earlier pass has cast, out of sight or without gradients
    try:
        return run(inputs)
    except (DMFTError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        got, remedy = _reason(run, inputs)
        raise InvalidInputError(
            "The model fails on the inputs.", got=f"{got}{type(error).__name__}: {error}".rstrip(".\n"), remedy=remedy
        ) from error


def _reason(model: nn.Module, inputs: Example) -> tuple[str, str]:
    """What is known to be wrong, ending with a colon, and the remedy."""
    parameters: dict[str, Tensor] = dict((model.model if isinstance(model, Runs) else model).named_parameters())
    inference = next((name for name, value in parameters.items() if value.is_inference()), None)
    if inference is not None:
        return f"the parameter {inference} of inference mode: ", "build the model outside of torch.inference_mode()"
    devices, dtypes = ({getattr(value, what) for value in parameters.values()} for what in ("device", "dtype"))
    for name, leaf in named_tensors(inputs):
        if devices and leaf.device not in devices:
            where = next(iter(devices))
            return f"{name} on {leaf.device} for a model on {where}: ", f"move them: .to({str(where)!r})"
    for name, leaf in named_tensors(inputs):
        if leaf.is_floating_point() and dtypes and leaf.dtype not in dtypes:
            dtype = next(iter(dtypes))
            return f"{name} of {leaf.dtype} for a model of {dtype}: ", f"inputs of the model's dtype: .to({dtype})"
    return "", (
        "what forward takes: a tensor for its one argument, a tuple for several, a dictionary for arguments by name; a tensor "
        "that all samples share must not have as many rows as there are samples"
    )
