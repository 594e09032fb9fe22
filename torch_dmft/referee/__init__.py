"""Anybody's set-up under the eye of a referee: measured as it is, at several widths, without theory and without wrapping."""

from torch_dmft.referee.setup import Setup, load, set_up

__all__ = ["Setup", "load", "set_up"]
