"""The NTK of one output by other libraries, for comparison of times."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils.data import DataLoader, TensorDataset

INSTALL = ".venv/bin/python -m pip install -c constraints.txt -e '.[bench]'"


def ntk_by_peers(model: nn.Module, inputs: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Ways to the NTK ``(sample, sample)`` by name; those of libraries that are not installed are left out.

    - ``jacrev``: ``torch.func``, ``vmap`` of the Jacobian of one sample, and one product for every parameter;
    - ``nngeometry jacobian``: nngeometry's Jacobian, made layer by layer, and one product;
    - ``nngeometry gram``: nngeometry's own NTK, layer by layer without a Jacobian.
    """
    ways: dict[str, Callable[[], Tensor]] = {"jacrev": lambda: _jacrev(model, inputs)}
    if importlib.util.find_spec("nngeometry") is not None:
        ways |= {
            "nngeometry jacobian": lambda: _nngeometry_jacobian(model, inputs),
            "nngeometry gram": lambda: _nngeometry_gram(model, inputs),
        }
    return ways


def _jacrev(model: nn.Module, inputs: Tensor) -> Tensor:
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def alone(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, values, (x[None],))[0]

    rows = vmap(jacrev(alone), (None, 0))(parameters, inputs)
    return torch.stack([row.flatten(1) @ row.flatten(1).T for row in rows.values()]).sum(0)


def _nngeometry_jacobian(model: nn.Module, inputs: Tensor) -> Tensor:
    from nngeometry.jacobian import Jacobian

    (jacobian,) = Jacobian(model, _whole(inputs)).to_torch()
    return jacobian @ jacobian.T


def _nngeometry_gram(model: nn.Module, inputs: Tensor) -> Tensor:
    from nngeometry.gram import GramMatrix

    return GramMatrix(model, _whole(inputs)).to_torch().reshape(len(inputs), len(inputs))


def _whole(inputs: Tensor) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(inputs.clone()), batch_size=len(inputs))
