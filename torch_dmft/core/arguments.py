"""What a public function is given is what its annotations say, or it is refused before any work.

Annotations are the one place where types of arguments are told: the reader sees them, mypy checks the callers that are
written in the package, and ``checked`` those of its users. Beside its type a value has to be one that numbers can be made of:

    float            finite, and below 1e15 in size: its square, and products with widths, stay numbers in float32
    int              below 2^63, as torch stores it; no bool, no 3.0
    Tensor           dense, with numbers (not on the meta device), and real; in ``Example`` complex ones too
    nn.Module        not scripted: what happens inside of a ScriptModule cannot be followed

Of results, which the package makes and users seldom do, the types are checked alone (``typed``): a score may be infinite.
Ranges of single settings (``gamma0 > 0``) are checked by ``core.numbers``.
"""

from __future__ import annotations

import builtins
import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from numbers import Integral, Real
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import torch
from torch import Tensor, nn

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import LARGEST, MOST, is_usual, shown

_P = ParamSpec("_P")
_T = TypeVar("_T")
_EXAMPLE = (
    "a tensor with samples on its first axis, or a tuple or mapping of the arguments of forward; torch.as_tensor(...) of an "
    "array"
)

_REMEDIES = {
    "record": "record=range(0, steps + 1, 10)",
    "lr": f"a plain Python number, or one for every step, finite and at most {LARGEST:g} in size",
    "batches": "for every step a tensor of integers, the rows that it sees",
    "Plan": "plan = parameterize(model, example_input)",
    "Module": "an nn.Module",
    "Example": _EXAMPLE,
    "Probe": "Probe(inputs, targets)",
    "Problem": "recorder.problem() of a run, Problem.like(plan, probe, ...) or Problem.mlp(...)",
    "Solver": "a method with its settings, such as solvers.StaticNTK()",
    "Trajectory": "recorder.trajectory() for the network, solve(problem) for a prediction, each an argument by itself",
    "Comparison": "compare(measured, predicted)",
    "Recorder": "Recorder(plan, probe)",
    "Training": "trajectory.training, or Training.sgd(lr, steps)",
    "Architecture": "describe(model, example_input)",
    "Optimizer": "torch.optim.SGD(plan.param_groups(lr)), or any other of torch.optim",
    "Generator": "torch.Generator().manual_seed(0)",
    "DataLoader": "torch.utils.data.DataLoader(dataset, batch_size=...)",
    "Dataset": "a torch.utils.data.Dataset of pairs (input, target)",
    "Loss": "a function loss(outputs, targets) -> scalar, or an instance: nn.MSELoss()",
    "Roles": 'a dictionary from module paths to roles, such as {"head": "readout"}',
    "Wider": "the model at another width, or a function width -> model",
    "Factory": "a function width -> model",
    "Schedule": "a function step -> bool, such as log_spaced(50), or the steps themselves",
    "Selection": "a key, an index or a function of what the model returns",
    "Observable": "a function of a trajectory, such as lambda run: run.outputs[-1]",
    "Callable": "a function",
    "Kernel": "trajectory.ntk, a layer's forward or backward, or Kernel(array)",
    "Tensor": "torch.as_tensor(...), dense and with numbers",
    "Sequence": "a list of them",
    "Iterable": "a list of them",
    "tuple": "a tuple of them",
    "Mapping": "a dictionary of them",
    "bool": "True or False",
    "float": f"a plain Python number, finite and at most {LARGEST:g} in size",
    "int": "a plain Python integer >= 0 and below 2**63",
    "Literal": "one of these words",
    "Path": "a path, as text or pathlib.Path",
    "str": "text in quotes",
    "device": '"cpu" or "cuda"',
}
"""What helps, by the first of these that is the name of the argument, or is in its annotation."""


_OPERATORS = {"__call__", "__getitem__", "__matmul__"}
"""What users call without naming it."""
_LATER = {"Plan", "Probe", "Problem"}
"""Classes that modules import for annotations alone, as they live on a floor above or are slow to import."""


def checked(public: Callable[_P, _T]) -> Callable[_P, _T]:
    """A function, or a class by its constructor and its public methods, that refuses what its annotations do not say.

    Raises:
        InvalidInputError: when it is called, for the first such argument.
    """
    return _by_methods(public, usual=True) if isinstance(public, type) else _checked(public)


def typed(result: type[_T]) -> type[_T]:
    """A class of results: as ``checked``, but numbers given to its constructor may have any size, infinity and NaN included."""
    return _by_methods(result, usual=False)


