"""Every name that torch keeps private and this package needs, here and nowhere else.

A new version of torch may change them without a word; a test looks for each.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import CodeType, FrameType, MethodType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNormBase
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as ConvBase
from torch.nn.modules.conv import _ConvTransposeNd as ConvTransposeBase
from torch.nn.modules.dropout import _DropoutNd as DropoutBase
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

__all__ = [
    "BatchNormBase",
    "ConvBase",
    "ConvTransposeBase",
    "DropoutBase",
    "NormBase",
    "argument_names",
    "attributes_of_a_call",
    "backward_pass",
    "calls_under_way",
    "checkpoints_off",
    "foreign_hooks",
    "forward_hooks_of",
    "gradient_hooks_off",
    "has_backward_hooks",
    "has_weights_of_hooks",
    "inside_of_compiled",
    "is_compiled",
    "is_flattened",
    "is_followed",
    "modules_of",
    "multiply_all_",
    "operator_name",
    "own_buffers",
    "own_parameters",
    "padding_twice",
    "parameters_of",
    "put_first",
    "put_last",
    "sharding_hooks_off",
    "steps_followed",
    "storage_key",
    "store_of_processes",
    "uncompiled",
    "with_generator",
    "without_hooks",
    "writes_to",
]


def padding_twice(convolution: ConvBase) -> Sequence[int]:
    """What a convolution hands to ``nn.functional.pad``: both sides of every axis, last axis first."""
    return convolution._reversed_padding_repeated_twice


def modules_of(model: nn.Module, *, once: bool = True) -> list[tuple[str, nn.Module]]:
    """``named_modules``, with one loop in place of a generator within a generator for every level.

    Args:
        model: the outermost module, whose path is empty.
        once: whether a module that has several paths is listed with the first alone.
    """
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    ahead = [("", model)]
    while ahead:
        path, module = ahead.pop()
        if once and id(module) in seen:
            continue
        seen.add(id(module))
        found.append((path, module))
        prefix = f"{path}." if path else ""
        ahead += [(prefix + name, inner) for name, inner in reversed(module._modules.items()) if inner is not None]
    return found


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """``named_parameters``, likewise: each parameter once, by the first of its names."""
    named = [
        (f"{path}.{name}" if path else name, parameter)
        for path, module in modules_of(model)
        for name, parameter in own_parameters(module).items()
    ]
    first = {id(parameter): name for name, parameter in reversed(named)}
    return {name: parameter for name, parameter in named if first[id(parameter)] == name}


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module by name, without those of its submodules: ``named_parameters(recurse=False)``, but faster."""
    return {name: one for name, one in module._parameters.items() if one is not None}


def own_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of a module by name, without those of its submodules."""
    return {name: one for name, one in module._buffers.items() if one is not None}


def has_backward_hooks(one: nn.Module | Tensor) -> bool:
    """Whether a hook watches or changes the gradients of a module or of a tensor."""
    hooks: list[Any] = [one._backward_hooks, getattr(one, "_backward_pre_hooks", None)]
    return any(hooks)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """Run the body with no hook on any module of a model but those that are part of it, and put all of them back.

    A hook is part of the model if it says so (``is_part_of_model``): without it the model is another function.
    """
    hooks = [
        (vars(module), name, vars(module)[name])
        for _, module in modules_of(model)
        for name in _HOOKS
        if vars(module)[name]
    ]
    for attributes, name, all_of_them in hooks:
        kept = {key: hook for key, hook in all_of_them.items() if getattr(hook, "is_part_of_model", False)}
        attributes[name] = OrderedDict(kept)
    try:
        yield
    finally:
        for attributes, name, kept in hooks:
            attributes[name] = kept


def foreign_hooks(model: nn.Module) -> list[str]:
    """Paths of the modules with hooks that are neither torch's own (``weight_norm``) nor this package's."""
    return [
        path
        for path, module in modules_of(model)
        if any(_origin(hook) not in ("torch", "torch_dmft") for name in _HOOKS for hook in vars(module)[name].values())
    ]


def forward_hooks_of(module: nn.Module) -> dict[int, Any]:
    """The hooks that are called behind a module's forward pass, by number; an entry that is deleted is called no more."""
    return module._forward_hooks  # type: ignore[return-value]


