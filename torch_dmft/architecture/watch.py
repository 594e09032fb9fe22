"""Watch a model run, function by function and module by module, without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from torch_dmft.architecture.axes import SAMPLE
from torch_dmft.architecture.operations import follow
from torch_dmft.architecture.trace import CONSTANT, Call, Trace, Value
from torch_dmft.core.errors import InvalidInputError, Place
from torch_dmft.core.undisturbed import undisturbed

Example = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]

_REFLECTED = {f"{prefix}{name}": name for prefix in "ir" for name in ("add", "sub", "mul", "truediv", "pow", "matmul")}


def plain_name(function: Callable[..., Any]) -> str:
    """The name of a torch function: ``add`` for ``Tensor.__iadd__``, ``relu`` for ``relu_``, ``T`` for ``x.T``."""
    name = getattr(function, "__name__", type(function).__name__)
    if name == "__get__":
        name = getattr(getattr(function, "__self__", None), "__name__", name)
    name = name.strip("_")
    return _REFLECTED.get(name, name)


class _Mode(TorchFunctionMode):
    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        follow(self.trace, Call(func, plain_name(func), tuple(args), kwargs or {}, result))
        return result


@contextmanager
def _module_paths(model: nn.Module, trace: Trace) -> Iterator[None]:
    """Keep ``trace.running`` up to date, and check that layers return what their weight made."""

    def enter(path: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, args: trace.running.append(path)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        use = trace.uses.get(trace.path)
        if use is not None:
            if output is not use.output:
                trace.complain(
                    trace.place("its forward does more than apply its weight once", "do the rest in a module around it")
                )
            use.output = None
        trace.running.pop()

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(enter(path)).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        yield


def watch(model: nn.Module, example: Example, refused: set[str]) -> Trace:
    """Run the model once and take notes.

    Args:
        model: any module; it comes back as it was.
        example: a tensor with samples on its first axis, or a tuple or mapping of the arguments of ``forward``.
        refused: paths of modules that are refused already and need no complaint about what they do inside.

    Returns:
        The notes; complaints about what could not be followed are in ``places``.

    Raises:
        InvalidInputError: if the model fails on the example, or that is no batch.
    """
    if not isinstance(example, Tensor | tuple | list | Mapping):
        raise InvalidInputError(
            "The example input is no batch.",
            got=type(example).__name__,
            remedy="a tensor with samples on its first axis, or a tuple or a dict for several arguments",
        )
    trace = Trace(model, refused)
    args = () if isinstance(example, Mapping) else (example,) if isinstance(example, Tensor) else tuple(example)
    kwargs = dict(example) if isinstance(example, Mapping) else {}
    # With gradients on, a tensor made where the trace cannot see (a custom autograd function) gives itself away.
    with undisturbed(model), _module_paths(model, trace):
        # Copies, because the model may work in place.
        args, kwargs = tree_map(
            lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs)
        )
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                trace.assign(leaf, Value((SAMPLE, *(None,) * (leaf.ndim - 1)) if leaf.ndim else (), serial=0))
        try:
            with _Mode(trace):
                outputs = model(*args, **kwargs)
        except Exception as error:
            raise InvalidInputError(
                f"The model fails on the example input, in {trace.path or 'its own forward'!r}.",
                got=f"{type(error).__name__}: {error}",
                remedy="give an example input that the model accepts (a tuple or a dict for several arguments)",
            ) from error
    _finish(trace, [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()])
    return trace


def _finish(trace: Trace, outputs: list[Tensor]) -> None:
    """Note which axes reach the output, and complain of outputs that cannot be used."""
    if not outputs:
        trace.complain(Place("(output)", "the model returns no floating-point tensor", "return the outputs as tensors"))
    for output in outputs:
        value = trace.value(output)
        trace.settle_sum(value)
        for label in value.dims:
            trace.axes.reach_output(label)
        for path in value.sources:
            trace.heads.add(path)
            if trace.axes.is_fixed(trace.uses[path].out_axis):
                trace.axes.reach_output(trace.uses[path].out_axis)
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
        elif value.serial != trace.serial:
            trace.letters += "x"
    trace.axes.settle()