def checks_itself(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """A method of such a class that refuses wrong arguments in words of its own, which help more than the annotations do."""
    method.checks_arguments = True  # type: ignore[attr-defined]
    return method


def _by_methods(noun: type[_T], *, usual: bool) -> type[_T]:
    noun.__init__ = _checked(noun.__init__, noun, usual=usual)  # type: ignore[method-assign]
    for name, member in list(vars(noun).items()):
        method = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        is_public = not name.startswith("_") or name in _OPERATORS
        if is_public and inspect.isfunction(method) and not hasattr(method, "checks_arguments"):
            refusing = _checked(method)
            setattr(noun, name, refusing if method is member else type(member)(refusing))
    return noun


def _checked(public: Callable[_P, _T], of: type | None = None, *, usual: bool = True) -> Callable[_P, _T]:
    arguments: _Arguments | None = None

    @wraps(public)
    def check(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        nonlocal arguments
        if arguments is None:  # annotations may name what is defined later
            arguments = _Arguments(public, of, usual=usual)
        for argument, name, value in arguments.given(args, kwargs):
            argument.check(name, value)
        return public(*args, **kwargs)

    check.checks_arguments = True  # type: ignore[attr-defined]
    return check


class _Argument:
    """One parameter: its name, its annotation as it is written, and the type that it stands for."""

    def __init__(self, name: str, annotation: str, names: Mapping[str, Any], *, usual: bool) -> None:
        self.name, self.annotation = name, annotation
        self.words = re.findall(r"[A-Za-z_]+", annotation)
        self.fits = _test_of(eval(annotation, {}, names), usual)
        self.holds_tensors = not {"Example", "Tensor"}.isdisjoint(self.words)
        self.holds_modules = not {"Module", "Wider"}.isdisjoint(self.words)

    def check(self, name: str, value: object) -> None:
        """Refuse a value of another type, or one that no numbers can be made of, by the name that it was given by."""
        if not self.fits(value):
            raise self._refusal(name, f"`{name}` must be of type {self.annotation}.", value, None)
        if "Example" in self.words and next((not len(one) for one in _tensors(value) if one.ndim), False):
            raise self._refusal(name, f"`{name}` must hold at least one sample.", value, None)
        if isinstance(value, nn.Module):
            if isinstance(value, torch.jit.ScriptModule):
                raise self._refusal(
                    name,
                    f"`{name}` must be a module of Python code, as what a scripted one does cannot be followed.",
                    value,
                    "the module that was given to torch.jit.script or torch.jit.trace",
                )
        elif self.holds_tensors or isinstance(value, Tensor):
            for tensor in _tensors(value):
                self._check_tensor(name, tensor)

    def _check_tensor(self, name: str, tensor: Tensor) -> None:
        require_dense(name, tensor)
        if tensor.is_complex() and "Example" not in self.words:
            raise self._refusal(name, f"`{name}` must be real.", tensor, f"{name}.real, or torch.view_as_real(...)")

    def _refusal(self, name: str, what: str, value: object, remedy: str | None) -> InvalidInputError:
        usual = next((text for word, text in _REMEDIES.items() if word in (name, *self.words)), None)
        return InvalidInputError(what, got=f"{name}={_shown(value)}", remedy=remedy or usual or "see the annotation")


class _Arguments:
    """The parameters of a function that are annotated."""

    def __init__(self, function: Callable[..., Any], of: type | None, *, usual: bool) -> None:
        names = _Names(inspect.unwrap(function).__globals__)
        for base in () if of is None else reversed(of.__mro__):  # whose fields a dataclass inherits
            names.update(vars(sys.modules[base.__module__]))
        kinds = inspect.Parameter
        self.by_position: list[_Argument | None] = []
        self.by_name: dict[str, _Argument] = {}
        self.rest: _Argument | None = None
        self.others: _Argument | None = None
        for one in inspect.signature(function).parameters.values():
            known = isinstance(one.annotation, str) and one.annotation not in ("Any", "object")
            argument = _Argument(one.name, one.annotation, names, usual=usual) if known else None
            if one.kind is kinds.VAR_POSITIONAL:
                self.rest = argument
            elif one.kind is kinds.VAR_KEYWORD:
                self.others = argument
            else:
                if one.kind is not kinds.KEYWORD_ONLY:
                    self.by_position.append(argument)
                if argument is not None:
                    self.by_name[one.name] = argument

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[_Argument, str, Any]]:
        """Every argument with its name and value; those that there are too many of are Python's to refuse."""
        for place, value in enumerate(args):
            argument = self.by_position[place] if place < len(self.by_position) else self.rest
            if argument is not None:
                yield argument, argument.name, value
        for name, value in kwargs.items():
            argument = self.by_name.get(name, self.others)
            if argument is not None:
                yield argument, name, value


class _Names(dict[str, Any]):
    """The names of a module; classes that it imports for annotations alone are known by their name."""

    def __missing__(self, name: str) -> Any:
        return _called(name) if name in _LATER else getattr(builtins, name)


def _called(name: str) -> type:
    """A class of which every class with this name is one."""

    def is_one(cls: type, value: object) -> bool:
        return any(base.__name__ == name for base in type(value).__mro__)

    return type("_Called", (type,), {"__instancecheck__": is_one})(name, (), {})


def require_dense(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is sparse, nested or quantized, or is on the meta device.

    Raises:
        InvalidInputError: saying where it is, and how it is laid out.
    """
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_nested or tensor.is_quantized:
        raise InvalidInputError(
            f"`{name}` must be dense and hold numbers.",
            got=f"{name}={_shown(tensor)}",
            remedy="tensor.to_dense() of a sparse tensor, and data in place of a tensor on the meta device",
        )


def require_places(name: str, places: Tensor, count: int) -> None:
    """Refuse anything but positions along an axis: ``(kept,)`` integers in 0..count - 1, at least one.

    Raises:
        InvalidInputError: naming the range.
    """
    whole = places.dtype in (torch.int64, torch.int32) and places.ndim == 1 and len(places) > 0
    if not whole or int(places.min()) < 0 or int(places.max()) >= count:
        raise InvalidInputError(
            f"`{name}` must hold positions.",
            got=f"{places.flatten().tolist()[:8]} of {places.dtype}, shape {tuple(places.shape)}",
            remedy=f"a tensor of integers 0..{count - 1} with one axis; mask.nonzero().flatten() of a mask",
        )


def require_rows(name: str, values: Tensor, count: int) -> None:
    """Refuse numbers that are not finite, or that have other rows than there are samples.

    Raises:
        InvalidInputError: naming the first row that is not finite, or both lengths.
    """
    if values.ndim == 0 or len(values) != count:
        raise InvalidInputError(
            f"`{name}` must have one row per sample.",
            got=f"shape {tuple(values.shape)} for {count} samples",
            remedy=f"{name} of shape (sample, ...), the same samples as those of the inputs",
        )
    require_finite(name, values)


def require_finite(name: str, values: Tensor) -> None:
    """Refuse rows with NaN or infinity.

    Raises:
        InvalidInputError: naming the first.
    """
    if not values.numel() or not (values.is_floating_point() or values.is_complex()):
        return
    bad = (~torch.isfinite(values)).reshape(len(values) if values.ndim else 1, -1).any(1).nonzero()
    if len(bad):
        raise InvalidInputError(
            f"The {name} must be finite.",
            got=f"NaN or infinity in row {int(bad[0])} (and {len(bad) - 1} more)",
            remedy="clean the data first",
        )


def _test_of(hint: Any, usual: bool) -> Callable[[Any], bool]:
    """The test whether a value is of a type, and a number of a usual size if it has to be; made once, as values are many."""
    if hint is Any or hint is object or isinstance(hint, TypeVar):
        return lambda value: True
    if hint is None or hint is type(None):
        return lambda value: value is None
    if hint is bool:
        return lambda value: isinstance(value, bool)
    if hint is int:
        return lambda value: isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) < MOST
    if hint is float:
        return lambda value: isinstance(value, Real) and not isinstance(value, bool) and (not usual or is_usual(value))
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Callable:
        return callable
    if origin is Literal:
        return lambda value: any(type(value) is type(part) and value == part for part in parts)
    if hasattr(hint, "array_type"):  # of jaxtyping; shapes are told by the function itself
        return lambda value: isinstance(value, hint.array_type)
    if origin is None:
        noun = os.PathLike if hint is os.PathLike else hint
        return lambda value: isinstance(value, noun)
    if origin in (Union, types.UnionType):
        tests = [_test_of(part, usual) for part in parts]
        return lambda value: any(test(value) for test in tests)
    return _test_of_many(origin, parts, usual)


def _test_of_many(origin: type, parts: tuple[Any, ...], usual: bool) -> Callable[[Any], bool]:
    """The same of what holds several values."""
    is_record = origin is tuple and (len(parts) != 2 or parts[1] is not ...)
    tests = [_test_of(part, usual) for part in parts if part is not ...]

    def fits(value: Any) -> bool:
        if not isinstance(value, (tuple, list) if origin is tuple else origin):
            return False
        if isinstance(value, Mapping):
            return len(tests) == 2 and all(tests[0](key) and tests[1](one) for key, one in value.items())
        if isinstance(value, str | bytes):  # a word is no list of its letters
            return False
        if origin is not tuple and not isinstance(value, list | tuple):
            return True  # a range, a generator, an array
        several: Any = value
        if is_record:
            return len(several) == len(tests) and all(test(one) for test, one in zip(tests, several, strict=True))
        return not tests or all(map(tests[0], several))

    return fits


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors of a structure of lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif type(value) in (tuple, list):
        for one in value:  # type: ignore[attr-defined]
            yield from _tensors(one)


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        shape = "nested" if value.is_nested else f"of shape {tuple(value.shape)}"
        return f"a tensor {shape}, {value.dtype}, {value.layout} on {value.device}"
    return f"{shown(value)} ({type(value).__name__})"