@contextmanager
def sharding_hooks_off(model: nn.Module) -> Iterator[None]:
    """Run the body without the hooks that ``torch.distributed`` has put on the forward passes of modules.

    Other hooks that are added or taken away in the body stay so.
    """
    hooks = [(vars(module), name, vars(module)[name]) for module in model.modules() for name in _HOOKS]
    shards = [
        (attributes, name, kept)
        for attributes, name, kept in hooks
        if any(_home(hook).startswith("torch.distributed") for hook in kept.values())
    ]
    for attributes, name, kept in shards:
        others = {key: hook for key, hook in kept.items() if not _home(hook).startswith("torch.distributed")}
        attributes[name] = OrderedDict(others)
    try:
        yield
    finally:
        for attributes, name, kept in shards:
            now = attributes[name]
            for key in [key for key, hook in kept.items() if not _home(hook).startswith("torch.distributed")]:
                if key not in now:
                    del kept[key]
            kept.update(now)
            attributes[name] = kept


def has_weights_of_hooks(module: nn.Module) -> bool:
    """Whether a hook of torch makes a weight of a module before each pass, as the older weight and spectral norms do."""
    return any(type(hook).__module__.startswith("torch.nn.utils") for hook in module._forward_pre_hooks.values())


def _origin(hook: Any) -> str:
    """The package that a hook comes from."""
    return _home(hook).split(".")[0]


def _home(hook: Any) -> str:
    """The module that a hook comes from."""
    while hasattr(hook, "func"):
        hook = hook.func
    return str(getattr(hook, "__module__", None) or type(hook).__module__)


