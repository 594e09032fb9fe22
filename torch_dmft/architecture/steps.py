"""The calls of one forward pass on features, in order: for comparison with a pass in another mode."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from torch_dmft.architecture.call import Call
from torch_dmft.core.torch_private import parameters_of

_RANDOM = dict.fromkeys(
    re.findall(
        r"\w+",
        "rand randn randint rand_like randn_like randint_like randperm normal uniform bernoulli exponential geometric cauchy "
        "log_normal random multinomial poisson binomial gumbel_softmax fractional_max_pool2d fractional_max_pool3d "
        "fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices",
    )
)
DROPOUTS = (
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_dropout",
    "feature_alpha_dropout",
)


def is_random(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of the torch function with this plain name draws random numbers."""

    def argument(position: int, default: Any, *names: str) -> Any:
        given = (kwargs[one] for one in names if one in kwargs)
        return args[position] if len(args) > position else next(given, default)

    if name in DROPOUTS:
        training = argument(2, not name.endswith("alpha_dropout"), "training", "train")
        return bool(training) and argument(1, 0.5, "p") > 0
    if name == "rrelu":
        return bool(argument(3, False, "training"))
    if name == "scaled_dot_product_attention":
        return argument(4, 0.0, "dropout_p") > 0
    return name in _RANDOM


@dataclass(slots=True)  # not frozen, like calls
class Step:
    """One call on features.

    Attributes:
        path: path of the module that is running.
        name: plain name of the function.
        numbers: the numbers among its arguments, and the size of constant tensors.
        arguments: numbers of the steps that made its arguments; 0 for the data, negative for parameters.
    """

    path: str
    name: str
    numbers: tuple[str, ...]
    arguments: tuple[int, ...]


class Steps:
    """Collects the steps of one pass.

    Attributes:
        taken: the steps.
        random: module and function of every call that drew random numbers, on features or not.
        dropouts: how many of these calls were dropout.
        draws: whether random numbers of python or numpy were drawn, which type checkers draw too.
        outputs: numbers of the steps that made the outputs.
        batch_norms: paths of the modules that took statistics of the batch.
        wrong: module and reason of what else was noticed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.taken: list[Step] = []
        self.random: dict[tuple[str, str], None] = {}
        self.dropouts = 0
        self.draws = False
        self.outputs: tuple[int, ...] = ()
        self.batch_norms: dict[str, None] = {}
        self.wrong: list[tuple[str, str]] = []
        parameters: list[Tensor] = list(parameters_of(model).values())
        self._made = {id(parameter): (parameter, -1 - n) for n, parameter in enumerate(parameters)}

    def begin(self, inputs: list[Tensor]) -> None:
        """Note the data."""
        self._made |= {id(tensor): (tensor, 0) for tensor in inputs}

    def note_random(self, path: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note a call if it draws random numbers."""
        if is_random(name, args, kwargs):
            self.random[path, name] = None
            self.dropouts += name in DROPOUTS

    def note(self, path: str, call: Call) -> None:
        """Note a call if it is one on features or parameters."""
        known = [self._made[id(tensor)][1] for tensor in call.tensors if id(tensor) in self._made]
        results = call.results + call.written
        if not known or not results:
            return
        if call.name == "batch_norm" and call.argument(5, "training", False):
            self.batch_norms[path] = None
        leaves = [*call.args, *call.kwargs.values()]
        numbers = tuple([text for leaf in leaves if (text := self._number(call.name, leaf)) is not None])
        self.taken.append(Step(path, call.name, numbers, tuple(known)))
        for result in results:
            self._made[id(result)] = (result, len(self.taken))

    def finish(self, outputs: list[Tensor]) -> None:
        """Note which steps made the outputs."""
        self.outputs = tuple(self._made.get(id(tensor), (tensor, -1))[1] for tensor in outputs)

    def _number(self, name: str, leaf: Any) -> str | None:
        """How an argument is compared: numbers by value, constant tensors by their norm, anything else not at all."""
        if isinstance(leaf, Tensor):
            # Running statistics change, and masks of integers are not compared.
            if id(leaf) in self._made or not leaf.is_floating_point() or name.endswith("_norm"):
                return None
            return repr(float(leaf.detach().norm()))
        return repr(leaf) if isinstance(leaf, int | float) and not isinstance(leaf, bool) else None
