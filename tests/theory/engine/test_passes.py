"""A pass written out gives what autograd gives: outputs, kernels and gradients, of finite and of infinite networks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from torch_dmft import parameterize
from torch_dmft.measurement import subject_of
from torch_dmft.parameterization import Plan
from torch_dmft.theory.chain import Chain, HiddenLayer
from torch_dmft.theory.engine.passes import AutogradPass, ChainPass, Passes
from torch_dmft.theory.engine.twin import infinite_width

INPUTS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _network(chain: Chain) -> Plan:
    torch.manual_seed(1)
    return parameterize(chain.build(24).to(INPUTS), INPUTS, gamma0=0.7)


def _twin(chain: Chain) -> Plan:
    names = [str(2 * index) for index in range(chain.depth)]
    stds = dict.fromkeys(names, 0.3) if chain.hidden[0].bias_std is not None else {}
    return infinite_width(chain.build, INPUTS, gamma0=0.7, neurons=256, bias_std=stds)


def _trained_a_little(plan: Plan) -> None:
    """So that every parameter, the learned parts of the twin too, is something else than zero."""
    for step in range(3):
        one = ChainPass(Passes(subject_of(plan, INPUTS)), INPUTS)
        one.backward(torch.sin(one.outputs + step))
        with torch.no_grad():
            for rule in plan.rules:
                parameter = plan.model.get_parameter(rule.name)
                assert parameter.grad is not None  # set by backward
                parameter -= 0.1 * rule.lr * parameter.grad


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("bias_std", [None, 0.3])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("make", [_network, _twin])
def test_equals_autograd(make, outputs, bias_std, measured):
    hidden = (HiddenLayer("tanh", bias_std=bias_std), HiddenLayer("gelu", bias_std=bias_std))
    plan = make(Chain(4, hidden, outputs, readout_bias=bias_std is not None))
    _trained_a_little(plan)
    passes = Passes(subject_of(plan, INPUTS))
    written, traced = passes(INPUTS, measured=measured), AutogradPass(passes, INPUTS, measured=measured)
    assert isinstance(written, ChainPass)
    torch.testing.assert_close(written.outputs, traced.outputs)
    if measured:
        found, exact = written.measure(), traced.measure()
        torch.testing.assert_close(found.ntk, exact.ntk)
        for layer, expected in zip(found.layers, exact.layers, strict=True):
            for kernel in ("forward", "backward", "ntk"):
                torch.testing.assert_close(getattr(layer, kernel), getattr(expected, kernel))
            torch.testing.assert_close(layer.stream.preactivations(), expected.stream.preactivations())
            torch.testing.assert_close(layer.stream.gradient_fields(), expected.stream.gradient_fields())
    error = torch.cos(written.outputs)
    error[-1] = 0  # a test row
    gradients = []
    for one in (written, traced):
        one.backward(error)
        gradients.append({name: copy.copy(p.grad) for name, p in plan.model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=lambda text, name=name: f"{name}: {text}")


def test_other_networks_are_left_to_autograd():
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 1)).to(INPUTS)
    passes = Passes(subject_of(parameterize(model, INPUTS), INPUTS))
    assert isinstance(passes(INPUTS, measured=True), AutogradPass)