@contextmanager
def gradient_hooks_off(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Run the body with no hook on the gradients of these parameters, and put them back."""
    hooked = [(parameter, parameter._backward_hooks) for parameter in parameters if parameter._backward_hooks]
    try:
        for parameter, _ in hooked:
            parameter._backward_hooks = None
        yield
    finally:
        for parameter, hooks in hooked:
            parameter._backward_hooks = hooks


def put_first(optimizer: Optimizer, handle: RemovableHandle) -> None:
    """Let a post hook of an optimizer's steps be called before those that were registered earlier."""
    optimizer._optimizer_step_post_hooks.move_to_end(handle.id, last=False)  # type: ignore[attr-defined]


def put_last(optimizer: Optimizer, handle: RemovableHandle) -> None:
    """Let a pre hook of an optimizer's steps be called after those that were registered later."""
    optimizer._optimizer_step_pre_hooks.move_to_end(handle.id)  # type: ignore[attr-defined]


def operator_name(operator: Any) -> str:
    """What an operator of torch is called, without the name of its overload: ``"aten::mm"``."""
    return operator._schema.name


@cache
def argument_names(operator: Any) -> tuple[str, ...]:
    """The names of the arguments of an operator, in order."""
    return tuple(argument.name for argument in operator._schema.arguments)


@cache
def with_generator(operator: Any) -> Any:
    """The overload of an operator that takes a generator beside the same arguments, which may be itself; None without one."""

    def kinds(one: Any) -> set[tuple[str, str]]:
        return {
            (argument.name, str(argument.type)) for argument in one._schema.arguments if argument.name != "generator"
        }

    many = [operator, *(getattr(operator.overloadpacket, name) for name in operator.overloadpacket.overloads())]
    return next((one for one in many if "generator" in argument_names(one) and kinds(one) == kinds(operator)), None)


def calls_under_way(frame: FrameType | None) -> Iterator[nn.Module]:
    """The modules that are being called in a thread, the innermost first.

    Args:
        frame: the innermost frame of the thread. What stands behind a frame that ``torch.compile`` has torn down is not seen.
    """
    while frame is not None and isinstance(frame.f_code, CodeType):
        if frame.f_code is nn.Module._call_impl.__code__:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                yield module
        frame = frame.f_back


def attributes_of_a_call(module: nn.Module) -> tuple[object, ...]:
    """What a call of a module reads when it begins: by it can be told whether something was in its place meanwhile."""
    own = vars(module)
    return tuple(id(own.get(name)) for name in ("forward", *_HOOKS))


def is_compiled(module: nn.Module) -> bool:
    """Whether a module was compiled, as a whole (``torch.compile``) or in place (``module.compile``)."""
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None


def inside_of_compiled(module: nn.Module) -> nn.Module | None:
    """What ``torch.compile`` was given, if a module is what it returned."""
    return getattr(module, "_orig_mod", None)


def is_flattened(parameter: Tensor) -> bool:
    """Whether FullyShardedDataParallel has made a parameter a part of a flat one, or made it of others."""
    return getattr(parameter, "_fsdp_flattened", False)


def is_followed(optimizer: Optimizer) -> bool:
    """Whether hooks can be registered on the steps of an optimizer: those that only forward to another one have none."""
    return "_optimizer_step_post_hooks" in vars(optimizer) and hasattr(type(optimizer).step, "hooked")


@contextmanager
def steps_followed(optimizer: Optimizer) -> Iterator[None]:
    """Let hooks on the steps of an optimizer be called in the body, also if its class left out ``Optimizer.__init__``."""
    if is_followed(optimizer):
        yield
        return
    own, step = vars(optimizer), optimizer.step
    kept = {name: own[name] for name in (*_STEP_HOOKS, "step") if name in own}
    for name in _STEP_HOOKS:
        own.setdefault(name, OrderedDict())

    def unhooked(self: Optimizer, *args: Any, **settings: Any) -> Any:
        return step(*args, **settings)

    hooked = MethodType(Optimizer.profile_hook_step(unhooked), optimizer)
    own["step"] = hooked
    try:
        yield
    finally:
        if own["step"] is hooked:  # else a scheduler has put its own around it
            for name in (*_STEP_HOOKS, "step"):
                own.pop(name)
            own.update(kept)


_STEP_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that ``torch.compile`` leaves as it is, with all that it calls, also where its caller is compiled."""

    def called(*args: Any) -> Any:
        dynamo = sys.modules.get("torch._dynamo")  # slow to import, and nothing is compiled without it
        return function(*args) if dynamo is None else dynamo.disable(function)(*args)

    return called


def backward_pass() -> int | None:
    """A number of the backward pass that is under way, None outside of one."""
    number = torch._C._current_graph_task_id()
    return None if number < 0 else number


@contextmanager
def checkpoints_off() -> Iterator[None]:
    """Run the body without activation checkpointing.

    Its reentrant kind knows no ``torch.autograd.grad``, and the other one no ``torch.func``. As in the former, nothing has a
    gradient that stands behind a checkpoint none of whose inputs has one.
    """
    module = torch.utils.checkpoint
    kept = module.CheckpointFunction, module._checkpoint_without_reentrant_generator
    module.CheckpointFunction = _Reentrant  # type: ignore[misc, assignment]
    module._checkpoint_without_reentrant_generator = _before_and_after
    try:
        yield
    finally:
        module.CheckpointFunction, module._checkpoint_without_reentrant_generator = kept  # type: ignore[misc]


class _Reentrant:
    """Stands in for ``torch.utils.checkpoint.CheckpointFunction`` and keeps everything."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        attached = any(isinstance(one, Tensor) and one.requires_grad for one in args)
        with torch.set_grad_enabled(torch.is_grad_enabled() and attached):
            return function(*args)


def _before_and_after(*_: Any, **__: Any) -> Iterator[None]:
    yield


def multiply_all_(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply tensors by a number, in place and at once."""
    torch._foreach_mul_(list(tensors), factor)


def storage_key(tensor: Tensor) -> int:
    """A number that all views of one tensor share, and that no other living tensor has."""
    return tensor.untyped_storage()._cdata


def store_of_processes() -> Any:
    """Where the processes of ``torch.distributed`` leave messages for each other without waiting."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def writes_to(function: Any, args: Sequence[Any]) -> list[Tensor]:
    """The arguments that an operator of torch.ops writes in place."""
    schema = function._schema
    if not schema.is_mutable:
        return []
    pairs = zip(schema.arguments, args, strict=False)
    return [
        value for known, value in pairs if isinstance(value, Tensor) and known.alias_info and known.alias_info.is_write
    ]
