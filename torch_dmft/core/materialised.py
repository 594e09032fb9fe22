"""Models without numbers: built on the meta device, and not yet given memory and values."""

from __future__ import annotations

from torch import nn

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.listed import listed


def require_materialised(model: nn.Module) -> None:
    """Refuse a model on the meta device.

    Raises:
        InvalidInputError: naming its parameters and buffers.
    """
    empty = [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.is_meta]
    if empty:
        raise InvalidInputError(
            "The model must have numbers to be wrapped or measured.",
            got=f"no numbers on the meta device for {listed(empty)}",
            remedy="model.to_empty(device=...), then give every parameter its start (reset_parameters of its modules, or "
            "load_state_dict), and only then wrap or measure it",
        )
