"""One forward pass of any network, watched; and what the network is made of, as far as one pass tells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from torch_dmft.architecture import Architecture
from torch_dmft.core.errors import Place, UnsupportedModelError
from torch_dmft.core.random_state import random_states
from torch_dmft.core.threads import of_this_thread
from torch_dmft.core.undisturbed import all_graded, undisturbed
from torch_dmft.uses.anatomy import Names, anatomy
from torch_dmft.uses.failures import outputs_on
from torch_dmft.uses.forms import Product
from torch_dmft.uses.outputs import Example, Runs, copied, count, output_rows, rows, tensors
from torch_dmft.uses.ownership import are_alike, copies, mark_per_sample
from torch_dmft.uses.parts import parts
from torch_dmft.uses.watch import Pass, Watch, gradients_of, watching


@dataclass(frozen=True, eq=False)
class Seen:
    """A pass with the products that were found in it.

    Attributes:
        taken: the pass.
        products: in the order in which they ran.
        last: the last one that the outputs depend on.
    """

    taken: Pass
    products: tuple[Product, ...]
    last: Product

    @property
    def forward(self) -> tuple[Product, ...]:
        """The products without those that autograd made inside of the forward pass, the adjoints of others."""
        return tuple(product for product in self.products if not product.use.is_derived)


def look_at(model: nn.Module, run: nn.Module, inputs: Example) -> Architecture:
    """What a model is made of, by one watched pass.

    Raises:
        UnsupportedModelError: if it multiplies nothing with a parameter, or computes with complex ones.
        InvalidInputError: if it fails on the inputs.
    """
    with prepared(model, run), all_graded(model):
        seen = see(model, run, inputs)
    found = anatomy(model, seen.products, seen.last, seen.taken.outputs.shape[1])
    return replace(found, train_differs=draws_in_train_mode(run, inputs))


def see(model: nn.Module, run: nn.Module, inputs: Example, *, notes_steps: bool = False) -> Seen:
    """Watch a pass and find the products in it; for a model that is ``prepared`` and ``all_graded``.

    Raises:
        UnsupportedModelError: if it multiplies nothing with a parameter, or computes with complex ones.
        InvalidInputError: if it fails on the inputs.
    """
    _refuse_complex(model)
    taken = watched_pass(model, run, inputs, notes_steps=notes_steps)
    if any(isinstance(part, Product) and part.weight.ndim > 2 for use in taken.uses for part in parts(use)):
        few = watched_pass(model, run, rows(inputs, [0] * copies(len(taken.outputs))))
        if are_alike(taken, few):
            mark_per_sample(taken, few)
    gradients = gradients_of(taken.outputs.sum(), taken.uses)
    products: list[Product] = []
    last: Product | None = None
    for use, gradient in zip(taken.uses, gradients, strict=True):
        for part in parts(use):
            if isinstance(part, Product):
                products.append(part)
                last = part if gradient is not None else last
    if last is None:
        raise UnsupportedModelError(
            "There is nothing to measure:",
            [Place("(model)", "the outputs depend on no product with a parameter", "a model with a weight")],
        )
    return Seen(taken, tuple(products), last)


def layer_outputs(model: nn.Module, run: nn.Module, inputs: Example) -> dict[str, list[Tensor]]:
    """What every layer puts out on inputs, use by use, by the names that ``anatomy`` gives them."""
    with prepared(model, run), all_graded(model):
        seen = see(model, run, inputs)
    names = Names.of(model)
    called = names.layers(seen.forward)
    found: dict[str, list[Tensor]] = {}
    for product in seen.forward:
        found.setdefault(called[names.key(product)], []).append(product.use.output.detach())
    return found


def draws_in_train_mode(run: nn.Module, inputs: Example) -> tuple[Place, ...]:
    """The network, if its forward pass in train mode is random (dropout); its gradients are then its own secret."""
    devices = {tensor.device for tensor in run.parameters() if tensor.device.type == "cuda"}
    outputs: list[Tensor] = []
    with undisturbed(run):
        for module in run.modules():
            module.training = True
        for _ in range(_PASSES):
            before = random_states(devices)
            try:
                outputs.append(run(copied(inputs)).detach())
            except Exception as error:
                reason = f"it fails on the inputs in train mode: {type(error).__name__}: {error}"
                return (Place("(model)", reason, "let forward do the same in both modes"),)
            if random_states(devices) == before:
                return ()
    # Statistics of a batch are the same in every pass.
    if _is_one(outputs):
        return ()
    paths = _that_draw(run, inputs, devices) or ["(model)"]
    return tuple(
        Place(path, "it draws random numbers in train mode", "set dropout and the like to 0") for path in paths
    )


_PASSES = 4


def _that_draw(run: nn.Module, inputs: Example, devices: Iterable[torch.device]) -> list[str]:
    """The paths of the modules that draw random numbers in train mode themselves, and not in modules inside of them."""
    found: dict[str, None] = {}
    inside: list[tuple[str, object]] = []  # path and the states up to which is known who drew

    def states() -> object:  # numbers of python may be a type checker's doing
        return random_states(devices)[1:]

    def look(state: object) -> None:
        if inside and inside[-1][1] != state:
            found[inside[-1][0]] = None

    def enter(path: str) -> None:
        state = states()
        look(state)
        inside.append((path, state))

    def leave() -> None:
        state = states()
        look(state)
        inside.pop()
        if inside:
            inside[-1] = inside[-1][0], state

    with undisturbed(run), ExitStack() as hooks:
        for path, module in run.named_modules():
            module.training = True
            name = path.removeprefix("model").removeprefix(".") if isinstance(run, Runs) else path
            hooks.callback(
                module.register_forward_pre_hook(of_this_thread(lambda *_, n=name: enter(n or "(model)"))).remove
            )
            hooks.callback(module.register_forward_hook(of_this_thread(lambda *_: leave())).remove)
        run(copied(inputs))
    return list(found)


def _is_one(outputs: list[Tensor]) -> bool:
    return all(torch.equal(one, outputs[0]) for one in outputs)


def watched_pass(
    model: nn.Module, run: nn.Module, inputs: Example, *, attached: bool = False, notes_steps: bool = False
) -> Pass:
    """Run a network once and see every use of its parameters.

    Args:
        model: whose parameters are followed.
        run: maps the inputs to the outputs.
        inputs: they are copied.
        attached: whether gradients are to flow into the inputs, so that they pass through frozen layers.
        notes_steps: whether every operator on features is noted.
    """
    taken = _pass(model, run, inputs, attached=attached, notes_steps=notes_steps)
    if any(use.operator in _RECURRENT for use in taken.uses):  # one operator for a whole network: do it step by step
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
            return _pass(model, run, inputs, attached=attached, notes_steps=notes_steps)
    return taken


_RECURRENT = frozenset({"mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn"})


def _pass(model: nn.Module, run: nn.Module, inputs: Example, *, attached: bool, notes_steps: bool) -> Pass:
    given = copied(inputs)
    leaves = tensors(given)
    if attached:
        given = _attached(given)
        leaves = tensors(given)
    watch = Watch(model, leaves, notes_steps=notes_steps)
    with watching(model, watch):
        outputs = output_rows(outputs_on(run, given), count(given))
        found = watch.finish()
    if watch.steps is None:
        return Pass(outputs, found)
    watch.steps.finish(outputs)
    steps, among, derivatives = tuple(watch.steps.taken), tuple(watch.among), tuple(watch.derivatives)
    return Pass(outputs, found, steps, among, watch.returned, derivatives, tuple(watch.unseen))


def _attached(given: Example) -> Example:
    def grow(leaf: object) -> object:
        is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.requires_grad_() * 1 if is_float and isinstance(leaf, Tensor) else leaf

    found: Example = tree_map(grow, given)
    return found


@contextmanager
def prepared(model: nn.Module, run: nn.Module) -> Iterator[None]:
    """Leave the network as it was, and let nothing of it run compiled."""
    with ExitStack() as stack:
        stack.enter_context(undisturbed(run))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _refuse_complex(model: nn.Module) -> None:
    complex_ones = [name for name, parameter in model.named_parameters() if parameter.is_complex()]
    if complex_ones:
        raise UnsupportedModelError(
            "Complex parameters cannot be measured:",
            [Place(name, "it is complex", "never; write it as two real parameters") for name in complex_ones],
        )
