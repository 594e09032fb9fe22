"""Convolutional networks of N and of 2N channels learn the same at fixed gamma0, and something else at another gamma0.

    python examples/cnn_widths.py --widths 32,64 --gammas 0.5,1,2

The claim behind the theory, measured without it, as in Figure 5 of Bordelon & Pehlevan 2022 on CIFAR-10: in mean-field
parameterization loss and kernels have a limit in the width that depends on gamma0 only. At each width and gamma0 several
networks are trained, and their mean loss and last kernel compared in units of the standard errors,

    distance = |mean_1 - mean_2| / |(s_1^2 / n_1 + s_2^2 / n_2)^(1/2)|,

with s the standard deviation of an entry over n networks, and norms over recorded steps or pairs of images. Around 1 the two
are equal as far as the networks can tell; from 3 on they differ. "one network" is |s| / |mean| of the kernel: how far a
single network is off its mean, which falls like 1/sqrt(N).
"""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import combinations

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft import data
from torch_dmft.report import LiveScalars
from torch_dmft.report.style import COLORS

Runs = dict[tuple[float, int], list[dmft.Trajectory]]
"""The networks of every gamma0 and width."""


def network(channels: int) -> nn.Sequential:
    """Two convolutions and a linear readout of the channels at 2x2 places, so N = 4 * channels."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * channels, 1),
    )


def trained(options: argparse.Namespace, gamma0: float, width: int, logdir: str | None) -> dmft.Trajectory:
    """One network and its kernels, f - f_0 trained on all images at once."""
    inputs, targets = data.load("digits", options.samples)
    plan = dmft.parameterize(network(width), inputs, gamma0=gamma0)
    model = dmft.centered(plan.model)
    optimizer = torch.optim.SGD(plan.param_groups(options.lr))
    every = max(1, options.steps // 10)
    recorder = dmft.Recorder(plan, dmft.Probe(inputs, targets), model=model, every=every, fields=False)
    with nullcontext() if logdir is None else LiveScalars(logdir, recorder), recorder.attach(optimizer):
        for _ in range(options.steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
    return recorder.trajectory()


def losses(runs: Sequence[dmft.Trajectory]) -> Tensor:
    """``(network, time)``."""
    return torch.stack([run.losses for run in runs]).double()


def last_kernels(runs: Sequence[dmft.Trajectory]) -> Tensor:
    """Phi of the features that the readout sees, after training: ``(network, sample, sample)``."""
    return torch.stack([run.layers[-1].forward.equal_time[-1] for run in runs]).double()


def distance(one: Tensor, other: Tensor) -> float:
    """How far the means of two sets ``(network, ...)`` are apart, in units of their standard errors."""
    noise = sum((networks.var(0) / len(networks)).sum() for networks in (one, other))
    return float(((one.mean(0) - other.mean(0)).square().sum() / noise).sqrt())


def main(arguments: Sequence[str] | None = None) -> Runs:
    """Returns the recorded networks by gamma0 and number of channels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="32,64", help="channels per layer, two or more")
    parser.add_argument("--gammas", default="0.5,1,2")
    parser.add_argument("--seeds", type=int, default=4, help="networks of each width and gamma0, 3 or more")
    parser.add_argument("--lr", type=float, default=0.05, help="base learning rate, the same for all")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--logdir", default="runs/cnn_widths", help="for logs and a figure (default: %(default)s)")
    options = parser.parse_args(arguments)
    widths = sorted(int(width) for width in options.widths.split(","))
    gammas = [float(gamma0) for gamma0 in options.gammas.split(",")]

    runs: Runs = {(gamma0, width): [] for gamma0 in gammas for width in widths}
    torch.manual_seed(0)
    for gamma0, width in track(list(runs) * options.seeds, "training", transient=True):
        logdir = f"{options.logdir}/gamma0={gamma0:g}, {width} channels"
        # Of each kind the first is logged.
        runs[gamma0, width].append(trained(options, gamma0, width, None if runs[gamma0, width] else logdir))

    console = Console()
    console.print(summary(runs))
    console.print(distances(runs))
    targets = data.load("digits", options.samples)[1]
    figure(runs, targets).savefig(f"{options.logdir}/cnn_widths.png", dpi=110)
    print(f'{options.logdir}/cnn_widths.png, and one network of each kind: tensorboard --logdir "{options.logdir}"')
    return runs


