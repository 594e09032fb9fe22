"""Models without numbers: built on the meta device, and not yet given memory and values."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import UninitializedParameter

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.listed import listed


def require_materialised(model: nn.Module) -> None:
    """Refuse a model on the meta device, or with lazy layers.

    Raises:
        InvalidInputError: naming its parameters and buffers.
    """
    lazy = [name for name, value in model.named_parameters() if isinstance(value, UninitializedParameter)]
    if lazy:
        raise InvalidInputError(
            "The model must have numbers to be measured.",
            got=f"lazy layers that are not initialised yet: {listed(lazy)}",
            remedy="run the model once on an example: model(inputs)",
        )
    empty = [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.is_meta]
    if empty:
        raise InvalidInputError(
            "The model must have numbers to be wrapped or measured.",
            got=f"no numbers on the meta device for {listed(empty)}",
            remedy="model.to_empty(device=...), then give every parameter its start (reset_parameters of its modules, or "
            "load_state_dict), and only then wrap or measure it",
        )
