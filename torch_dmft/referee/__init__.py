"""Anybody's set-up under the eye of a referee: measured as it is, at several widths, without theory and without wrapping."""

from torch_dmft.referee.checking import check
from torch_dmft.referee.setup import Setup, load, set_up
from torch_dmft.referee.verdict import Verdict

__all__ = ["Setup", "Verdict", "check", "load", "set_up"]
