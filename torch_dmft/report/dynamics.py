"""Figures of the dynamics behind the kernels: response functions and the spectrum of the tangent kernel."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from torch_dmft.comparison import NTKSpectrum
from torch_dmft.core.arguments import checked
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.numbers import require_whole
from torch_dmft.report.style import new_figure, tidy
from torch_dmft.theory import Responses

_FORWARD = r"$A(t,s)=\langle\partial\phi(h(t))/\partial r(s)\rangle$"
_BACKWARD = r"$B(t,s)=\langle\partial g(t)/\partial u(s)\rangle$"


@checked
def responses(answers: Sequence[Responses]) -> Figure:
    """A(t, s) and B(t, s) of every hidden weight, averaged over equal samples (and summed over outputs).

    Args:
        answers: what ``theory.responses`` returned, at least one weight.

    Returns:
        A row per weight. The empty corner is causality: what happens at step s changes nothing before.

    Raises:
        InvalidInputError: if there is none.
    """
    if not len(answers):
        raise InvalidInputError(
            "`answers` must have at least one weight.", got="none", remedy="what theory.responses(problem) returns"
        )
    figure = new_figure(7.2, 0.8 + 3.0 * len(answers), "Responses of a neuron to its own past")
    grid = figure.subplots(len(answers), 2, squeeze=False)
    for response, row in zip(answers, grid, strict=True):
        pairs = (
            (_FORWARD, response.forward_response),
            (_BACKWARD, response.backward_response.movedim(-2, 0).movedim(-1, 1)),
        )
        for axes, (title, array) in zip(row, pairs, strict=True):
            values = _over_equal_samples(array) if title is _FORWARD else _over_equal_samples(array).mT
            bound = float(values.abs().max()) or 1.0
            shown = axes.imshow(values.numpy(), vmin=-bound, vmax=bound, cmap="RdBu_r", interpolation="nearest")
            axes.set_title(f"weight {response.layer}: {title}", fontsize=9)
            axes.set_xlabel("step s", fontsize=9)
            axes.tick_params(labelsize=7)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(6, integer=True))
            figure.colorbar(shown, ax=axes, fraction=0.046).ax.tick_params(labelsize=7)
        row[0].set_ylabel("step t", fontsize=9)
    return figure


@checked
def spectrum(result: NTKSpectrum, shown: int = 12) -> Figure:
    """The leading eigenvalues of the tangent kernel over training time, and the share of the targets along each.

    Args:
        result: what ``comparison.ntk_spectrum`` returned.
        shown: how many eigenvalues, the largest first (darkest, and at the bottom on the right).

    Raises:
        InvalidInputError: for fewer than one.
    """
    require_whole("shown", shown, at_least=1)
    count = min(shown, result.eigenvalues.shape[1])
    figure = new_figure(8.4, 3.6, "Spectrum of the tangent kernel on the training rows")
    left, right = figure.subplots(1, 2)
    times = result.times.double().numpy()
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, count))
    for index in range(count):
        left.plot(times, result.eigenvalues[:, index].numpy(), color=colors[index], linewidth=1.4, label=f"{index + 1}")
    left.set_yscale("log" if bool((result.eigenvalues[:, :count] > 0).all()) else "linear")
    left.set_ylabel("eigenvalue per unit of learning rate", fontsize=9)
    shares = result.target_weights[:, :count].mT.numpy()
    right.stackplot(times, shares, colors=list(colors), linewidth=0)
    right.set_ylim(0, 1)
    right.set_ylabel("share of the targets", fontsize=9)
    for axes in (left, right):
        axes.set_xlabel("time (learning rate × step)", fontsize=9)
        tidy(axes)
    return figure


def _over_equal_samples(response: Tensor) -> Tensor:
    """Mean over equal samples, ``(time, time)``: ``(time, sample, time, sample[, output])``."""
    equal = response.diagonal(dim1=1, dim2=3)
    return (equal.sum(2) if equal.ndim == 4 else equal).mean(-1).double()
