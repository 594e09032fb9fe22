"""Norms over groups of channels in a twin."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn


def join_groups(wide: nn.Module, kept: Collection[str]) -> None:
    """Let every GroupNorm normalise all channels at once, but those that have groups of a fixed size.

    A fixed number of groups have the same law, and each has infinitely many neurons, so all have the mean and variance of the
    whole. Of a sample the whole tells them best.
    """
    for path, module in list(wide.named_modules()):
        if isinstance(module, nn.GroupNorm) and module.num_groups > 1 and path not in kept:
            joined = nn.GroupNorm(1, module.num_channels, module.eps, module.affine, device="meta")
            put(wide, module, joined)


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, under all names that it has."""
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            model.set_submodule(path, new)
