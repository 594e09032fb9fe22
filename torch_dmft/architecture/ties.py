"""Tied weights: an embedding that is the weight of the readout as well.

Row v of the table is the vector of token v where it is looked up, and the weights of output v where it reads out. Both count
the same neurons, so the features that are read out lie on the axis that the embedding writes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from torch import nn
from torch.nn.parameter import UninitializedParameter

from torch_dmft.architecture.roles import Layer, Multiplier, Role
from torch_dmft.architecture.trace import Trace
from torch_dmft.core.errors import Place
from torch_dmft.core.torch_private import modules_of, own_parameters, parameters_of


def shared(model: nn.Module) -> list[dict[str, nn.Module]]:
    """The modules that share memory of their parameters, by the names these have; several parameters of one module too."""
    owners: dict[int, dict[str, nn.Module]] = defaultdict(dict)
    for path, module in modules_of(model):
        for name, parameter in own_parameters(module).items():
            if not isinstance(parameter, UninitializedParameter) and parameter.numel():
                owners[parameter.untyped_storage().data_ptr()][f"{path}.{name}" if path else name] = module
    return [names for storage, names in owners.items() if len(names) > 1 and storage]


def tied_readouts(model: nn.Module) -> dict[str, str]:
    """The linear layers whose weight is that of an embedding, by path, and the path of the embedding.

    Where more than two modules share one weight there is none.
    """
    found = {}
    for owners in shared(model):
        kinds = {_kind(module): name.rpartition(".") for name, module in owners.items()}
        if len(owners) == 2 and kinds.keys() == {nn.Embedding, nn.Linear}:
            (table, _, one), (head, _, other) = kinds[nn.Embedding], kinds[nn.Linear]
            both = (model.get_submodule(path) for path in (table, head))
            if one == other == "weight" and len({id(module.get_parameter("weight")) for module in both}) == 1:
                found[head] = table
    return found


def _kind(module: nn.Module) -> type[nn.Module] | None:
    """Embedding, or Linear if it returns nothing but the product, behind which a factor can stand; None for anything else."""
    if isinstance(module, nn.Linear):
        return nn.Linear if type(module).forward is nn.Linear.forward else None
    return nn.Embedding if isinstance(module, nn.Embedding) else None


def join_axes(trace: Trace) -> None:
    """Say that what a tied weight reads out counts the neurons that the embedding writes."""
    for head, table in tied_readouts(trace.model).items():
        if head not in trace.uses or table not in trace.uses:
            continue
        read, written = trace.uses[head].in_axis, trace.uses[table].out_axis
        if any(trace.axes.is_made(label) for label in (read, written)):
            reason = f"reads out, with the weight of {table}, an axis that is put together from others or a part of one"
            trace.places[Place(head, reason, f"untie it from {table}, or read out the features of one layer")] = None
        trace.axes.unify(read, written)


def with_ties(model: nn.Module, layers: tuple[Layer, ...], places: list[Place]) -> tuple[Layer, ...]:
    """The layers with the weight that two of them share under one name, and what the readout is multiplied by.

    Args:
        model: the model.
        layers: each by itself.
        places: one is added for each tied weight that is not an embedding and the readout.
    """
    ties = tied_readouts(model)
    names = {id(parameter): name for name, parameter in parameters_of(model).items()}
    by_path = {layer.path: layer for layer in layers}
    for head, table in ties.items():
        if head not in by_path or table not in by_path:
            continue
        roles = by_path[table].role, by_path[head].role
        if roles != (Role.EMBEDDING, Role.READOUT):
            reason = f"shares one tensor with {table} and they are {' and '.join(reversed(roles))}"
            places.append(Place(head, reason, "give each its own parameter; an embedding can be the readout as well"))
            continue
        name = names[id(model.get_submodule(table).get_parameter("weight"))]
        by_path[table] = replace(by_path[table], weight=name)
        by_path[head] = replace(by_path[head], weight=name, multiplier=Multiplier(head))
    return tuple(by_path[layer.path] for layer in layers)
