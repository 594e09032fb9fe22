"""Models that several processes train: what is inside of wrappers, parameters as a whole, whether processes agree."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from torch_dmft.core.errors import Place, UnsupportedModelError
from torch_dmft.core.torch_private import inside_of_compiled, is_flattened, sharding_hooks_off


def inside(model: nn.Module) -> nn.Module:
    """The module inside of wrappers that compute what it computes: of ``torch.compile``, data parallelism and Fabric."""
    inner: Any = inside_of_compiled(model)
    if _is_replicated(model) or type(model).__name__ == "_FabricModule":
        inner = model.module
    return inside(inner) if isinstance(inner, nn.Module) and inner is not model else model


def is_spread(model: nn.Module) -> bool:
    """Whether parameters of a model are spread over processes (DTensors, as ``fully_shard`` and tensor parallelism make)."""
    return _is_distributed() and any(map(_is_spread, model.parameters()))


def gathered(tensor: Tensor) -> Tensor:
    """A tensor as a whole; if it is spread over processes, all of them must ask for it."""
    one: Any = tensor
    return one.full_tensor() if _is_spread(tensor) else tensor


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """Write a whole tensor into a parameter; if that is spread over processes, to each its part of the first one's value."""
    one: Any = parameter
    if _is_spread(parameter):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(parameter.device), one.device_mesh, one.placements)
    parameter.copy_(value)


def reshard(model: nn.Module) -> None:
    """Let go of parameters that ``fully_shard`` has gathered for the last forward pass: its modules then hold the shards."""
    for module in _sharded(model) if _is_distributed() else ():
        module.reshard()


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Run the body with the parameters of a model that ``fully_shard`` has spread over processes gathered, and nothing sharded.

    In the body its modules have ordinary parameters, copies of what the processes hold together, and neither the hooks nor the
    classes that ``fully_shard`` gave them; afterwards all is as it was. Every process must enter. Other models are let be.

    Raises:
        UnsupportedModelError: if parameters were flattened or split by tensor parallelism, naming them.
    """
    if not _is_distributed():
        yield
        return
    reshard(model)
    require_readable(model)
    if not is_spread(model):
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(sharding_hooks_off(model))
        made: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                if _is_spread(parameter):
                    if id(parameter) not in made:
                        full = gathered(parameter.detach())
                        made[id(parameter)] = nn.Parameter(full, requires_grad=parameter.requires_grad)
                    stack.callback(setattr, module, name, parameter)
                    setattr(module, name, made[id(parameter)])
        for module in _sharded(model):
            kind = type(module)
            stack.callback(setattr, module, "__class__", kind)
            module.__class__ = kind.__bases__[1]  # fully_shard puts its own class before the module's
        yield


def processes_differ(model: nn.Module, values: Iterable[Tensor]) -> bool:
    """Whether the processes that train a model together have different values for the same parameters.

    Of a model that is neither inside of a DistributedDataParallel nor spread it is not asked; else every process must ask.

    Args:
        model: the model.
        values: a few numbers of its parameters.
    """
    groups = _groups_of(model)
    if not groups:
        return False
    device = next(model.parameters()).device
    mine = torch.cat([value.detach().flatten().double().to(device) for value in values])
    least, most = mine.clone(), mine.clone()
    for group in groups:
        distributed.all_reduce(least, distributed.ReduceOp.MIN, group)
        distributed.all_reduce(most, distributed.ReduceOp.MAX, group)
    return not torch.equal(least, most)


def several_processes() -> bool:
    """Whether this is one of several processes of ``torch.distributed``."""
    return _is_distributed() and distributed.get_world_size() > 1


def _is_distributed() -> bool:
    """Whether this process is in a group, without which nothing is spread."""
    return distributed.is_available() and distributed.is_initialized()


def _groups_of(model: nn.Module) -> list[Any]:
    """The groups of processes that train a model together with this one, as far as that is known."""
    if not several_processes():
        return []
    parameters: list[Any] = list(model.parameters())
    for one in parameters:
        if _is_spread(one):
            return list(one.device_mesh.get_all_groups())
    # A module does not know what is around it.
    mine = {id(parameter) for parameter in parameters}
    around = (one for one in gc.get_objects() if type(one) is nn.parallel.DistributedDataParallel)
    return [one.process_group for one in around if any(id(parameter) in mine for parameter in one.parameters())][:1]


def _is_spread(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def _is_replicated(model: Any) -> bool:
    return type(model) in (nn.DataParallel, getattr(nn.parallel, "DistributedDataParallel", None))


def require_readable(model: nn.Module) -> None:
    """Refuse a model of whose parameters no process has the whole, nor can have it as it is.

    Raises:
        UnsupportedModelError: if its parameters were flattened (FullyShardedDataParallel) or split by tensor parallelism.
    """
    if not _is_distributed():
        return
    flat = [name for name, parameter in model.named_parameters() if is_flattened(parameter)]
    if flat:
        raise UnsupportedModelError(
            "A model inside of FullyShardedDataParallel can be neither wrapped nor measured:",
            [Place(", ".join(flat), "flattened and cut into the parts of processes", f"{_SUCCESSOR}; or {_COPY}")],
        )
    managed = {id(parameter) for module in _sharded(model) for parameter in module.parameters()}
    parameters: list[tuple[str, Any]] = list(model.named_parameters())
    split = [
        name
        for name, parameter in parameters
        if _is_spread(parameter)
        and (id(parameter) not in managed or sum(placement.is_shard() for placement in parameter.placements) > 1)
    ]
    if split:
        raise UnsupportedModelError(
            "A model under tensor parallelism can be neither wrapped nor measured:",
            [
                Place(
                    ", ".join(split),
                    "spread over processes, none of which computes with the whole",
                    f"{_EARLIER}; {_COPY}",
                )
            ],
        )


_SUCCESSOR = "shard it by fully_shard, its successor"
_EARLIER = "wrap the model before parallelize_module"
_COPY = (
    "measure an ordinary copy of it, which takes its weights from get_model_state_dict(model, "
    "options=StateDictOptions(full_state_dict=True)) of torch.distributed.checkpoint.state_dict"
)


def _sharded(model: nn.Module) -> list[Any]:
    """The modules that ``fully_shard`` was given."""
    return [module for module in model.modules() if hasattr(type(module), "reshard")]
