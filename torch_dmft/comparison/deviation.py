"""Deviations: how far a measured run is from a predicted one, step by step, with the error bars of the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torch_dmft.comparison.consistency import Consistency, consistency
from torch_dmft.comparison.metrics import cosines, nonzero, quotients
from torch_dmft.core.arguments import checked, typed
from torch_dmft.core.divergence import diverged_at, last_sane
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.listed import weight_label
from torch_dmft.core.trajectory import LayerKernels, Trajectory


@typed
@dataclass(frozen=True)
class Deviation:
    """How far a measured kernel X is from its prediction Y at each common step.

    The error bars come from the standard errors s of the entries of Y (and of X, where the measured side is an average
    that has them). With n_Y = |s_Y| / |Y|, n_X = |s_X| / |X| and e = (X - Y) / |X - Y|, first-order propagation and
    Cauchy-Schwarz give

        stderr of r = |X - Y| / |Y|:   sqrt( (n_Y |e + r Y/|Y| |)^2 + (|s_X| / |Y|)^2 )
        stderr of A = cos(X, Y):       sqrt(1 - A^2) n + n^2 / 2,      n^2 = n_Y^2 + n_X^2

    They are upper bounds that hold however the entries' errors are correlated, which nobody records. The second term
    of A is the loss of alignment that noise alone causes between equal kernels. Without any standard errors the bars
    are NaN: unknown, not zero; if only one side has them, the other is taken as exact.

    Attributes:
        alignment: ``(time,)``, A.
        alignment_stderr: ``(time,)``.
        relative_error: ``(time,)``, r.
        relative_error_stderr: ``(time,)``.
        noise: ``(time,)``, n_Y: the relative error that the prediction's noise alone causes. A relative error below
            about twice this number is no evidence of a difference.
    """

    alignment: Tensor
    alignment_stderr: Tensor
    relative_error: Tensor
    relative_error_stderr: Tensor
    noise: Tensor


@typed
@dataclass(frozen=True)
class Difference:
    """How far numbers in units of their own (outputs, a loss) are from their prediction at each common step.

    Attributes:
        rms: ``(time,)``, root of the mean squared difference.
        noise: ``(time,)``, the rms of the prediction's standard errors, NaN if it has none.
    """

    rms: Tensor
    noise: Tensor


@typed
@dataclass(frozen=True)
class LayerDeviations:
    """The deviations of one weight's kernels: forward Phi^l, backward G^{l+1}, and the part of the NTK, if it is known."""

    name: str
    forward: Deviation
    backward: Deviation
    ntk: Deviation | None


@typed
@dataclass(frozen=True)
class Deviations:
    """How far the measured run is from one prediction.

    Attributes:
        layers: one entry per weight, l = 0..L, named as in the measured model.
        ntk: of the whole NTK; None if a run has none.
        outputs: over the rows the model is trained on, in units of the output.
        test_outputs: over the other rows; None if there are none.
        losses: the absolute difference of the losses.
        consistency: whether the measured run's width explains them, if the prediction is a ``FiniteWidth`` answer.
    """

    layers: tuple[LayerDeviations, ...]
    ntk: Deviation | None
    outputs: Difference
    test_outputs: Difference | None
    losses: Difference
    consistency: Consistency | None = None

    @property
    def predicted(self) -> dict[str, Deviation]:
        """Phi and G of every weight at which they are predicted, each with a name such as ``"Phi of weight 1 (fc2)"``.

        Phi of the first weight is given by the data, G of the last by the outputs. The NTK, where nothing else is left.
        """
        last = len(self.layers) - 1
        kernels = {}
        for position, layer in enumerate(self.layers):
            if position > 0:
                kernels[f"Phi of {weight_label(position, layer.name)}"] = layer.forward
            if position < last:
                kernels[f"G of {weight_label(position, layer.name)}"] = layer.backward
        if kernels or self.ntk is None:
            return kernels or {
                f"Phi of {weight_label(position, layer.name)}": layer.forward
                for position, layer in enumerate(self.layers)
            }
        return {"the NTK": self.ntk}

    @property
    def mean_error(self) -> Float[Tensor, " time"]:
        """The relative error, mean over all kernels that are predicted."""
        return torch.stack([kernel.relative_error for kernel in self.predicted.values()]).mean(0)


