"""Groups of channels that are normalised together: whether there are more of them at larger width, or larger ones."""

from __future__ import annotations

from torch import nn

from torch_dmft.core.torch_private import modules_of


def growing_groups(model: nn.Module, other: nn.Module) -> dict[str, int | None]:
    """The GroupNorms of a model that have another number of groups at another width.

    Args:
        model: the model.
        other: the same at another width.

    Returns:
        The size of a group, by path; None if that depends on the width as well.
    """
    others, found = dict(modules_of(other)), dict[str, int | None]()
    for path, one in modules_of(model):
        two = others.get(path)
        if isinstance(one, nn.GroupNorm) and isinstance(two, nn.GroupNorm) and one.num_groups != two.num_groups:
            size = size_of_groups(one)
            found[path] = size if size == size_of_groups(two) else None
    return found


def size_of_groups(norm: nn.GroupNorm) -> int:
    """How many channels are normalised together."""
    return norm.num_channels // norm.num_groups
