"""Coordinate check: do features move by the same amount at every width?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.grid import Grid
from torch_dmft.core.loss import Loss
from torch_dmft.parameterization.apply import parameterize
from torch_dmft.parameterization.optimizer import OPTIMIZERS
from torch_dmft.parameterization.plan import Plan


@dataclass(frozen=True)
class CoordinateCheck:
    """How the change of each layer's output scales with width.

    Attributes:
        widths: the widths that were trained.
        layers: module paths of the weights, in forward order.
        updates: ``(layer, width)``, root mean square over samples and neurons of h(T) - h(0), averaged over the seeds.
        tolerance: largest exponent in size that counts as none.
    """

    widths: tuple[int, ...]
    layers: tuple[str, ...]
    updates: Float[Tensor, "layer width"]
    tolerance: float

    @property
    def exponents(self) -> dict[str, float]:
        """The slope of log update against log width, by least squares, for each layer; 0 is right."""
        x = torch.tensor(self.widths, dtype=torch.float64).log()
        x = x - x.mean()
        slopes = (self.updates.double().log() * x).sum(1) / (x * x).sum()
        return dict(zip(self.layers, slopes.tolist(), strict=True))

    @property
    def verdicts(self) -> dict[str, str]:
        """For each layer "stable", "grows with width" or "vanishes with width"."""

        def verdict(exponent: float) -> str:
            if abs(exponent) <= self.tolerance:
                return "stable"
            return "grows with width" if exponent > 0 else "vanishes with width"

        return {layer: verdict(exponent) for layer, exponent in self.exponents.items()}

    @property
    def passed(self) -> bool:
        """Whether every layer is stable."""
        return set(self.verdicts.values()) == {"stable"}

    def __rich__(self) -> Grid:
        verdicts = self.verdicts
        rows = [
            (
                layer or "(model)",
                verdicts[layer],
                *(f"{update:.3g}" for update in row),
                f"{self.exponents[layer]:+.2f}",
            )
            for layer, row in zip(self.layers, self.updates.tolist(), strict=True)
        ]
        numbers = (*(("", f"N={width}") for width in self.widths), ("", "exponent"))
        return Grid("change of each layer's output, rms", ("module", "verdict"), numbers, tuple(rows))

    def __str__(self) -> str:
        return str(self.__rich__())


def coordinate_check(
    factory: Callable[[int], nn.Module],
    inputs: Tensor,
    targets: Tensor,
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    lr: float = 0.1,
    gamma0: float = 1.0,
    scheme: str = "mean_field",
    optimizer: str = "sgd",
    loss: Loss = nn.functional.mse_loss,
    steps: int = 5,
    seeds: int = 8,
    tolerance: float = 0.1,
    generator: torch.Generator | None = None,
) -> CoordinateCheck:
    """Train a model for a few steps at several widths and see whether its features move alike.

    In the mean-field scheme the output of every layer changes by O(1) in the width at fixed gamma0, so the slope of
    log rms[h(T) - h(0)] against log width is 0 for each. Trained is the centered model f - f_0, since the random f_0
    of a finite network, O(1/(gamma0 sqrt N)), would blur the slope.

    Args:
        factory: width -> a freshly built model.
        inputs: ``(sample, ...)``, the batch of every step.
        targets: ``(sample, ...)``, as the loss takes them.
        widths: at least two widths.
        lr: the base learning rate eta.
        gamma0: richness.
        scheme: "mean_field", "ntk" or "standard"; the last two fail, which shows what the check can see.
        optimizer: "sgd", "adam" or "adamw".
        loss: (outputs, targets) -> scalar.
        steps: number of steps T.
        seeds: networks at each width, whose updates are averaged.
        tolerance: largest exponent that counts as none.
        generator: where weights are drawn from (except "standard", whose weights are the factory's own).

    Returns:
        The updates, with an exponent and a verdict for each layer; print it.

    Raises:
        InvalidInputError: if there are fewer than two widths, or a layer is missing at some width.
    """
    if len(set(widths)) < 2:
        raise InvalidInputError("`widths` must hold at least two widths, as a slope is fitted.", got=str(tuple(widths)))
    rows: list[dict[str, float]] = []
    for width in widths:
        total: dict[str, float] = {}
        for _ in range(seeds):
            plan = parameterize(factory(width), inputs, gamma0, scheme, generator=generator)
            groups = plan.param_groups(lr, optimizer=optimizer)
            changes = _changes(plan, OPTIMIZERS[optimizer](groups), inputs, targets, loss, steps)
            total = {path: total.get(path, 0.0) + change / seeds for path, change in changes.items()}
        rows.append(total)
    layers = tuple(rows[0])
    if any(tuple(row) != layers for row in rows):
        raise InvalidInputError(
            "The model must have the same layers at every width.", remedy="let factory change the width only"
        )
    updates = torch.tensor([[row[path] for row in rows] for path in layers], dtype=torch.float64)
    return CoordinateCheck(tuple(widths), layers, updates, tolerance)


def _changes(
    plan: Plan, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, loss: Loss, steps: int
) -> dict[str, float]:
    """Root mean square of h(T) - h(0) for the output h of each layer."""
    before = _layer_outputs(plan, inputs)
    start = plan.model(inputs).detach()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(plan.model(inputs) - start, targets).backward()
        optimizer.step()
    after = _layer_outputs(plan, inputs)
    return {path: float((after[path] - before[path]).square().mean().sqrt()) for path in before}


def _layer_outputs(plan: Plan, inputs: Tensor) -> dict[str, Tensor]:
    with torch.no_grad(), _recorded(plan) as outputs:
        plan.model(inputs)
    return outputs


@contextmanager
def _recorded(plan: Plan) -> Iterator[dict[str, Tensor]]:
    """The last output of every layer, as it was before anything worked on it in place."""
    outputs: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            outputs[path] = output.detach().clone()

        return hook

    with ExitStack() as hooks:
        for layer in plan.architecture.layers:
            module = plan.model.get_submodule(layer.path)
            hooks.callback(module.register_forward_hook(keep(layer.path)).remove)
        yield outputs
