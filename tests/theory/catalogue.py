"""Small problems of every kind, and which solver does which: the table that conformance is tested on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tests import transformer
from torch_dmft import Probe, Problem, parameterize
from torch_dmft.theory import solvers

STEPS = 3
ROWS, TRAIN, FEATURES = 4, 3, 5
INPUTS = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(3))
WHITE = FEATURES**0.5 * torch.linalg.qr(INPUTS[:TRAIN].T).Q.T
SIGNS = torch.tensor([[1.0], [-1.0], [1.0]])
THREE = torch.tensor([[1.0, 0.0, -1.0], [-1.0, 0.5, 0.0], [0.5, 1.0, 1.0]])
CLASSES = torch.tensor([0, 2, 1])
RATES = [0.1, 0.3, 0.0, 0.2, *[0.05] * STEPS]
BATCHES = [torch.tensor([t % 3, (t + 1) % 3]) for t in range(STEPS)]

Pose = Callable[..., Problem]


@dataclass(frozen=True)
class chain:  # noqa: N801
    """A dense chain with these settings; what is called with others takes those too."""

    settings: dict[str, Any]
    fields: dict[str, Any]
    probe: torch.Tensor | None

    def __init__(
        self, fields: dict[str, Any] | None = None, probe: torch.Tensor | None = None, **settings: Any
    ) -> None:
        for name, value in (("settings", settings), ("fields", fields or {}), ("probe", probe)):
            object.__setattr__(self, name, value)

    def trained(self, **fields: Any) -> chain:
        """The same, trained otherwise."""
        return chain(fields, self.probe, **self.settings)

    def asked(self, probe: torch.Tensor) -> chain:
        """The same, about these rows alone."""
        return chain(self.fields, probe, **self.settings)

    def __call__(self, *, dtype: torch.dtype = torch.float32, **others: Any) -> Problem:
        defaults = {"targets": SIGNS, "depth": 2, "lr": 0.2, "steps": STEPS, "test_inputs": INPUTS[TRAIN:]}
        options: dict[str, Any] = defaults | self.settings | others
        inputs, targets = options.pop("inputs", INPUTS[:TRAIN]), options.pop("targets")
        targets = targets.to(dtype) if targets.is_floating_point() else targets
        return replace(Problem.mlp(inputs.to(dtype), targets, **options).trained(**self.fields), probe=self.probe)


def network(factory: Callable[[int], nn.Module], *shape: int) -> Pose:
    """A wrapped model on inputs of this shape, wrapped at 16 neurons."""
    rows = torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(3))

    def pose(*, dtype: torch.dtype = torch.float32, **others: Any) -> Problem:
        plan = parameterize(factory(16).to(dtype), rows.to(dtype), generator=torch.Generator().manual_seed(0))
        targets = torch.cat([SIGNS, SIGNS.new_zeros(ROWS - TRAIN, 1)]).to(dtype)
        probe = Probe(rows.to(dtype), targets, train=torch.arange(ROWS) < TRAIN)
        return Problem.like(plan, probe, **{"lr": 0.1, "steps": STEPS} | others)

    return pose


class Residual(nn.Module):
    """A tanh branch beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inputs, self.branch = nn.Linear(FEATURES, width), nn.Linear(width, width)
        self.readout = nn.Linear(width, 1)
        nn.init.zeros_(self.inputs.bias)
        nn.init.zeros_(self.branch.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.inputs(x)
        return self.readout(h + torch.tanh(self.branch(h)))


def normalised(norm: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """Two hidden layers with a norm before each activation."""

    def build(width: int) -> nn.Module:
        layers: list[nn.Module] = []
        for fan_in in (FEATURES, width):
            layers += [nn.Linear(fan_in, width, bias=False), norm(width), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(width, 1, bias=False))

    return build


def convolutional(width: int) -> nn.Module:
    """Padding, a stride and a pooled readout."""
    return nn.Sequential(
        nn.Conv2d(2, width, 3, padding=1, bias=False),
        nn.Tanh(),
        nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 1, bias=False),
    )


PROBLEMS: dict[str, Pose] = {
    "tanh": chain(),
    "one layer": chain(depth=1),
    "relu": chain(activation="relu", gain=2**0.5),
    "erf": chain(activation="erf", depth=3),
    "gelu": chain(activation="gelu", gain=1.5),
    "linear": chain(activation="linear"),
    "white": chain(activation="linear", inputs=WHITE, test_inputs=INPUTS[TRAIN:]),
    "biases": chain(bias_std=0.3),
    "gain": chain(gain=1.3),
    "three outputs": chain(targets=THREE),
    "classes": chain(targets=CLASSES),
    "unequal widths": chain(depth=3, width_ratios=[0.5, 2.0, 1.0]),
    "momentum": chain(momentum=0.5),
    "decay": chain(weight_decay=0.2),
    "momentum and decay": chain(momentum=0.5, weight_decay=0.2),
    "decay outside": chain(momentum=0.5, weight_decay=0.2, decoupled=True),
    "all of sgd": chain(lr=RATES, momentum=0.5, weight_decay=0.2, dampening=0.3),
    "nesterov": chain(lr=RATES, momentum=0.5, nesterov=True),
    "schedule": chain(lr=RATES),
    "frozen": chain().trained(frozen=("2.weight", "4.weight")),
    "groups": chain().trained(exceptions={"2.weight": {"lr": 0.5}}),
    "zero start": chain().trained(starts={"4.weight": "zero"}),
    "minibatches": chain(batches=BATCHES),
    "noise": chain(temperature=0.1),
    "adam": chain(optimizer="adam", lr=0.05),
    "feedback alignment": chain(rule="feedback_alignment", rho=0.5),
    "hebb": chain(rule="hebb"),
    "residual": network(Residual, FEATURES),
    "layer norm": network(normalised(nn.LayerNorm), FEATURES),
    "rms norm": network(normalised(nn.RMSNorm), FEATURES),
    "convolution": network(convolutional, 2, 4, 4),
    "transformer": network(transformer.Transformer, 3, transformer.FEATURES),
}

NETWORKS = {"residual", "layer norm", "rms norm", "convolution", "transformer"}
"""Problems whose network is no chain, for which there are the engine and plain networks."""

RULES = {"feedback alignment", "hebb"}
MOMENTUM = {"momentum", "decay", "momentum and decay", "decay outside", "all of sgd", "nesterov"}
OF_THEIR_OWN = {"frozen", "groups", "zero start"}
"""Problems in which parameters differ, for which there are the engine and plain networks."""

REFUSED: dict[str, set[str]] = {
    "InfiniteWidth": {"noise"},
    "InfiniteWidth by strides": {"noise", "adam", "groups"} | MOMENTUM | NETWORKS | RULES,
    "GradientIndependence": {"noise", "adam", "groups"} | MOMENTUM | RULES,
    "AlternatingMonteCarlo": {"adam", "relu"} | OF_THEIR_OWN | NETWORKS | RULES,
    "Perturbation": {"noise", "adam", "relu"} | MOMENTUM | OF_THEIR_OWN | NETWORKS | RULES,
    "FiniteWidth": set(),
    "WideEnsemble": set(),
    "DeepLinear": set(PROBLEMS) - {"linear", "white"},
    "WhitenedLinear": set(PROBLEMS) - {"white"},
    "StaticNTK": {"noise", "adam"} | OF_THEIR_OWN | NETWORKS,
}
"""Everything that a solver does not do; all the rest it does."""


def supports(solver: str, problem: str) -> bool:
    """Whether this solver takes this problem."""
    return problem not in REFUSED[solver]


def usual(solver: str) -> str:
    """A problem that shows what holds for all that this solver takes."""
    return {"DeepLinear": "linear", "WhitenedLinear": "white"}.get(solver, "tanh")


def build(solver: str, seed: int = 0) -> Any:
    """The solver with settings that take a fraction of a second."""
    # Six replicas: of fewer, a fair error bar is several times too small somewhere in so many entries.
    settings: dict[str, dict[str, Any]] = {
        "InfiniteWidth": {"neurons": 256, "replicas": 6},
        "InfiniteWidth by strides": {"neurons": 256, "replicas": 6, "strides": True},
        "GradientIndependence": {"neurons": 256, "replicas": 6},
        "AlternatingMonteCarlo": {"neurons": 256, "replicas": 4},
        "Perturbation": {"neurons": 128, "replicas": 4},
        "FiniteWidth": {"width": 128, "replicas": 4, "tolerance": 1e-2},
        "WideEnsemble": {"widths": (16, 32), "pairs": 4},
    }
    kind = getattr(solvers, solver.split()[0])
    return kind(**settings[solver], generator=torch.Generator().manual_seed(seed)) if solver in settings else kind()
