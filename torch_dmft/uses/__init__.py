"""What a model does with its parameters, operator by operator: found by watching one forward pass of any module."""

from torch_dmft.uses.describe import describe

__all__ = ["describe"]
