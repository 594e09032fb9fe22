"""Watch a model run, function by function and module by module, without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from torch_dmft.architecture.axes import SAMPLE
from torch_dmft.architecture.call import Call, tensors_in
from torch_dmft.architecture.operations import follow
from torch_dmft.architecture.operations.gradients import refuse_changed
from torch_dmft.architecture.steps import Steps
from torch_dmft.architecture.ties import join_axes
from torch_dmft.architecture.trace import CONSTANT, Trace, Value, ancestry
from torch_dmft.core.errors import InvalidInputError, Place
from torch_dmft.core.random_state import random_states
from torch_dmft.core.threads import of_this_thread
from torch_dmft.core.torch_private import NormBase, modules_of, parameters_of
from torch_dmft.core.undisturbed import all_graded, undisturbed

Example = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]

_REFLECTED = {f"{prefix}{name}": name for prefix in "ir" for name in ("add", "sub", "mul", "truediv", "pow", "matmul")}


@lru_cache(maxsize=1024)
def plain_name(function: Callable[..., Any]) -> str:
    """The name of a torch function: ``add`` for ``Tensor.__iadd__``, ``relu`` for ``relu_``, ``T`` for ``x.T``."""
    name = getattr(function, "__name__", type(function).__name__)
    if name == "__get__":
        name = getattr(getattr(function, "__self__", None), "__name__", name)
    name = name.strip("_")
    return _REFLECTED.get(name, name)


class _Mode(TorchFunctionMode):
    """Hands every call of a torch function on to the notes.

    Attributes:
        running: paths of the modules that are running, outermost first.
        steps: where every call is noted.
        trace: where what is known of tensors is noted; None if the steps are enough.
    """

    def __init__(self, running: list[str], steps: Steps | None, trace: Trace | None = None) -> None:
        super().__init__()
        self.running, self.steps, self.trace = running, steps, trace

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, path = plain_name(func), self.running[-1] if self.running else ""
        if self.steps is not None:
            self.steps.note_random(path, name, args, kwargs)
        tensors = tensors_in(args) + tensors_in(kwargs) if kwargs else tensors_in(args)
        if not tensors:
            return func(*args, **kwargs)
        if self.trace is not None:
            refuse_changed(self.trace, name, self.trace.changed(tensors))
        call = Call.made(func, name, args, kwargs, tensors)
        if self.steps is not None:
            self.steps.note(path, call)
        if self.trace is not None:
            follow(self.trace, call)
        return call.result


@contextmanager
def _module_paths(model: nn.Module, running: list[str], trace: Trace | None = None) -> Iterator[None]:
    """Keep ``running`` up to date, and check that layers return what their weight made."""
    paths = {id(module): path for path, module in modules_of(model)}

    def enter(module: nn.Module, args: Any) -> None:
        if id(module) in paths:
            running.append(paths[id(module)])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if id(module) not in paths:
            return
        use = None if trace is None else trace.uses.get(trace.path)
        if trace is not None and use is not None:
            if output is not use.output:
                reason = "its forward does more than apply its weight once"
                trace.complain(trace.place(reason, "do the rest in a module around it"))
            use.output = None
        running.pop()

    # One hook for all modules, as those of each module would take longer to set than the model takes to run.
    enter, leave = of_this_thread(enter), of_this_thread(leave)
    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _copied(example: Example) -> tuple[tuple[Any, ...], dict[str, Any], list[Tensor]]:
    """The arguments of ``forward``, copied because the model may work in place, and the tensors among them."""
    if not isinstance(example, Tensor | tuple | list | Mapping):
        raise InvalidInputError(
            "The example input must be a batch.",
            got=type(example).__name__,
            remedy="a tensor with samples on its first axis, or a tuple or a dict for several arguments",
        )
    args = () if isinstance(example, Mapping) else (example,) if isinstance(example, Tensor) else tuple(example)
    kwargs = dict(example) if isinstance(example, Mapping) else {}
    args, kwargs = tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    return args, kwargs, [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]


def watch(
    model: nn.Module,
    example: Example,
    refused: set[str],
    steps: Steps | None = None,
    *,
    gradients: bool = True,
    growing: Sequence[int | None] | None = None,
) -> Trace:
    """Run the model once, in evaluation mode, and take notes.

    Args:
        model: any module; it comes back as it was.
        example: a tensor with samples on its first axis, or a tuple or mapping of the arguments of ``forward``.
        refused: paths of modules that are refused already and need no complaint about what they do inside.
        steps: where to note its steps, too.
        gradients: whether to run the model backward too, to see that every trained parameter has a gradient.
        growing: which axes grow where a width is laid out in parts, see ``Trace``.

    Returns:
        What is known of its tensors; complaints about what could not be followed are in ``places``.

    Raises:
        InvalidInputError: if the model fails on the example, or the example is not a batch.
    """
    args, kwargs, inputs = _copied(example)
    trace = Trace(model, refused, growing)
    if steps is not None:
        steps.begin(inputs)
    with undisturbed(model):
        for leaf in inputs:
            trace.assign(leaf, Value((SAMPLE, *(None,) * (leaf.ndim - 1)) if leaf.ndim else (), serial=0))
        before = random_states()[:2]
        trace.samples = next((len(leaf) for leaf in inputs if leaf.ndim), 0)
        try:
            with (
                all_graded(model),
                _module_paths(model, trace.running, trace),
                _Mode(trace.running, steps, trace),
            ):
                outputs = model(*args, **kwargs)
        except Exception as error:
            raise InvalidInputError(
                f"The model fails on the example input, in {trace.path or 'its own forward'!r}.",
                got=f"{type(error).__name__}: {error}",
                remedy="give an example input that the model accepts (a tuple or a dict for several arguments)",
            ) from error
        if steps is not None:
            steps.draws = random_states()[:2] != before
        leaves = _floats(outputs)
        _finish(trace, leaves)
        if gradients and not trace.places:
            _check_gradients(trace, leaves, example)
    if steps is not None:
        steps.finish(leaves)
    return trace


def watch_training(model: nn.Module, example: Example) -> list[Steps]:
    """Run the model in train mode, norm layers apart, and note its steps.

    Once, unless random numbers of python or numpy were drawn; that may decide what is run (or be a type checker's doing), and
    then several passes, which draw different numbers, tell.
    """
    passes: list[Steps] = []
    with undisturbed(model):
        for _, module in modules_of(model):
            module.training = not isinstance(module, NormBase)
        for _ in range(_PASSES):
            before = random_states()[:2]
            passes.append(_in_train_mode(model, example))
            passes[-1].draws = random_states()[:2] != before
            if not passes[-1].draws:
                break
    return passes


_PASSES = 4


def _in_train_mode(model: nn.Module, example: Example) -> Steps:
    args, kwargs, inputs = _copied(example)
    steps, running = Steps(model), list[str]()
    steps.begin(inputs)
    before = random_states().torch
    with _module_paths(model, running):
        try:
            with _Mode(running, steps):
                outputs = model(*args, **kwargs)
        except Exception as error:
            where = running[-1] if running else ""
            steps.wrong.append((where, f"it fails on the example input in train mode: {type(error).__name__}: {error}"))
            return steps
    steps.finish(_floats(outputs))
    if not steps.random and random_states().torch != before:
        steps.wrong.append(("", "it draws random numbers in train mode"))
    return steps


def _floats(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _finish(trace: Trace, outputs: list[Tensor]) -> None:
    """Note which axes reach the output, and complain of outputs that cannot be used."""
    if not outputs:
        trace.complain(
            Place("(output)", "the model must return a floating-point tensor", "return the outputs as tensors")
        )
    values = [trace.value(output) for output in outputs]
    for output, value in zip(outputs, values, strict=True):
        trace.settle(value)
        for label in value.dims:
            trace.axes.reach_output(label)
        if not output.isfinite().all():
            trace.complain(
                Place(
                    "(output)",
                    "it is NaN or infinite on the example input",
                    "check the example and the initial weights",
                )
            )
        if value.serial == CONSTANT:
            trace.complain(
                Place(
                    "(output)", "its origin could not be followed", "use torch functions, not custom autograd or numpy"
                )
            )
        elif value.serial != trace.serial or not output.ndim or len(output) != trace.samples:
            trace.letters += "x"
    refuse_changed(trace, "(output)", trace.changed(outputs))
    for value in ancestry(values, past_weights=False):
        if value.source is not None:
            trace.heads.add(value.source)
            if trace.axes.is_fixed(trace.uses[value.source].out_axis):
                trace.axes.reach_output(trace.uses[value.source].out_axis)
    for value in ancestry(values, past_weights=True):
        if value.cut is not None:
            trace.complain(value.cut)
    if trace.scalars:
        weights = [value for value in ancestry(values, past_weights=False) if value.source is not None]
        ahead = {
            id(value) for value in ancestry([one for value in weights for one in value.made_from], past_weights=True)
        }
        trace.inside = {name for name, value in trace.scalars.items() if id(value) in ahead}
    trace.outputs = sum(output.numel() for output in outputs) // max(1, trace.samples)
    join_axes(trace)
    trace.axes.settle()


def _check_gradients(trace: Trace, outputs: list[Tensor], example: Example) -> None:
    """Complain of every trained parameter that was reached in the forward pass without receiving a gradient."""
    named = [
        (name, parameter)
        for name, parameter in parameters_of(trace.model).items()
        if id(parameter) in trace.trained and id(parameter) in trace.used
    ]
    parameters = [parameter for _, parameter in named]
    try:
        try:
            gradients = _gradients(outputs, parameters)
        except RuntimeError:
            if all(parameter.requires_grad for parameter in trace.model.parameters()):
                raise
            # What a frozen weight read may be overwritten, but not while everything has gradients.
            args, kwargs, _ = _copied(example)
            gradients = _gradients(_floats(trace.model(*args, **kwargs)), parameters)
    except RuntimeError as error:
        trace.complain(Place("(output)", f"its gradient fails: {error}", "use differentiable functions"))
        return
    for (name, _), gradient in zip(named, gradients, strict=True):
        if gradient is None:
            reason = "is used in the forward pass, but gradients do not reach it"
            fix = "let the output depend on it by differentiable functions, or remove it"
            trace.complain(Place(name, reason, fix))


def _gradients(outputs: list[Tensor], parameters: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    """Gradients of the sum of the outputs; None where an output does not depend on a parameter."""
    attached = [output.sum() for output in outputs if output.requires_grad]
    if not parameters or not attached:
        return (None,) * len(parameters)
    return torch.autograd.grad(attached, parameters, allow_unused=True)