@checked
def deviations(measured: Trajectory, predicted: Trajectory) -> Deviations:
    """How far a run is from a prediction at the same steps, in the same layout."""
    train, test = measured.train.cpu(), ~measured.train.cpu()
    stderrs = measured.stderr, predicted.stderr
    spread = predicted.stderr
    outputs = measured.outputs, predicted.outputs, None if spread is None else spread.outputs
    parts = [(None,) * len(measured.layers) if stderr is None else stderr.layers for stderr in stderrs]
    return Deviations(
        layers=tuple(
            _layer_deviations(*layers) for layers in zip(measured.layers, predicted.layers, *parts, strict=True)
        ),
        ntk=_of_known(measured.ntk, predicted.ntk, *(None if stderr is None else stderr.ntk for stderr in stderrs)),
        outputs=_difference(*outputs, rows=train),
        test_outputs=_difference(*outputs, rows=test) if test.any() else None,
        losses=_difference(measured.losses, predicted.losses, None if spread is None else spread.losses),
        consistency=_consistency(measured, predicted),
    )


def _consistency(measured: Trajectory, predicted: Trajectory) -> Consistency | None:
    """Of the steps before anything diverged."""
    if not predicted.replicas:
        return None
    runs = measured, *predicted.replicas
    if any(diverged_at(run) == 0 for run in runs):
        return None
    steps = measured.steps[: last_sane(runs) + 1]
    return consistency(measured.at_steps(steps), predicted.at_steps(steps))


def _layer_deviations(
    measured: LayerKernels, predicted: LayerKernels, *stderrs: LayerKernels | None
) -> LayerDeviations:
    def of(kernel: str) -> Sequence[Kernel | None]:
        return [None if layer is None else getattr(layer, kernel) for layer in (measured, predicted, *stderrs)]

    forward, backward = deviation(*of("forward")), deviation(*of("backward"))  # type: ignore[arg-type]
    return LayerDeviations(measured.name, forward=forward, backward=backward, ntk=_of_known(*of("ntk")))


def _of_known(measured: Kernel | None, predicted: Kernel | None, *stderrs: Kernel | None) -> Deviation | None:
    return None if measured is None or predicted is None else deviation(measured, predicted, *stderrs)


def _difference(measured: Tensor, predicted: Tensor, stderr: Tensor | None, rows: Tensor | None = None) -> Difference:
    def rms(values: Tensor) -> Tensor:
        values = values.detach().to("cpu", torch.float64)
        values = values if rows is None else values[:, rows]
        return values.reshape(len(values), -1).square().mean(1).sqrt()

    difference = measured.detach().to("cpu", torch.float64) - predicted.detach().to("cpu", torch.float64)
    return Difference(rms(difference), rms(torch.full_like(difference, torch.nan) if stderr is None else stderr))


@checked
def deviation(
    measured: Kernel, predicted: Kernel, measured_stderr: Kernel | None = None, predicted_stderr: Kernel | None = None
) -> Deviation:
    """Compare two kernels at equal times, step by step.

    Args:
        measured: X, any layout of ``Kernel``; its equal-time part is used.
        predicted: Y, with the same equal-time shape.
        measured_stderr: the standard error of every entry of X, if known.
        predicted_stderr: the standard error of every entry of Y, if known.

    Returns:
        One number per time in each field; zero norms follow the rule of ``torch_dmft.comparison.metrics``.
    """
    x, y = _rows(measured), _rows(predicted)
    x_norm, y_norm = x.norm(dim=1), y.norm(dim=1)
    distance = (x - y).norm(dim=1)
    relative_error, alignment = quotients(distance, y_norm), cosines(x, y)

    spread_x = _spread(measured_stderr, x_norm)
    spread_y = _spread(predicted_stderr, y_norm)
    if measured_stderr is None and predicted_stderr is None:
        spread_y = torch.full_like(y_norm, torch.nan)
    noise_y = quotients(spread_y, y_norm)
    noise = (noise_y**2 + quotients(spread_x, x_norm) ** 2).sqrt()
    gradient = (x - y) / nonzero(distance)[:, None] + (relative_error / nonzero(y_norm))[:, None] * y
    slope = gradient.norm(dim=1).masked_fill(distance == 0, 1.0)
    return Deviation(
        alignment=alignment,
        alignment_stderr=(1 - alignment**2).sqrt() * noise + noise**2 / 2,
        relative_error=relative_error,
        relative_error_stderr=((noise_y * slope) ** 2 + quotients(spread_x, y_norm) ** 2).sqrt(),
        noise=noise_y if predicted_stderr is not None else torch.full_like(y_norm, torch.nan),
    )


def _rows(kernel: Kernel) -> Float[Tensor, "time entry"]:
    return kernel.equal_time.detach().to("cpu", torch.float64).flatten(1)


def _spread(stderr: Kernel | None, norms: Tensor) -> Tensor:
    return torch.zeros_like(norms) if stderr is None else _rows(stderr).norm(dim=1)
