"""What torch keeps private is used in one file."""

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from torch_dmft.core import torch_private

PACKAGE = Path(torch_private.__file__).parents[1]
OWN = Path(torch_private.__file__)
PRIVATE = set(re.findall(r"(?:\.|\"|import )(_[A-Za-z]\w+)", OWN.read_text()))


def test_the_list_is_seen() -> None:
    assert {"_ConvNd", "_backward_hooks", "_foreach_mul_", "_compiled_call_impl"} <= PRIVATE


@pytest.mark.parametrize("path", sorted(set(PACKAGE.rglob("*.py")) - {OWN}), ids=lambda path: path.name)
def test_no_other_file_uses_private_names(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            allowed = {"_pytree"}  # torch.utils._pytree, which torch's own documentation tells to use
            assert not {name.name for name in node.names if name.name.startswith("_")} - allowed
        if isinstance(node, ast.Attribute):
            assert node.attr not in PRIVATE


def test_they_do_what_is_said() -> None:
    convolution, linear = nn.Conv2d(1, 1, 3, padding=(1, 2)), nn.Linear(2, 2)
    assert list(torch_private.padding_twice(convolution)) == [2, 2, 1, 1]
    assert not torch_private.has_backward_hooks(linear)
    assert not torch_private.has_backward_hooks(linear.weight)
    linear.weight.register_hook(lambda gradient: gradient)
    assert torch_private.has_backward_hooks(linear.weight)
    linear.register_full_backward_pre_hook(lambda *_: None)
    assert torch_private.has_backward_hooks(linear)
    assert not torch_private.is_compiled(linear)
    linear.compile(backend="eager")
    assert torch_private.is_compiled(linear)
    torch_private.multiply_all_([linear.weight.data], 0.0)
    assert not linear.weight.any()


def test_modules_and_parameters_are_those_that_torch_lists() -> None:
    shared = nn.Linear(2, 2)
    inner = nn.Sequential(shared, nn.BatchNorm1d(2, affine=False))
    model = nn.ModuleDict(
        {"a": inner, "b": nn.Sequential(nn.LayerNorm(2), shared), "c": nn.Bilinear(2, 2, 2, bias=False)}
    )
    model["b"][0].weight = inner[0].bias  # one parameter under two names
    model["a"].register_module("none", None)
    assert torch_private.modules_of(model) == list(model.named_modules())
    assert torch_private.modules_of(model, once=False) == list(model.named_modules(remove_duplicate=False))
    found = torch_private.parameters_of(model)
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert all(found[name] is parameter for name, parameter in model.named_parameters())
    for module in model.modules():
        assert list(torch_private.own_parameters(module)) == [n for n, _ in module.named_parameters(recurse=False)]
        assert list(torch_private.own_buffers(module)) == [n for n, _ in module.named_buffers(recurse=False)]


def test_steps_of_a_class_that_calls_no_init_are_followed_for_a_while() -> None:
    class Own(torch.optim.Optimizer):
        def __init__(self) -> None:
            self.count = 0

        def step(self, closure: None = None) -> None:
            self.count += 1

    optimizer, seen = Own(), []
    assert not torch_private.is_followed(optimizer)
    with torch_private.steps_followed(optimizer):
        optimizer.register_step_post_hook(lambda *_: seen.append(1))
        optimizer.step()
    optimizer.step()
    assert (optimizer.count, seen, vars(optimizer)) == (2, [1], {"count": 2})


def test_a_backward_pass_is_known_from_within() -> None:
    x = torch.ones(2, requires_grad=True)
    found = []
    x.register_hook(lambda _: found.append(torch_private.backward_pass()))
    for _ in range(2):
        x.sum().backward()
    assert torch_private.backward_pass() is None
    assert None not in found
    assert found[0] != found[1]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_keep_everything_for_a_while(use_reentrant: bool) -> None:
    x, calls = torch.ones(2, requires_grad=True), []

    def run(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x.exp()

    with torch_private.checkpoints_off():
        y = checkpoint(run, x, use_reentrant=use_reentrant)
        torch.autograd.grad(y.sum(), x)
    assert len(calls) == 1
    checkpoint(run, x, use_reentrant=use_reentrant).sum().backward()
    assert len(calls) == 3
