"""The pictures of the pages that answer one question each.

    python docs/pictures.py            # all of them, into docs/assets
    python docs/pictures.py ntk        # one

Networks are small, so that each takes some seconds on one core.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft import data
from torch_dmft.parameterization import coordinate_check
from torch_dmft.report.style import COLORS, new_figure

SAMPLES, STEPS, SEEDS = 24, 60, 8


def digits() -> tuple[Tensor, Tensor]:
    """Zeros, then ones: 64 pixels each, targets -1 and +1."""
    inputs, targets = data.load("digits", SAMPLES)
    order = targets.flatten().argsort(stable=True)
    return inputs.flatten(1)[order], targets[order]


def network(width: int, seed: int) -> nn.Sequential:
    """Two hidden layers, as PyTorch starts them."""
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        hidden = [nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
        return nn.Sequential(*hidden, nn.Linear(width, 1))


def trained(width: int, seed: int = 0, gamma0: float = 1.0) -> dmft.Recorder:
    """A centered network, recorded at the start, the end and between."""
    inputs, targets = digits()
    generator = torch.Generator().manual_seed(seed)
    plan = dmft.parameterize(network(width, seed), inputs, gamma0=gamma0, generator=generator)
    model = dmft.centered(plan.model)
    optimizer = torch.optim.SGD(plan.param_groups(lr=0.1))
    recorder = dmft.Recorder(plan, dmft.Probe(inputs, targets), every=5, model=model)
    with recorder.attach(optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
    return recorder


def heatmap(axes: Axes, kernel: Tensor, title: str, most: float | None = None) -> None:
    """A kernel over samples, zeros first; colours are symmetric around 0."""
    limit = kernel.abs().max().item() if most is None else most
    image = axes.imshow(kernel, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.figure.colorbar(image, ax=axes, shrink=0.75).ax.tick_params(labelsize=7)


def kernels() -> Figure:
    """Every kernel of a network before and after training."""
    run = trained(512).trajectory()
    shown = {
        "Φ, input": run.layers[0].forward,
        "Φ, hidden 1": run.layers[1].forward,
        "Φ, hidden 2": run.layers[2].forward,
        "G, hidden 1": run.layers[0].backward,
        "G, hidden 2": run.layers[1].backward,
        "NTK": run.ntk,
    }
    figure = new_figure(11.0, 3.9, f"Kernels of {SAMPLES} digits, zeros before ones, at the start and after training")
    for column, (name, kernel) in enumerate(shown.items()):
        most = max(kernel.equal_time[time].abs().max().item() for time in (0, -1))
        for row, (time, when) in enumerate([(0, "start"), (-1, "end")]):
            heatmap(figure.add_subplot(2, 6, 6 * row + column + 1), kernel.equal_time[time], f"{name}, {when}", most)
    return figure


def ntk() -> Figure:
    """The tangent kernel before and after training, and its eigenvalues."""
    run = trained(512).trajectory()
    start, end = run.ntk.equal_time[0], run.ntk.equal_time[-1]
    figure = new_figure(9.0, 2.9, f"The NTK of a network of width 512 on {SAMPLES} digits")
    most = end.abs().max().item()
    heatmap(figure.add_subplot(1, 3, 1), start, "at the start", most)
    heatmap(figure.add_subplot(1, 3, 2), end, "after training", most)
    axes = figure.add_subplot(1, 3, 3)
    for kernel, name, color in ((start, "start", COLORS[0]), (end, "end", COLORS[1])):
        axes.semilogy(
            range(1, SAMPLES + 1), torch.linalg.eigvalsh(kernel.double()).flip(0), ".-", color=color, label=name
        )
    axes.set_title("eigenvalues", fontsize=9)
    axes.set_xlabel("number")
    axes.legend(frameon=False)
    return figure


def lazy_or_rich() -> Figure:
    """What a lazy and a rich network make of the same start."""
    figure = new_figure(11.0, 2.9, "Φ of the last features: a lazy network keeps it, a rich one makes it anew")
    runs = {gamma0: trained(512, gamma0=gamma0).trajectory() for gamma0 in (0.1, 3.0)}
    last = {gamma0: run.layers[-1].forward.equal_time for gamma0, run in runs.items()}
    most = last[0.1][-1].abs().max().item()
    heatmap(figure.add_subplot(1, 4, 1), last[0.1][0], "at the start", most)
    heatmap(figure.add_subplot(1, 4, 2), last[0.1][-1], "lazy (gamma0 = 0.1), trained", most)
    heatmap(figure.add_subplot(1, 4, 3), last[3.0][-1], "rich (gamma0 = 3), trained")
    axes = figure.add_subplot(1, 4, 4)
    for (gamma0, run), color in zip(runs.items(), COLORS, strict=False):
        axes.semilogy(run.steps, run.losses, color=color, label=f"gamma0 = {gamma0:g}")
    axes.set_title("loss: both learn", fontsize=9)
    axes.set_xlabel("step")
    axes.legend(frameon=False)
    return figure


def along_widths(axes: Axes, widths: Sequence[int]) -> None:
    """Logarithmic axes with the widths as ticks."""
    axes.set(xscale="log", yscale="log", xlabel="width N")
    axes.xaxis.set_major_locator(FixedLocator(widths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def random_networks() -> Figure:
    """What differs from seed to seed, at two widths, and how that falls with the width."""
    widths = (32, 64, 128, 256, 512)
    runs = {width: [trained(width, seed).trajectory() for seed in range(SEEDS)] for width in widths}
    theory = dmft.solve(trained(32).problem(), dmft.solvers.InfiniteWidth(neurons=2048, replicas=2))
    figure = new_figure(9.0, 3.2, f"{SEEDS} networks of each width that differ in their random start alone")
    axes = figure.add_subplot(1, 2, 1)
    for width, color in ((32, "darkgray"), (512, "black")):
        for number, run in enumerate(runs[width]):
            axes.semilogy(run.steps, run.losses, color=color, lw=0.8, label=f"N = {width}" if number == 0 else None)
    axes.semilogy(theory.steps, theory.losses, "--", color=COLORS[0], label="theory, N = ∞")
    axes.set_xlabel("step")
    axes.set_title("loss", fontsize=9)
    axes.legend(frameon=False, fontsize=8)

    axes = figure.add_subplot(1, 2, 2)
    scatter = {
        "Φ of the last features": lambda run: run.layers[-1].forward.equal_time[-1],
        "NTK": lambda run: run.ntk.equal_time[-1],
    }
    for (name, of), color in zip(scatter.items(), COLORS[2:], strict=False):
        spreads = [relative_spread(torch.stack([of(run) for run in runs[width]])) for width in widths]
        axes.loglog(widths, spreads, "o-", color=color, label=name)
    axes.loglog(widths, [spreads[0] * (widths[0] / width) ** 0.5 for width in widths], "k:", label="N^(-1/2)")
    along_widths(axes, widths)
    axes.set_ylim(0.01, 0.2)
    axes.set_title("how far one network is from their mean, at the end", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    return figure


def relative_spread(kernels: Tensor) -> float:
    """The root mean square distance from the mean, in units of the mean; kernels are ``(seed, sample, sample)``."""
    mean = kernels.mean(0)
    return float((kernels.var(0).sum() / mean.square().sum()).sqrt())


def failed_check() -> Figure:
    """Coordinate checks of a set-up that is right and of one that is not."""
    inputs, targets = digits()
    widths, seeds = (64, 128, 256, 512), itertools.count()
    figure = new_figure(9.0, 3.2, "A coordinate check: how far three steps of Adam move what each layer puts out")
    set_ups = {
        "mean_field": ("mean-field parameterization", 0.1),
        "standard": ("PyTorch's own initial weights, one rate", 3e-4),
    }
    for number, (scheme, (title, lr)) in enumerate(set_ups.items()):
        check = coordinate_check(
            lambda width: network(width, next(seeds)),
            inputs,
            targets,
            widths=widths,
            lr=lr,
            scheme=scheme,
            optimizer="adam",
            steps=3,
            seeds=4,
            generator=torch.Generator().manual_seed(0),
        )
        axes = figure.add_subplot(1, 2, number + 1)
        for layer, row, color in zip(check.layers, check.updates, COLORS, strict=False):
            axes.plot(check.sizes, row, "o-", color=color, label=f"weight {layer}: N^{check.exponents[layer]:+.2f}")
        along_widths(axes, widths)
        low, high = check.updates.min().item(), check.updates.max().item()
        axes.set_ylim(low / 3, high * 3)
        axes.set_ylabel("root mean square change" if number == 0 else "")
        axes.set_title(f"{title}: {'passed' if check.passed else 'failed'}", fontsize=9)
        axes.legend(frameon=False, fontsize=8)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "kernels": kernels,
    "ntk": ntk,
    "lazy-or-rich": lazy_or_rich,
    "random": random_networks,
    "coordinate-check": failed_check,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(PICTURES)} (default: all)")
    parser.add_argument(
        "--folder", type=Path, default=Path(__file__).parent / "assets", help="where to (default: docs/assets)"
    )
    options = parser.parse_args(arguments)
    for name in options.names or PICTURES:
        PICTURES[name]().savefig(options.folder / f"{name}.png", dpi=100)
        print(options.folder / f"{name}.png")


if __name__ == "__main__":
    main()
