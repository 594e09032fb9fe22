"""Norms over groups of channels in a twin."""

from __future__ import annotations

from torch import nn

from torch_dmft.core.errors import Place, UnsupportedModelError


def join_groups(wide: nn.Module) -> None:
    """Let every GroupNorm normalise all channels at once.

    A fixed number of groups have the same law, and each has infinitely many neurons, so all have the mean and variance of the
    whole. Of a sample the whole tells them best.
    """
    for module in list(wide.modules()):
        if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
            joined = nn.GroupNorm(1, module.num_channels, module.eps, module.affine, device="meta")
            put(wide, module, joined)


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, under all names that it has."""
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            model.set_submodule(path, new)


def refuse_more_groups(narrow: nn.Module, doubled: nn.Module) -> None:
    """Refuse norms of a factory whose number of groups depends on the width."""
    places = [
        Place(path, f"GroupNorm of {one.num_groups} groups, and of {other.num_groups} at twice the width", _AS_MANY)
        for (path, one), (_, other) in zip(narrow.named_modules(), doubled.named_modules(), strict=False)
        if isinstance(one, nn.GroupNorm) and isinstance(other, nn.GroupNorm) and one.num_groups != other.num_groups
    ]
    if places:
        raise UnsupportedModelError("The theory cannot predict this model:", places)


_AS_MANY = "as many groups at every width"
