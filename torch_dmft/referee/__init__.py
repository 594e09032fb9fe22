"""Anybody's set-up under the eye of a referee: measured as it is, at several widths, without theory and without wrapping."""

from torch_dmft.referee.checking import check
from torch_dmft.referee.setup import Setup, load, set_up
from torch_dmft.referee.transferred import Transferred
from torch_dmft.referee.transferring import transfer
from torch_dmft.referee.verdict import Verdict

__all__ = ["Setup", "Transferred", "Verdict", "check", "load", "set_up", "transfer"]
