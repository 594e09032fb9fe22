"""Features that gradients do not follow are no plain chain: every such place is found, and none that only looks like one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from torch_dmft.architecture import Architecture, describe
from torch_dmft.core.errors import UnsupportedModelError


class Middle(nn.Module):
    """A readable place for odd operations: input layer, ``middle``, hidden layer, readout."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(self.middle(self.first(x)))))


def described(middle: Callable[[Tensor], Tensor]) -> Architecture:
    return describe(Middle(middle), torch.randn(5, 3))


def without_gradients(h: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.tanh(h)


def in_place_without_gradients(h: Tensor) -> Tensor:
    with torch.no_grad():
        h.mul_(2)
    return h


def out_argument(h: Tensor) -> Tensor:
    buffer = torch.empty_like(h)
    with torch.no_grad():
        torch.tanh(h, out=buffer)
    return buffer


def inference(h: Tensor) -> Tensor:
    with torch.inference_mode():
        g = torch.tanh(h)
    return h + g.clone()


def hooked(h: Tensor) -> Tensor:
    h = torch.tanh(h)
    h.register_hook(lambda gradient: 2 * gradient)
    return h


def hooked_node(h: Tensor) -> Tensor:
    h = torch.tanh(h)
    h.grad_fn.register_prehook(lambda gradients: tuple(2 * one for one in gradients))
    return h


def by_hand_softmax(h: Tensor) -> Tensor:
    e = torch.exp(h - h.max(-1, keepdim=True).values.detach())
    return e / e.mean(-1, keepdim=True)


def set_data(h: Tensor) -> Tensor:
    h.data = 2 * h.data
    return h


def through_a_view(h: Tensor) -> Tensor:
    h.view(-1).tanh_()
    return h


def through_data(h: Tensor) -> Tensor:
    h.data.mul_(2)
    return h


def through_a_view_of_data(h: Tensor) -> Tensor:
    h.data.view(-1).mul_(2)
    return h


def as_numbers(h: Tensor) -> Tensor:
    return h + torch.from_numpy(h.detach().numpy())


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (lambda h: h.detach(), r"\(model\): `detach` cuts gradients"),
        (lambda h: h.clone().detach_(), "`detach` cuts"),
        (lambda h: torch.tanh(h.data), "`data` cuts"),
        (lambda h: h + torch.tanh(h.detach()), "`detach` cuts"),
        (lambda h: h + (h.sgn() - h).detach(), "`detach` cuts"),
        (lambda h: h * torch.sigmoid(h).detach(), "`detach` cuts"),
        (by_hand_softmax, "`detach` cuts"),
        (without_gradients, "`tanh` without gradients cuts"),
        (lambda h: h + without_gradients(h), "`tanh` without gradients cuts"),
        (in_place_without_gradients, "`mul` without gradients cuts"),
        (out_argument, "`tanh` without gradients cuts"),
        (inference, "`tanh` without gradients cuts"),
        (hooked, "`register_hook` gives a hook"),
        (hooked_node, "`grad_fn` gives a hook"),
        (set_data, "assigning to `data`"),
        (through_a_view, "`linear` reads features that were written in place"),
        (lambda h: [h, h.detach().mul_(2)][0], "`linear` reads features that were written in place"),
        (through_data, "`mul` writes into features by way of `data`"),
        (through_a_view_of_data, "`mul` writes into features by way of `data`"),
        (as_numbers, "`numpy` takes numbers"),
        (lambda h: h * h.square().mean().item(), "`item` takes numbers"),
        (lambda h: h * float(h.abs().mean()), "`float` takes numbers"),
    ],
)
def test_what_cuts_gradients_is_refused_with_its_place(middle: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        described(middle)


class Scaled(nn.Module):
    """A scale that no layer owns, taken out of reach of gradients."""

    def __init__(self, take: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 1)
        self.scale = nn.Parameter(torch.ones(6))
        self.take = take

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)) * self.take(self.scale))


@pytest.mark.parametrize("take", [torch.clone, torch.detach, lambda p: p.data, lambda p: p.double().float()])
def test_a_copy_of_a_parameter_is_that_parameter(take: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedModelError, match="scale: is used by"):
        describe(Scaled(take), torch.randn(5, 3))


def test_a_trained_parameter_without_a_gradient_is_refused() -> None:
    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.aside, self.last = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            self.aside(h)
            return self.last(h)

    with pytest.raises(
        UnsupportedModelError, match=r"aside\.weight.*: is used in the forward pass, but gradients do not reach it"
    ):
        describe(Unread(), torch.randn(5, 3))


