"""What the demo runs; light to import, because ``torch-dmft --help`` lists it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import SMALLEST, require_number, require_seed, require_whole

Data = Literal["digits", "synthetic", "cifar10", "fashion"]

_PLACES = ("device", "logdir", "data_dir")
_MOST = {"width": 10**6, "depth": 1000, "steps": 10**9, "records": 10**9, "neurons": 2**20, "replicas": 10**6}
"""Counts, and what is more than anybody waits for."""


@dataclass(frozen=True)
class Settings:
    """What the demo runs; every field is an option of ``torch-dmft demo``.

    Attributes:
        data: ``"digits"``, ``"synthetic"``, ``"cifar10"`` or ``"fashion"``, see ``torch_dmft.data``.
        samples: P, training images, half of each of two classes.
        width: N, neurons per hidden layer.
        networks: further networks of the same width to train, to tell what width explains; 0 for none, at least 19 to tell.
        widths: further widths to train, to see the gap to theory shrink.
        depth: L, hidden layers.
        activation: name of phi.
        gamma0: feature-learning strength.
        lr: eta, the base learning rate of the mean squared error.
        steps: full-batch SGD steps.
        records: how many steps are recorded, evenly spaced.
        neurons: sample of neurons that stands for infinite width.
        replicas: independent theory runs, for error bars.
        seed: of the network's and the theory's random numbers.
        device: where everything runs.
        logdir: where logs, figures and trajectories go; None for a folder of ``runs`` named by the settings.
        data_dir: where CIFAR-10 and Fashion-MNIST lie.

    Raises:
        InvalidInputError: for a number out of its range.
    """

    data: Data = "digits"
    samples: int = 20
    width: int = 512
    networks: int = 0
    widths: tuple[int, ...] = ()
    depth: int = 3
    activation: str = "tanh"
    gamma0: float = 1.0
    lr: float = 0.05
    steps: int = 200
    records: int = 40
    neurons: int = 4096
    replicas: int = 4
    seed: int = 0
    device: str = "cpu"
    logdir: Path | None = None
    data_dir: Path = Path("data")

    def __post_init__(self) -> None:
        """Refuse numbers that cannot work."""
        for name, most in _MOST.items():
            require_whole(name, getattr(self, name), at_least=1, at_most=most)
        for name in ("gamma0", "lr"):
            require_number(name, getattr(self, name), at_least=SMALLEST)
        for width in self.widths:
            require_whole("widths", width, at_least=1, at_most=_MOST["width"])
        require_whole("networks", self.networks, at_least=0, at_most=10**6)
        require_whole("samples", self.samples, at_least=1, at_most=10**5)
        require_seed("seed", self.seed)
        for name in _PLACES:
            if "\0" in str(getattr(self, name)) or not str(getattr(self, name)):
                raise InvalidInputError(
                    f"{name} must be a name.", got=repr(getattr(self, name)), remedy=f"--{name} runs/demo"
                )
        if self.networks and (self.networks < 19 or self.centered):
            raise InvalidInputError(
                "`networks` must be 0 or at least 19, and 0 at gamma0 < 0.5, where the centered model is trained.",
                got=f"networks={self.networks}, gamma0={self.gamma0}",
                remedy="--networks 40 with a larger gamma0, or none",
            )

    @property
    def directory(self) -> Path:
        """``logdir``, or a folder of ``runs`` named by what differs from the defaults, so that runs lie side by side."""
        if self.logdir is not None:
            return self.logdir
        changed = [field for field in fields(self) if field.name not in _PLACES]
        values = {
            field.name: getattr(self, field.name) for field in changed if getattr(self, field.name) != field.default
        }
        if "widths" in values:
            values["widths"] = "+".join(map(str, self.widths))
        return Path("runs") / "-".join(["demo", *(f"{name}={value}" for name, value in values.items())])

    @property
    def centered(self) -> bool:
        """Whether f - f_0 is trained, because the random f_0 ~ 1 / (gamma0 sqrt(N)) of finite networks would dominate."""
        return self.gamma0 < 0.5
