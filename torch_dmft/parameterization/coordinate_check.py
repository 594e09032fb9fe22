"""Coordinate check: do features move by the same amount at every width?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from rich.progress import track
from torch import Tensor, nn

from torch_dmft.core.arguments import checked, require_finite, require_rows, typed
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.grid import Grid
from torch_dmft.core.loss import Loss, as_the_loss_takes_them, loss_value, require_loss
from torch_dmft.core.numbers import require_choice, require_number, require_whole
from torch_dmft.core.power_law import PowerLaw, power_law
from torch_dmft.core.users_functions import called
from torch_dmft.parameterization.apply import scaled
from torch_dmft.parameterization.optimizer import NAMES
from torch_dmft.parameterization.plan import Plan
from torch_dmft.parameterization.steppers import steppers
from torch_dmft.parameterization.wrapping import Wrapping
from torch_dmft.uses.describe import describe
from torch_dmft.uses.outputs import Example, Runs, Selection, named_tensors
from torch_dmft.uses.passes import layer_outputs
from torch_dmft.uses.streams import stream_states


@typed
@dataclass(frozen=True)
class CoordinateCheck:
    """How the change of each layer's output scales with width, or with depth.

    Attributes:
        sizes: the widths N that were trained, or the depths L.
        layers: the weights, in forward order; left out are frozen ones, and those that read other rows after training, as
            experts do when the routes change. Along depth: kinds of layers, and thirds of the depth.
        changes: ``(layer, size, seed)``, root mean square over samples and neurons of h(T) - h(0).
        tolerance: largest exponent in size that counts as none.
        axis: what was changed, "width" or "depth".
    """

    sizes: tuple[int, ...]
    layers: tuple[str, ...]
    changes: Float[Tensor, "layer size seed"]
    tolerance: float
    axis: str = "width"

    @property
    def updates(self) -> Float[Tensor, "layer size"]:
        """The changes, averaged over the seeds."""
        return self.changes.mean(-1)

    @property
    def errors(self) -> Float[Tensor, "layer size"]:
        """Standard errors of the updates; NaN with a single seed."""
        seeds = self.changes.shape[-1]
        return self.changes.std(-1) / math.sqrt(seeds) if seeds > 1 else torch.full_like(self.updates, torch.nan)

    @property
    def laws(self) -> dict[str, PowerLaw]:
        """The power of N or L by which each layer changes; 0 is right."""
        return {layer: power_law(self.sizes, row) for layer, row in zip(self.layers, self.changes, strict=True)}

    @property
    def exponents(self) -> dict[str, float]:
        """The slope of log update against log N or log L, by least squares, for each layer; 0 is right."""
        return {layer: law.exponent for layer, law in self.laws.items()}

    @property
    def exponent_errors(self) -> dict[str, float]:
        """The standard errors of the exponents, from the scatter of the seeds; NaN with a single seed."""
        return {layer: law.error for layer, law in self.laws.items()}

    @property
    def verdicts(self) -> dict[str, str]:
        """For each layer "stable", "grows with width", "vanishes with width" (or depth), "did not move" or "diverged"."""

        def verdict(layer: str, updates: Tensor) -> str:
            if not updates.isfinite().all():
                return "diverged"
            if not updates.all():
                return "did not move"
            exponent = self.exponents[layer]
            if abs(exponent) <= self.tolerance:
                return "stable"
            return f"{'grows' if exponent > 0 else 'vanishes'} with {self.axis}"

        return {layer: verdict(layer, row) for layer, row in zip(self.layers, self.updates, strict=True)}

    @property
    def passed(self) -> bool:
        """Whether every layer is stable."""
        return set(self.verdicts.values()) == {"stable"}

    def __rich__(self) -> Grid:
        verdicts, errors = self.verdicts, self.exponent_errors
        rows = [
            (
                layer or "(model)",
                verdicts[layer],
                *(f"{update:.3g}" for update in row),
                f"{self.exponents[layer]:+.2f}",
                f"{errors[layer]:.2f}",
            )
            for layer, row in zip(self.layers, self.updates.tolist(), strict=True)
        ]
        letter = "N" if self.axis == "width" else "L"
        numbers = (*(("", f"{letter}={size}") for size in self.sizes), ("", "exponent"), ("", "+-"))
        return Grid("change of each layer's output, rms", ("weight", "verdict"), numbers, tuple(rows))

    def __str__(self) -> str:
        return str(self.__rich__())


def built(factory: Callable[[int], nn.Module], size: int) -> nn.Module:
    """The model of a width or depth.

    Raises:
        InvalidInputError: if it cannot be built.
    """
    remedy = f"a function size -> nn.Module that builds the model at {size}"
    model = called("factory", factory, size, remedy=remedy)
    if not isinstance(model, nn.Module):
        raise InvalidInputError("`factory` must build a model.", got=type(model).__name__, remedy=remedy)
    return model


_LARGEST = 10**6
"""Width, depth, or number of steps or networks, that nobody waits for."""


@checked
def coordinate_check(
    factory: Callable[[int], nn.Module],
    inputs: Example,
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
    outputs: Selection | None = None,
    wider: bool = True,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> CoordinateCheck:
    """Train a model for a few steps at several widths and see whether its features move alike.

    In the mean-field scheme the output of every layer changes by O(1) in the width at fixed gamma0, so the slope of
    log rms[h(T) - h(0)] against log width is 0 for each. Trained is the centered model f - f_0, since the random f_0
    of a finite network, O(1/(gamma0 sqrt N)), would blur the slope; in evaluation mode, since dropout would too.

    Args:
        factory: width -> a freshly built model of any kind.
        inputs: ``(sample, ...)``, or a tuple or mapping of the arguments of ``forward``; the batch of every step.
        targets: ``(sample, ...)``, as the loss takes them.
        widths: at least two widths.
        lr: the base learning rate eta.
        gamma0: richness.
        scheme: "mean_field", "ntk" or "standard"; the last two fail, which shows what the check can see.
        optimizer: "sgd", "adam", "adamw" or "muon" (beside AdamW).
        loss: (outputs, targets) -> scalar.
        steps: number of steps T.
        seeds: networks at each width, whose updates are averaged.
        tolerance: largest exponent that counts as none.
        outputs: which of the model's outputs is f, a key, an index or a function; default as in ``Recorder``.
        wider: whether roles follow from comparing two of the widths; False: from each instance by itself.
        generator: where weights are drawn from (except "standard", whose weights are the factory's own).
        progress: show a progress bar.

    Returns:
        The updates, with an exponent and a verdict for each layer; print it.

    Raises:
        InvalidInputError: if there are fewer than two widths, or a layer is missing at some width.
    """
    check_settings(widths, inputs, targets, lr, optimizer, loss, steps, seeds, tolerance)
    if len(set(widths)) < 2:
        raise InvalidInputError(
            "`widths` must hold at least two widths, as a slope is fitted.",
            got=str(tuple(widths)),
            remedy="widths=(64, 128, 256, 512)",
        )
    found: list[dict[str, list[float | None]]] = []
    for number in track(range(len(widths) * seeds), "coordinate check", disable=not progress):
        position = number // seeds
        width, other = widths[position], widths[1 if position == 0 else position - 1]
        model = built(factory, width)
        if number % seeds == 0:
            architecture = describe(model, inputs, wider=built(factory, other) if wider else None, outputs=outputs)
        plan = scaled(model, architecture, Wrapping(), gamma0=gamma0, scheme=scheme, generator=generator)
        changes = changes_of(plan, steppers(plan, lr, optimizer), inputs, targets, loss, steps, outputs)
        if number % seeds == 0:
            found.append({path: [] for path in changes})
        for path, change in changes.items():
            found[-1][path].append(change)
    if any(tuple(row) != tuple(found[0]) for row in found):
        raise InvalidInputError(
            "The model must have the same layers at every width.", remedy="let factory change the width only"
        )
    layers = tuple(path for path in found[0] if all(None not in row[path] for row in found))
    return summary(widths, layers, found, tolerance, "width")


def check_settings(
    sizes: Sequence[int],
    inputs: Example,
    targets: Tensor,
    lr: float,
    optimizer: str,
    loss: Loss,
    steps: int,
    seeds: int,
    tolerance: float,
) -> None:
    """Refuse settings of a check with which nothing can be seen.

    Raises:
        InvalidInputError: for the first of them.
    """
    for size in sizes:
        require_whole("a width or depth", size, at_least=1, at_most=_LARGEST)
    require_rows("targets", targets, len(targets) if targets.ndim else 1)  # of tokens there are more than samples
    for name, leaf in named_tensors(inputs):
        if leaf.is_floating_point():
            require_finite(name, leaf)
    require_number("lr", lr, at_least=0)
    require_choice("optimizer", optimizer, NAMES)
    require_loss(loss)
    require_whole("steps", steps, at_least=1, at_most=_LARGEST)
    require_whole("seeds", seeds, at_least=1, at_most=_LARGEST)
    require_number("tolerance", tolerance, above=0)


def summary(
    sizes: Sequence[int],
    layers: Sequence[str],
    found: Sequence[Mapping[str, Sequence[float | None]]],
    tolerance: float,
    axis: str,
) -> CoordinateCheck:
    """The check of what was found at every size: for every layer the changes of all seeds."""
    every = torch.tensor([[row[path] for row in found] for path in layers], dtype=torch.float64, device="cpu")
    return CoordinateCheck(tuple(sizes), tuple(layers), every, tolerance, axis)


def changes_of(
    plan: Plan,
    optimizers: Sequence[torch.optim.Optimizer],
    inputs: Example,
    targets: Tensor,
    loss: Loss,
    steps: int,
    outputs: Selection | None,
    *,
    along_stream: bool = False,
) -> dict[str, float | None]:
    """Root mean square of h(T) - h(0) for the output h of each layer that is trained; f for that of the readout.

    Outputs that are smaller by a factor, as queries are whose scores lack it, are counted without it. None where h(T) has other
    rows.

    Args:
        plan: a fresh plan.
        optimizers: that take its groups.
        inputs: of every step.
        targets: of every step.
        loss: (outputs, targets) -> scalar.
        steps: T.
        outputs: which of the model's outputs is f.
        along_stream: whether h is the stream behind the sum instead, for what ends a residual branch.
    """
    run = Runs(plan.model.eval(), outputs)
    before = layer_outputs(plan.model, run, inputs)
    states = stream_states(plan.model, run, inputs) if along_stream else {}
    start = run(inputs).detach()
    targets = as_the_loss_takes_them(loss, start, targets)
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_value(loss, run(inputs) - start, targets).backward()
        for optimizer in optimizers:
            optimizer.step()
    after = layer_outputs(plan.model, run, inputs)
    moved = run(inputs).detach() - start
    states_after = stream_states(plan.model, run, inputs) if along_stream else {}
    found: dict[str, float | None] = {}
    owners = {layer.weight: layer.path for layer in plan.architecture.layers}
    owners |= {layer.bias: layer.path for layer in plan.architecture.layers if layer.bias is not None}
    for name, state in states.items():
        if plan.rule(name).lr:
            found[owners.get(name, name.rpartition(".")[0])] = _size([states_after[name] - state])
    for layer in plan.architecture.layers:
        if plan.rule(layer.weight).lr and layer.path not in found:
            # Of a readout's outputs f may be a part, and the others learn nothing.
            is_readout = layer is plan.architecture.readout
            change = _size([moved]) if is_readout else _change(before.get(layer.path, []), after.get(layer.path, []))
            found[layer.path] = change if change is None or is_readout else change / layer.fold
    return found


def _change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float | None:
    if [one.shape for one in before] != [one.shape for one in after] or not before:
        return None
    return _size([b - a for a, b in zip(before, after, strict=True)])


def _size(changes: Sequence[Tensor]) -> float:
    """The root mean square of all entries."""
    squares = sum(float(one.double().square().sum()) for one in changes)
    return math.sqrt(squares / sum(one.numel() for one in changes))
