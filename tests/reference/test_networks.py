"""Every option of the oracle against one plain module (exact), and its kernels at step 0 against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.reference.ensembles import extrapolate, z_scores
from tests.reference.networks import Chain, Training, initialise, train
from tests.reference.plain_module import PlainModule, train_module

WIDTH = 12
BASE = Chain(depth=3)


def regression(generator: torch.Generator, **options: Any) -> Training:
    inputs = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(3, 1, generator=generator, dtype=torch.float64)
    return Training(inputs[:3], targets, lr=0.2, steps=4, test_inputs=inputs[3:], **options)


def classification(generator: torch.Generator, **options: Any) -> Training:
    task = regression(generator, loss=nn.CrossEntropyLoss(), **options)
    return replace(task, targets=torch.tensor([2, 0, 1]))


BATCHES = [torch.tensor(rows) for rows in ([0], [1, 2], [2, 0], [1])]

CASES: dict[str, tuple[Chain, Callable[..., Training], dict[str, Any]]] = {
    "plain": (BASE, regression, {}),
    "one hidden layer": (replace(BASE, depth=1), regression, {}),
    "gamma0": (replace(BASE, gamma0=0.3), regression, {}),
    "gain and relu": (replace(BASE, gain=math.sqrt(2), activation=torch.relu), regression, {}),
    "biases from zero": (replace(BASE, bias_std=0.0), regression, {}),
    "random biases": (replace(BASE, bias_std=0.7, gain=1.3), regression, {}),
    "three outputs": (replace(BASE, outputs=3), classification, {}),
    "centered": (replace(BASE, gamma0=0.1), regression, {"centered": True, "batches": BATCHES}),
    "another loss": (BASE, regression, {"loss": lambda f, y: (f - y).square().sum() / 2}),
    "momentum": (BASE, regression, {"momentum": 0.9}),
    "weight decay": (replace(BASE, bias_std=0.5), regression, {"weight_decay": 0.3}),
    "momentum and weight decay": (BASE, regression, {"momentum": 0.9, "weight_decay": 0.3}),
    "minibatches": (BASE, regression, {"batches": BATCHES}),
    "unequal widths": (replace(BASE, width_ratios=(0.5, 2.0, 1.0), bias_std=0.5, gain=1.2), regression, {}),
    "residual": (replace(BASE, branch_scale=1 / math.sqrt(3), bias_std=0.2), regression, {}),
    "norm": (replace(BASE, norm="plain"), regression, {}),
    "affine norm": (replace(BASE, norm="affine", width_ratios=(1.0, 0.5, 1.0)), regression, {"weight_decay": 0.3}),
    "everything": (
        Chain(3, torch.relu, 0.7, 3, 1.2, bias_std=0.3, branch_scale=0.6, norm="affine"),
        classification,
        {"momentum": 0.8, "weight_decay": 0.1, "batches": BATCHES},
    ),
}


@pytest.mark.parametrize("two_time", [False, True], ids=["equal times", "two times"])
@pytest.mark.parametrize("case", CASES)
def test_a_network_of_the_ensemble_is_the_plain_module(case: str, two_time: bool, generator: torch.Generator) -> None:
    chain, task, options = CASES[case]
    training = task(generator, **options)
    parameters = initialise(chain, WIDTH, 3, 4, generator)
    module = PlainModule(chain, parameters, network=1)
    expected = train_module(chain, training, module, two_time=two_time)
    found = train(chain, training, parameters, two_time=two_time)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        actual = found[name][1]
        if two_time and name.startswith("ntk"):
            actual = actual.diagonal(dim1=0, dim2=actual.ndim // 2).movedim(-1, 0)
        torch.testing.assert_close(actual, value, rtol=1e-10, atol=1e-10, msg=partial("{}: {}".format, name))


def test_recording_some_steps_picks_them_from_recording_all(generator: torch.Generator) -> None:
    training = regression(generator)
    parameters = initialise(BASE, WIDTH, 2, 4, generator)
    copy = {name: p.clone() for name, p in parameters.items()}
    every = train(BASE, training, parameters, record=range(5))
    some = train(BASE, training, copy, record=[1, 4])
    assert every["outputs"].shape[1] == 5
    for name, value in some.items():
        assert torch.equal(value, every[name][:, [1, 4]]), name
    for name, p in parameters.items():
        assert torch.equal(p, copy[name]), name


def test_initialisation_has_the_stated_moments(generator: torch.Generator) -> None:
    parameters = initialise(Chain(2, bias_std=0.5), 64, 50, 8, generator)
    for name, std in {"weight.0": 1.0, "weight.1": 1.0, "weight.2": 1.0, "bias.0": 0.5, "bias.1": 0.5}.items():
        p = parameters[name] / std
        root = math.sqrt(p.numel())
        assert abs(float(p.mean())) * root < 5, name
        assert abs(float(p.square().mean()) - 1) * root / math.sqrt(2) < 5, name


def test_antithetic_networks_share_all_but_the_sign_of_the_readout(generator: torch.Generator) -> None:
    training = regression(generator)
    found = train(BASE, training, initialise(BASE, WIDTH, 6, 4, generator, antithetic=True))
    first, second = (found["outputs"][half, 0] for half in (slice(0, 3), slice(3, 6)))
    assert torch.equal(first, -second)
    assert first.abs().min() > 0
    for name in ("forward.3", "backward.0", "ntk"):
        assert torch.equal(found[name][:3, 0], found[name][3:, 0]), name
        assert not torch.allclose(found[name][:3, 3], found[name][3:, 3]), name
    with pytest.raises(ValueError, match="pairs"):
        initialise(BASE, WIDTH, 5, 4, generator, antithetic=True)


def arc_cosine(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """<phi phi> and <phi' phi'> of ReLU for Gaussian h with this covariance (Cho and Saul 2009, times 1/2 each)."""
    norm = kernel.diagonal().sqrt()
    norms = norm[:, None] * norm
    cosine = (kernel / norms).clamp(-1, 1)
    angle = torch.acos(cosine)
    return norms * (angle.sin() + (math.pi - angle) * cosine) / (2 * math.pi), (math.pi - angle) / (2 * math.pi)


def linear(kernel: Tensor) -> tuple[Tensor, Tensor]:
    return kernel, torch.ones_like(kernel)


def closed_form(chain: Chain, inputs: Tensor, moments: Callable[[Tensor], tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Kernels of the infinitely wide chain at step 0, one output."""
    phi, slopes = [inputs @ inputs.T / inputs.shape[1]], []
    for _ in range(chain.depth):
        features, slope = moments(chain.gain**2 * phi[-1] + (chain.bias_std or 0.0) ** 2)
        phi.append(features)
        slopes.append(slope)
    backward = [torch.ones_like(phi[0])]
    for layer in reversed(range(chain.depth)):
        above = 1.0 if layer == chain.depth - 1 else chain.gain**2
        backward.insert(0, above * slopes[layer] * backward[0])
    biased = 0.0 if chain.bias_std is None else 1.0
    ntk = [g * (chain.gain**2 * p + biased) for g, p in zip(backward, phi, strict=True)]
    ntk[-1] = phi[-1]
    found = {"ntk": torch.stack(ntk).sum(0)} | {f"ntk.{layer}": k for layer, k in enumerate(ntk)}
    found |= {f"forward.{layer}": k for layer, k in enumerate(phi)}
    return found | {f"backward.{layer}": k for layer, k in enumerate(backward)}


