"""The best learning rate of a narrow network is that of a wide one - in mean-field parameterization.

    python examples/lr_transfer.py --widths 64,128,256,512 --figure lr_transfer.png

First a coordinate check: after a few steps the features of every layer must have changed by the same amount at every
width. Then a sweep: for each width and base learning rate the training loss after some steps, for the mean-field and the
standard parameterization. The best rate stays where it is in the first and falls with the width in the second.

Rates are a factor 2 apart, so the best one is known to a factor of about 1.4. "inf" is a training that diverged.
"""

import argparse
import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft import data
from torch_dmft.parameterization import coordinate_check

RATES = {
    "mean_field": [2.0**power for power in range(-6, 1)],
    "standard": [2.0**power for power in range(-9, 0)],
}


def network(width: int) -> nn.Sequential:
    """Two hidden layers."""
    hidden = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 1))


def final_loss(width: int, scheme: str, lr: float, steps: int, seed: int, batch: tuple[Tensor, Tensor]) -> float:
    """The training loss of one network after some steps; infinite if it diverges."""
    inputs, targets = batch
    torch.manual_seed(seed)
    plan = dmft.parameterize(network(width), inputs, scheme=scheme)
    optimizer = torch.optim.SGD(plan.param_groups(lr))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(plan.model(inputs), targets).backward()
        optimizer.step()
    with torch.no_grad():
        loss = nn.functional.mse_loss(plan.model(inputs), targets).item()
    return loss if math.isfinite(loss) else math.inf


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[int, float]]:
    """Returns the best learning rate by scheme and width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="64,128,256,512")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3, help="networks whose losses are averaged")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--figure", help="where to save a figure")
    options = parser.parse_args(arguments)
    widths = [int(width) for width in options.widths.split(",")]
    batch = data.load("digits", options.samples)

    console = Console()
    console.print(coordinate_check(network, *batch, widths=widths, generator=torch.Generator().manual_seed(0)))
    losses = {
        scheme: {
            width: [
                sum(final_loss(width, scheme, lr, options.steps, seed, batch) for seed in range(options.seeds))
                / options.seeds
                for lr in rates
            ]
            for width in widths
        }
        for scheme, rates in RATES.items()
    }
    best = {}
    for scheme, rates in RATES.items():
        best[scheme] = {width: rates[row.index(min(row))] for width, row in losses[scheme].items()}
        console.print(table(scheme, rates, losses[scheme]))
        console.print(", ".join(f"N={width}: best lr {lr:g}" for width, lr in best[scheme].items()), highlight=False)
    moved = {scheme: max(rates.values()) / min(rates.values()) for scheme, rates in best.items()}
    print(
        f"Between widths {min(widths)} and {max(widths)} the best rate moves by a factor {moved['mean_field']:g} in "
        f"mean-field parameterization, {moved['standard']:g} in the standard one: tune a narrow network in the first."
    )
    if options.figure:
        figure(losses).savefig(options.figure, dpi=150)
    return best


def table(scheme: str, rates: Sequence[float], losses: dict[int, list[float]]) -> Table:
    """A row per rate, a column per width; the best of each width is marked."""
    shown = Table(title=f"{scheme}: training loss by base learning rate and width", title_justify="left")
    for name in ("lr", *(f"N={width}" for width in losses)):
        shown.add_column(name, justify="right")
    for index, lr in enumerate(rates):
        cells = (f"{'* ' if row[index] == min(row) else ''}{row[index]:.2g}" for row in losses.values())
        shown.add_row(f"{lr:.4g}", *cells)
    return shown


def figure(losses: dict[str, dict[int, list[float]]]) -> Figure:
    """Loss against base learning rate, a line per width, a panel per scheme."""
    drawn = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (scheme, by_width) in zip(drawn.subplots(1, len(losses), sharey=True), losses.items(), strict=True):
        for shade, (width, row) in enumerate(by_width.items()):
            finite = [loss if loss < 10 else math.nan for loss in row]
            axes.loglog(RATES[scheme], finite, "o-", color=str(0.8 - 0.8 * shade / len(by_width)), label=f"N={width}")
        axes.set_xticks(RATES[scheme], [f"1/{round(1 / rate)}" if rate < 1 else f"{rate:g}" for rate in RATES[scheme]])
        axes.tick_params(axis="x", labelsize=8)
        axes.minorticks_off()
        axes.set(title=scheme, xlabel="base learning rate", ylabel="training loss")
        axes.legend(frameon=False)
    return drawn


if __name__ == "__main__":
    main()
