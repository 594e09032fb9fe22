"""Kernels of one moment against formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.measurement.cases import Conv, Residual, Tokens
from torch_dmft.core.errors import UnsupportedModelError
from torch_dmft.measurement import capture, measure, snapshot, subject_of
from torch_dmft.measurement.snapshot import output_rows
from torch_dmft.parameterization import parameterize

D, N, P, GAMMA0 = 4, 24, 5, 0.7


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-10 * b.abs().max())


def chain(outputs: int, widths: tuple[int, int] = (N, N)) -> nn.Sequential:
    first, last = widths
    return nn.Sequential(
        nn.Linear(D, first), nn.Tanh(), nn.Linear(first, last), nn.Tanh(), nn.Linear(last, outputs, bias=False)
    ).double()


@pytest.fixture
def inputs(generator: torch.Generator) -> Tensor:
    return torch.randn(P, D, generator=generator, dtype=torch.float64)


def test_dense_tanh_chain_by_hand(inputs: Tensor, generator: torch.Generator) -> None:
    """Phi^l, G^{l+1} and K = sum_l G^{l+1} (Phi^l + 1) in unit form, with no autograd and no hook."""
    model = chain(1)
    plan = parameterize(model, inputs, GAMMA0, generator=generator)
    taken = snapshot(subject_of(plan, inputs), inputs)

    w0, w1 = model[0].weight * math.sqrt(D), model[2].weight * math.sqrt(N)
    w = model[4].weight[0] * GAMMA0 * N
    h1 = inputs @ w0.T / math.sqrt(D) + model[0].bias
    h2 = h1.tanh() @ w1.T / math.sqrt(N) + model[2].bias
    f = h2.tanh() @ w / (GAMMA0 * N)
    g2 = (1 - h2.tanh() ** 2) * w
    g1 = (1 - h1.tanh() ** 2) * (g2 @ w1 / math.sqrt(N))
    phi = [inputs @ inputs.T / D, h1.tanh() @ h1.tanh().T / N, h2.tanh() @ h2.tanh().T / N]
    g = [g1 @ g1.T / N, g2 @ g2.T / N, torch.ones(P, P, dtype=torch.float64)]

    assert close(taken.outputs[:, 0], f)
    for layer, forward, backward, bias in zip(taken.layers, phi, g, (1, 1, 0), strict=True):
        assert close(layer.forward, forward)
        assert close(layer.backward, backward)
        assert close(layer.ntk, backward * (forward + bias))
    assert close(taken.ntk, g[0] * (phi[0] + 1) + g[1] * (phi[1] + 1) + phi[2])
    assert close(taken.layers[0].stream.preactivations(), h1)
    assert close(taken.layers[1].stream.gradient_fields()[:, 0], g2)


def test_several_outputs_and_unequal_widths(inputs: Tensor, generator: torch.Generator) -> None:
    """g^l = gamma0 N_l df_c/dh^l with each layer's own width; the readout's G is the identity over outputs."""
    model = chain(3, (16, N))
    taken = snapshot(subject_of(parameterize(model, inputs, GAMMA0, generator=generator), inputs), inputs)
    h1 = model[0](inputs).detach().requires_grad_()
    outputs = model[1:](h1)
    g1 = torch.stack([torch.autograd.grad(outputs[:, c].sum(), h1, retain_graph=True)[0] for c in range(3)], 1)
    g1 = GAMMA0 * 16 * g1
    assert close(taken.layers[0].backward, torch.einsum("mcn,adn->mcad", g1, g1) / 16)
    identity = torch.eye(3, dtype=torch.float64)[None, :, None, :].expand(P, 3, P, 3)
    assert close(taken.layers[2].backward, identity)
    assert close(taken.ntk, sum(layer.ntk for layer in taken.layers))


def test_convolution_averages_over_positions(generator: torch.Generator) -> None:
    model, images = Conv().double().eval(), torch.randn(3, 3, 7, 6, generator=generator, dtype=torch.float64)
    plan = parameterize(model, images, GAMMA0, generator=generator)
    taken = snapshot(subject_of(plan, images, batch_norm="run"), images)
    by_name = {layer.name: layer for layer in taken.layers}
    rows = images.flatten(2)
    assert close(by_name["stem"].forward, torch.einsum("mip,aip->ma", rows, rows) / (3 * 42))
    x = torch.relu(model.batch(model.stem(images)))
    h = model.grouped(x).detach().requires_grad_()
    outputs = model.head((x + torch.relu(model.group(h))).mean((2, 3)))
    rows, positions = x.detach().flatten(2), h[0, 0].numel()
    assert close(by_name["grouped"].forward, torch.einsum("mip,aip->ma", rows, rows) / (6 * positions))
    g = torch.stack([torch.autograd.grad(outputs[:, c].sum(), h, retain_graph=True)[0] for c in range(2)], 1)
    g = GAMMA0 * 6 * positions * g.flatten(3)
    assert close(by_name["grouped"].backward, torch.einsum("mcip,adip->mcad", g, g) / (6 * positions))


def test_embedding_kernel_is_token_equality(generator: torch.Generator) -> None:
    model, ids = Tokens().double(), torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 3, 3, 3], [6, 5, 4, 3, 2, 1]])
    taken = snapshot(subject_of(parameterize(model, ids, GAMMA0, generator=generator), ids), ids)
    by_name = {layer.name: layer for layer in taken.layers}
    expected = torch.tensor([[6, 3, 0], [3, 6, 1], [0, 1, 6]], dtype=torch.float64) / 6
    assert close(by_name["embed"].forward, expected)
    assert close(by_name["position"].forward, torch.ones(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("samples", [3, 6])
def test_rows_of_samples_are_known_where_no_gradient_flows(samples: int, generator: torch.Generator) -> None:
    """With a zero readout no gradient tells six shared positions from six samples."""
    model, ids = Tokens().double(), torch.randint(0, 7, (samples, 6), generator=generator)
    subject = subject_of(model, ids)
    nn.init.zeros_(model.head.weight)
    start = snapshot(subject, ids)
    assert close(start.layers[1].forward, torch.ones(samples, samples, dtype=torch.float64))
    nn.init.normal_(model.head.weight, generator=generator)
    later, anew = snapshot(subject, ids, layouts=start.layouts), snapshot(subject, ids)
    assert torch.equal(later.ntk, anew.ntk)
    assert torch.equal(later.layers[2].backward, anew.layers[2].backward)


def test_reused_layer_averages_its_uses(inputs: Tensor, generator: torch.Generator) -> None:
    """In-place operations behind each use must not reach what was kept."""
    model = Residual().double()
    taken = snapshot(subject_of(parameterize(model, inputs, GAMMA0, generator=generator), inputs), inputs)
    x1 = torch.relu(model.first(inputs))
    h1 = model.block(x1)
    x2 = torch.tanh(h1 + x1)
    h2 = model.block(x2)
    block = taken.layers[1]
    assert close(block.forward, (x1 @ x1.T + x2 @ x2.T).detach() / 24)
    assert close(block.stream.preactivations(), torch.cat([h1, h2], 1).detach())
    outputs = model.last(torch.tanh(h2 + x2))
    total = 0
    for c in range(2):
        g = torch.autograd.grad(outputs[:, c].sum(), [h1, h2], retain_graph=True)
        total = total + sum((GAMMA0 * 12 * part) @ (GAMMA0 * 12 * part).T / 12 for part in g) / 2
    assert close(block.backward.diagonal(dim1=1, dim2=3).sum(-1), torch.as_tensor(total))


def test_bare_model_is_taken_as_it_is(inputs: Tensor) -> None:
    """Standard parameterization: multipliers 1, gamma0 = 1/sqrt N, so G is O(1)."""
    model = chain(1)
    subject = subject_of(model, inputs)
    assert subject.gamma0 == N**-0.5
    h2 = model[:3](inputs).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model[3:](h2).sum(), h2)
    layer = snapshot(subject, inputs).layers[1]
    assert close(layer.backward, gradient @ gradient.T)
    features = model[:2](inputs).detach()
    assert close(layer.ntk, gradient @ gradient.T * (features @ features.T + 1))


def test_one_forward_pass_serves_measuring_and_training(inputs: Tensor) -> None:
    model = chain(1)
    subject = subject_of(model, inputs)
    model(inputs).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with capture(subject) as taps:
        outputs = model(inputs)
    taken = measure(taps, output_rows(outputs, P), retain_graph=True)
    outputs.square().mean().backward()
    assert all(
        torch.equal(parameter.grad, value) for parameter, value in zip(model.parameters(), expected, strict=True)
    )
    assert close(taken.ntk, snapshot(subject, inputs).ntk)


def test_first_layers_may_be_frozen(inputs: Tensor) -> None:
    model = chain(1)
    whole = snapshot(subject_of(model, inputs), inputs)
    model[:3].requires_grad_(False)
    frozen = snapshot(subject_of(model, inputs), inputs)
    assert all(close(a.backward, b.backward) for a, b in zip(frozen.layers, whole.layers, strict=True))
    assert close(frozen.ntk, whole.layers[2].ntk)


class Overwriting(nn.Module):
    """A frozen weight does not keep its input for the backward pass, so nothing forbids overwriting it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.frozen, self.last = nn.Linear(D, N), nn.Linear(N, N).requires_grad_(False), nn.Linear(N, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        h = self.frozen(x)
        x.add_(h)
        output: Tensor = self.last(torch.tanh(x))
        return output


def test_inputs_may_be_overwritten(inputs: Tensor) -> None:
    model = Overwriting().double()
    layer = snapshot(subject_of(model, inputs), inputs).layers[1]
    x = model.first(inputs).detach()
    assert close(layer.forward, x @ x.T / N)


@pytest.mark.parametrize("fail", [False, True])
def test_no_hook_is_left(inputs: Tensor, fail: bool) -> None:
    model = chain(1)
    subject = subject_of(model, inputs)
    try:
        with capture(subject):
            if fail:
                raise RuntimeError
            model(inputs)
    except RuntimeError:
        pass
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


def test_bypassed_hooks_are_an_error(inputs: Tensor) -> None:
    """What a compiled model does: the layers' hooks never fire."""
    model = chain(1)
    subject = subject_of(model, inputs)
    with pytest.raises(UnsupportedModelError, match="measure the uncompiled module") as caught, capture(subject):
        nn.functional.linear(inputs, model[0].weight)
    assert [place.path for place in caught.value.places] == ["0", "2", "4"]


class Centering(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_samples_that_interact_in_eval_mode_are_refused(inputs: Tensor) -> None:
    model = nn.Sequential(nn.Linear(D, N), Centering(), nn.Tanh(), nn.Linear(N, 1)).double()
    with pytest.raises(UnsupportedModelError, match=r"depend on the others:\s+\S+: .* samples interact"):
        snapshot(subject_of(model, inputs), inputs)


def test_norms_without_averages_have_those_of_the_probe(inputs: Tensor) -> None:
    norm = nn.BatchNorm1d(N, track_running_stats=False)
    model = nn.Sequential(nn.Linear(D, N), norm, nn.Tanh(), nn.Linear(N, 1)).double()
    for batch_norm in ("probe", "run"):
        taken = snapshot(subject_of(model, inputs, batch_norm=batch_norm), inputs)
        assert close(taken.outputs, model(inputs).detach())
        assert any("without running averages" in note for note in taken.notes) == (batch_norm == "run")
    assert norm.running_mean is None


def test_half_precision_is_accumulated_in_float32(inputs: Tensor) -> None:
    model = chain(1)
    exact = snapshot(subject_of(model, inputs), inputs)
    rough = snapshot(subject_of(model.bfloat16(), inputs.bfloat16()), inputs.bfloat16())
    assert rough.ntk.dtype == rough.layers[0].forward.dtype == torch.float32
    assert torch.allclose(rough.ntk.double(), exact.ntk, rtol=0.1, atol=0.05 * float(exact.ntk.abs().max()))