@pytest.mark.parametrize(
    ("chain", "moments"),
    [
        (Chain(3, torch.relu, gain=math.sqrt(2)), arc_cosine),
        (Chain(2, torch.relu, gamma0=0.5, gain=1.5, bias_std=0.4), arc_cosine),
        (Chain(2, lambda x: x, gain=0.9, width_ratios=(2.0, 1.0)), linear),
    ],
    ids=["relu", "relu with biases", "linear of unequal widths"],
)
def test_kernels_at_step_zero_meet_the_closed_form(
    chain: Chain, moments: Callable[[Tensor], tuple[Tensor, Tensor]], generator: torch.Generator
) -> None:
    inputs = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    training = Training(inputs, inputs[:, :1], lr=0.1, steps=0)
    counts = {64: 2048, 128: 1024, 256: 512}
    limit = extrapolate(chain, training, counts, generator, antithetic=False, record=[0])
    expected = closed_form(chain, inputs, moments)
    if chain.width_ratios:  # G of section 1 is per neuron of its own layer: k^2 scales with (N_l / N_L)^2
        first = chain.width_ratios[0]
        expected["backward.0"] = expected["backward.0"] * first
    scores = z_scores(limit, {name: k[None] for name, k in expected.items()})
    for name, score in scores.items():
        assert score.abs().max() < 5, (name, float(score.abs().max()))
        assert (limit.stderr[name] < 0.02 * expected[name].abs().max()).all(), name