def summary(runs: Runs) -> Table:
    """A row per gamma0 and width."""
    shown = Table(title="After training, mean of the networks", title_justify="left")
    for name in ("gamma0", "channels", "loss", "last kernel moved", "one network"):
        shown.add_column(name, justify="right")
    for (gamma0, width), networks in runs.items():
        last, kernels = losses(networks)[:, -1], last_kernels(networks)
        start = torch.stack([run.layers[-1].forward.equal_time[0] for run in networks]).double().mean(0)
        moved = (kernels.mean(0) - start).norm() / start.norm()
        spread = kernels.var(0).sum().sqrt() / kernels.mean(0).norm()
        error = last.std() / len(last) ** 0.5
        shown.add_row(f"{gamma0:g}", f"{width}", f"{last.mean():.4f} +- {error:.4f}", f"{moved:.2f}", f"{spread:.3f}")
    return shown


def distances(runs: Runs) -> Table:
    """A row per pair that differs in the width or in gamma0 alone."""
    shown = Table(title="Apart by so many standard errors", title_justify="left")
    for name in ("gamma0", "channels", "loss", "last kernel"):
        shown.add_column(name, justify="right")
    equal = [pair for pair in combinations(runs, 2) if pair[0][0] == pair[1][0]]
    other = [pair for pair in combinations(runs, 2) if pair[0][1] == pair[1][1]]
    for number, pair in enumerate((*equal, *other), 1):
        gammas, widths = (" / ".join(dict.fromkeys(f"{key[axis]:g}" for key in pair)) for axis in (0, 1))
        numbers = (distance(*(of(runs[key]) for key in pair)) for of in (losses, last_kernels))
        shown.add_row(gammas, widths, *(f"{apart:.1f}" for apart in numbers), end_section=number == len(equal))
    return shown


def figure(runs: Runs, targets: Tensor) -> Figure:
    """Losses with the spread of single networks, and the last kernels, sorted by class."""
    gammas, widths = (list(dict.fromkeys(key[axis] for key in runs)) for axis in (0, 1))
    drawn = Figure(figsize=(4.2 + 1.9 * len(gammas), 1.9 * len(widths) + 0.4), layout="constrained")
    left, right = drawn.subfigures(1, 2, width_ratios=(4.2, 1.9 * len(gammas)))
    axes = left.subplots()
    for gamma0, color in zip(gammas, COLORS, strict=False):
        for width, dashes in zip(widths, ("-", "--", ":", "-."), strict=False):
            values, steps = losses(runs[gamma0, width]), runs[gamma0, width][0].steps
            mean, spread = values.mean(0), values.std(0)
            label = f"$\\gamma_0$ = {gamma0:g}, {width} channels"
            axes.plot(steps.numpy(), mean.numpy(), dashes, color=color, label=label)
            axes.fill_between(
                steps.numpy(), (mean - spread).numpy(), (mean + spread).numpy(), color=color, alpha=0.15, linewidth=0
            )
    axes.set(xlabel="step", ylabel="loss; shaded: single networks")
    axes.legend(frameon=False, fontsize=7)
    order = targets[:, 0].argsort(stable=True)
    kernels = {key: last_kernels(networks).mean(0)[order][:, order] for key, networks in runs.items()}
    right.suptitle("last kernel after training, images by class", fontsize=10)
    panels = right.subplots(len(widths), len(gammas), squeeze=False)
    for column, gamma0 in enumerate(gammas):
        # A scale for each gamma0: the widths are to be compared.
        limit = max(float(kernels[gamma0, width].abs().max()) for width in widths)
        for row, width in enumerate(widths):
            panel = panels[row, column]
            shown = panel.imshow(kernels[gamma0, width].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            panel.set(xticks=[], yticks=[])
            if row == 0:
                panel.set_title(f"$\\gamma_0$ = {gamma0:g}", fontsize=9)
            if column == 0:
                panel.set_ylabel(f"{width} channels", fontsize=9)
        bar = right.colorbar(shown, ax=panels[:, column], location="bottom", shrink=0.85)
        bar.ax.tick_params(labelsize=7)
    return drawn


if __name__ == "__main__":
    main()
