"""What the theory is validated on: networks of the oracle, each posed as a ``Problem`` without a width.

Chains are posed by ``Problem.mlp``. Residual and normalised networks are wrapped at a small width, as a user would, and
posed by ``Problem.like``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

import torch_dmft as dmft
from tests.reference.networks import Chain, Training, initialise
from tests.reference.plain_module import PlainModule

TRAIN, TEST, FEATURES, STEPS = 4, 1, 6, 10
RECORD = (0, 3, 6, 10)
NAMES = {torch.tanh: "tanh", torch.relu: "relu"}


@dataclass(frozen=True)
class Case:
    """A network, its training, and how many finite networks show its limit.

    Attributes:
        chain: the oracle's network.
        training: data, loss and optimiser.
        networks: width N_L -> number of networks.
    """

    chain: Chain
    training: Training
    networks: Mapping[int, int] = field(default_factory=lambda: {64: 4096, 128: 2048, 256: 1024})


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """The paper's loss."""
    return 0.5 * (outputs - targets).square().sum()


def data(outputs: int = 1, **options: object) -> Training:
    """Four labelled points in general position and one without label."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(TRAIN + TEST, FEATURES, generator=generator, dtype=torch.float64)
    targets = torch.sign(torch.randn(TRAIN, outputs, generator=generator, dtype=torch.float64))
    settings = {"targets": targets, "lr": 0.1, "steps": STEPS, "loss": half_square} | options
    return Training(inputs[:TRAIN], test_inputs=inputs[TRAIN:], **settings)  # type: ignore[arg-type]


def pose(case: Case) -> dmft.Problem:
    """The case as a problem in single precision, as users have it."""
    chain, training = case.chain, case.training
    optimiser = {
        "loss": training.loss,
        "lr": training.lr,
        "steps": training.steps,
        "momentum": training.momentum,
        "weight_decay": training.weight_decay,
        "batches": training.batches,
    }
    inputs, test_inputs = training.inputs.float(), training.test_inputs.float()
    targets = training.targets.float() if training.targets.is_floating_point() else training.targets
    if chain.branch_scale is None and chain.norm is None:
        return dmft.Problem.mlp(
            inputs,
            targets,
            depth=chain.depth,
            activation=NAMES[chain.activation],
            gamma0=chain.gamma0,
            gain=chain.gain,
            bias_std=chain.bias_std,
            width_ratios=chain.width_ratios,
            test_inputs=test_inputs,
            **optimiser,
        )
    plan = dmft.parameterize(ordinary(chain), inputs, gamma0=chain.gamma0, gain=chain.gain)
    padding = targets.new_zeros(len(test_inputs), *targets.shape[1:])
    rows = torch.arange(len(inputs) + len(test_inputs))
    probe = dmft.Probe(torch.cat([inputs, test_inputs]), torch.cat([targets, padding]), train=rows < len(inputs))
    return dmft.Problem.like(plan, probe, **optimiser)


def ordinary(chain: Chain, width: int = 16) -> nn.Module:
    """A user's module of this structure, with biases of root mean square s_b."""
    generator = torch.Generator().manual_seed(1)
    parameters = initialise(chain, width, 1, FEATURES, generator, dtype=torch.float32)
    for name, value in parameters.items():
        if name.startswith("bias"):
            value.copy_(nn.functional.normalize(value) * chain.bias_std * math.sqrt(value.shape[1]))
    return PlainModule(chain, parameters, network=0)


def _grid() -> dict[str, Case]:
    """Activation, depth and gamma0; lazy networks are centered, as their output at step 0 is no O(1/N)."""
    # Rates that bring the loss down smoothly to a few per cent, at every depth and richness.
    rates = {"tanh": {0.1: 0.1, 1.0: 0.1, 3.0: 0.05}, "relu": {0.1: 0.08, 1.0: 0.06, 3.0: 0.025}}
    found = {}
    for name, activation, gain in (("tanh", torch.tanh, 1.0), ("relu", torch.relu, math.sqrt(2))):
        for depth in (1, 2, 3):
            for gamma0, rate in rates[name].items():
                chain = Chain(depth, activation, gamma0, gain=gain)
                lr = rate / depth if name == "relu" else rate
                found[f"{name} L={depth} gamma0={gamma0:g}"] = Case(chain, data(lr=lr, centered=gamma0 < 1))
    return found


def _options() -> dict[str, Case]:
    """Everything else a problem can have, at gamma0 = 1."""
    tanh = Chain(2)
    deep = Chain(3)
    labels = torch.tensor([0, 1, 2, 1])
    batches = [torch.tensor(rows) for rows in ([0, 1], [2, 3], [1, 2], [3, 0], [1, 3])] * (STEPS // 5)
    residual = replace(deep, branch_scale=1 / math.sqrt(3))
    return {
        "biases from zero": Case(replace(tanh, bias_std=0.0), data()),
        "random biases": Case(replace(tanh, bias_std=0.7), data()),
        "gain": Case(replace(tanh, gain=1.5), data()),
        "three outputs": Case(replace(tanh, outputs=3), data(3, loss=nn.MSELoss(), lr=0.6)),
        "three classes": Case(replace(tanh, outputs=3), data(3, targets=labels, loss=nn.CrossEntropyLoss(), lr=0.6)),
        "momentum": Case(tanh, data(momentum=0.8, lr=0.04)),
        "weight decay": Case(replace(tanh, bias_std=0.5), data(weight_decay=0.3)),
        "momentum and weight decay": Case(tanh, data(momentum=0.8, weight_decay=0.3, lr=0.04)),
        "minibatches": Case(tanh, data(batches=batches, lr=0.15)),
        "unequal widths": Case(replace(deep, width_ratios=(0.5, 2.0, 1.0), bias_std=0.5), data()),
        "residual": Case(residual, data()),
        "residual relu with biases": Case(
            replace(residual, activation=torch.relu, gain=math.sqrt(2), bias_std=0.3), data(lr=0.03)
        ),
        "layer norm": Case(replace(tanh, norm="plain"), data()),
        "affine layer norm": Case(replace(tanh, norm="affine"), data(lr=0.06)),
        "residual layer norm": Case(replace(residual, norm="affine", bias_std=0.0, gamma0=0.5), data()),
    }


GRID = _grid()
OPTIONS = _options()
CASES = GRID | OPTIONS
