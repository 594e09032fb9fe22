"""What torch functions do to the axes of tensors: families of functions, found by name."""

from torch_dmft.architecture.operations.follow import follow

__all__ = ["follow"]