def test_what_cannot_be_differentiated_is_refused() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.exp(self.first(x))
            return self.last(h.mul_(2))  # exp needs its own result

    with pytest.raises(UnsupportedModelError, match="its gradient fails: one of the variables needed"):
        describe(Overwrites(), torch.randn(5, 3))


@pytest.mark.parametrize("where", ["module", "parameter"])
def test_hooks_that_see_gradients_are_refused(where: str) -> None:
    model = Middle(torch.tanh)
    if where == "module":
        model.second.register_full_backward_hook(lambda module, inputs, outputs: None)
    else:
        model.second.weight.register_hook(lambda gradient: 2 * gradient)
    with pytest.raises(UnsupportedModelError, match=r"second(\.weight)?: has a gradient hook"):
        describe(model, torch.randn(5, 3))


def test_a_module_that_draws_and_detaches_is_named_by_its_path() -> None:
    class Block(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h.detach()

    with pytest.raises(UnsupportedModelError, match=r"1\.0: `detach` cuts"):
        describe(
            nn.Sequential(nn.Linear(3, 6), nn.Sequential(Block()), nn.Linear(6, 6), nn.Linear(6, 1)), torch.randn(5, 3)
        )


def mask(h: Tensor) -> Tensor:
    return torch.where((h.detach() > 0) & (h.data < 1), h, torch.zeros_like(h))


def logs(h: Tensor) -> Tensor:
    log.append(h.detach())
    log.append(h.detach().square().mean())
    return torch.tanh(h)


log: list[Tensor] = []


@pytest.mark.parametrize("middle", [mask, logs, lambda h: F.relu(h, inplace=True), lambda h: h.flatten(1).relu_()])
def test_harmless_use_of_the_same_functions_is_accepted(middle: Callable[[Tensor], Tensor]) -> None:
    assert len(described(middle).layers) == 3


def test_the_data_may_be_prepared_without_gradients() -> None:
    class Prepared(Middle):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = (x.detach() - x.data.mean().item()).clone()
            return super().forward(x)

    describe(Prepared(torch.tanh), torch.randn(5, 3))


@pytest.mark.parametrize("count", [1, 2])
def test_frozen_parameters_are_no_cut(count: int) -> None:
    model = Middle(torch.tanh)
    for module in (model.first, model.second)[:count]:
        module.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    found = describe(model, torch.randn(5, 3))
    assert found.is_chain
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_a_cut_behind_frozen_parameters_alone_changes_no_gradient_of_a_parameter() -> None:
    model = Middle(without_gradients)
    model.first.requires_grad_(False)
    assert not describe(model, torch.randn(5, 3)).is_chain  # gradients of its features vanish, though
    model.first.requires_grad_(True)
    with pytest.raises(UnsupportedModelError, match="freeze them instead"):
        describe(model, torch.randn(5, 3))


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


@pytest.mark.parametrize("frozen", [False, True])
def test_what_happens_out_of_sight_is_noticed_behind_frozen_parameters_too(frozen: bool) -> None:
    model = Middle(lambda h: h + Twice.apply(h))
    model.first.requires_grad_(not frozen)
    with pytest.raises(UnsupportedModelError, match=r"`add` reads features that .* have a gradient written by hand"):
        describe(model, torch.randn(5, 3))


@pytest.mark.parametrize("zeros", ["last", "second"])
def test_gradients_that_vanish_at_the_start_are_gradients(zeros: str) -> None:
    class Residual(Middle):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            return self.last(h + self.second(h))

    for model in (Middle(torch.tanh), Residual(torch.tanh)):
        for parameter in model.get_submodule(zeros).parameters():
            nn.init.zeros_(parameter)
        assert len(describe(model, torch.randn(5, 3)).layers) == 3


def test_what_is_computed_again_in_the_backward_pass_is_followed_once() -> None:
    class Checkpointed(Middle):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(checkpoint(lambda h: torch.tanh(self.second(h)), self.first(x), use_reentrant=False))

    assert describe(Checkpointed(torch.tanh), torch.randn(5, 3)).is_chain


@pytest.mark.parametrize("frozen", [True, False])
def test_what_a_frozen_weight_read_may_be_overwritten(frozen: bool) -> None:
    class Overwrites(Middle):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            h.add_(self.second(h))
            return self.last(torch.tanh(h))

    model = Overwrites(torch.tanh)
    model.second.requires_grad_(not frozen)
    if frozen:
        assert not describe(model, torch.randn(5, 3)).is_chain
    else:
        with pytest.raises(UnsupportedModelError, match="its gradient fails"):
            describe(model, torch.randn(5, 3))
