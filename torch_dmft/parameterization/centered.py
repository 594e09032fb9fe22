"""The centered model f - f_0, whose output starts at zero at every width."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from torch_dmft.architecture import Wrapper
from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.torch_private import DropoutBase


class Centered(Wrapper):
    """A model minus its initial value: f(x) - f_0(x).

    Attributes:
        model: the model itself, trained as before; its keys in the state_dict begin with ``model.``.
        initial: a copy of the model whose parameters are turned to buffers, so that no optimizer sees them; its keys
            begin with ``initial.``. It follows train and eval mode, so that with BatchNorm too f - f_0 = 0 at first,
            but without dropout, which would only add noise.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.initial = copy.deepcopy(model)
        for module in self.initial.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
        self.train(model.training)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """f(x) - f_0(x)."""
        outputs = self.model(*args, **kwargs)
        if not isinstance(outputs, Tensor):
            raise InvalidInputError(
                "The model must return one tensor to be centered.",
                got=type(outputs).__name__,
                remedy="center a module around it that returns the tensor to train on",
            )
        with torch.no_grad():
            start = self.initial(*args, **kwargs)
        return outputs - start

    def train(self, mode: bool = True) -> Centered:
        """Set train or eval mode; f_0 always runs without dropout."""
        super().train(mode)
        for module in self.initial.modules():
            if isinstance(module, DropoutBase):
                module.eval()
        return self


@checked
def centered(model: nn.Module) -> nn.Module:
    """The centered model f - f_0: at small gamma0 sqrt(N) it removes the large random output of a finite network.

    Args:
        model: a model with one tensor as output, in its initial state; it stays the one that is trained, so parameter
            groups made before or after belong to it alike.

    Returns:
        A module with the model as ``.model``; describing or measuring it sees the layers of that model.
    """
    return Centered(model)
