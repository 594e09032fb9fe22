"""Residual networks of infinite width whose number of blocks grows: kernels settle, the best rate stays, blocks become linear.

    python examples/depth.py --depths 4,8,16,32

Left: the loss after training at several depths, with branches of 1/sqrt(L) and of 1/L, and where the straight line in 1/L
meets L = infinity. Middle: the loss by learning rate; with branches of 1/sqrt(L) the best rate stays, without scaling it falls
with the depth. Right: how far the change of a block in trained networks of finite width is from linear in the changes of its
own weights: it vanishes like 1/sqrt(L) in the one scaling, and stays in the other.
"""

import argparse
import copy
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, PercentFormatter
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft import data
from torch_dmft.core.errors import ConvergenceError
from torch_dmft.theory import DepthLimit, infinite_depth

SCALINGS = ("1/sqrt(L)", "1/L")


class Block(nn.Module):
    """h + W_2 tanh(W_1 h)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = (nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, h: Tensor) -> Tensor:
        """The stream behind the block."""
        changed: Tensor = h + self.down(torch.tanh(self.up(h)))
        return changed


def residual(inputs: int, blocks: int, width: int) -> nn.Sequential:
    """A network of so many blocks."""
    first, last = nn.Linear(inputs, width, bias=False), nn.Linear(width, 1, bias=False)
    return nn.Sequential(nn.Flatten(), first, *(Block(width) for _ in range(blocks)), last)


def main(arguments: Sequence[str] | None = None) -> dict[str, DepthLimit]:
    """Returns the limits of both scalings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", default="4,8,16,32", help="numbers of blocks, each a multiple of the first")
    parser.add_argument("--lr", type=float, default=0.02, help="base rate, the same at every depth")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--gamma0", type=float, default=1.0)
    parser.add_argument("--neurons", type=int, default=2048, help="sample that stands for infinite width")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--width", type=int, default=256, help="of the networks whose blocks are looked into")
    parser.add_argument("--networks", type=int, default=3, help="so many of them")
    parser.add_argument("--logdir", default="runs/depth", help="for the figure (default: %(default)s)")
    options = parser.parse_args(arguments)
    depths = [int(depth) for depth in options.depths.split(",")]
    inputs, targets = data.load("digits", options.samples)
    probe = dmft.Probe(inputs, targets)
    dim = inputs[0].numel()

    def posed(depth: str | None, blocks: int, lr: float) -> dmft.Problem:
        model = residual(dim, blocks, 16)  # the theory has the function from it, not the width
        plan = dmft.parameterize(
            model, inputs, gamma0=options.gamma0, depth=depth, generator=torch.Generator().manual_seed(0)
        )
        return dmft.Problem.like(plan, probe, lr=lr, steps=options.steps)

    limits = {}
    for depth in SCALINGS:
        solver = dmft.solvers.InfiniteWidth(options.neurons, options.replicas)
        limits[depth] = infinite_depth(
            functools.partial(posed, depth, lr=options.lr), depths, solver, record=options.steps
        )
        print(f"Branches of {depth}. {limits[depth]}\n")

    rates = [options.lr * 2 ** (power / 2) for power in range(-4, 13)]
    losses = {
        (depth, blocks): [_loss_after(posed(depth, blocks, lr), options.neurons) for lr in rates]
        for depth in ("1/sqrt(L)", None)
        for blocks in (depths[0], depths[-1])
    }
    for (scaling, blocks), found in losses.items():
        best = rates[min(range(len(rates)), key=lambda at: found[at])]
        print(f"{blocks} blocks, branches of {scaling or '1'}: best rate {best:.3g}")

    bent = {
        depth: [
            sum(_bent(depth, blocks, seed, options, inputs, targets) for seed in range(options.networks))
            / options.networks
            for blocks in depths
        ]
        for depth in SCALINGS
    }
    for depth, ratios in bent.items():
        slope = _slope(depths, ratios)
        print(
            f"Branches of {depth}: a block's change is off from linear by {ratios[0]:.3g} to {ratios[-1]:.3g}: L^{slope:.2f}"
        )

    Path(options.logdir).mkdir(parents=True, exist_ok=True)
    figure(limits, rates, losses, depths, bent).savefig(Path(options.logdir) / "depth.png", dpi=150)
    print(f"{options.logdir}/depth.png")
    return limits


def _loss_after(problem: dmft.Problem, neurons: int) -> float:
    """The loss after the last step; infinite if training diverges."""
    solver = dmft.solvers.InfiniteWidth(neurons, replicas=1)
    with warnings.catch_warnings(action="ignore"):  # that rates are near the largest stable one is what is looked for
        try:
            return float(dmft.solve(problem, solver, record=problem.steps).losses[-1])
        except ConvergenceError:
            return float("inf")


def _bent(depth: str, blocks: int, seed: int, options: argparse.Namespace, inputs: Tensor, targets: Tensor) -> float:
    """How far the changes of trained blocks are from linear in those of their weights, relative, on average over blocks."""
    model = residual(inputs[0].numel(), blocks, options.width)
    plan = dmft.parameterize(
        model, inputs, gamma0=options.gamma0, depth=depth, generator=torch.Generator().manual_seed(seed)
    )
    start = copy.deepcopy(model)
    optimizer = torch.optim.SGD(plan.param_groups(options.lr))
    for _ in range(options.steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    with torch.no_grad():
        h, ratios = model[1](inputs.flatten(1)), []
        pairs = zip(model.children(), start.children(), strict=True)
        for now, before in [
            (now, before) for now, before in pairs if isinstance(now, Block) and isinstance(before, Block)
        ]:
            u, was = now.up(h), torch.tanh(before.up(h))
            change = now.down(torch.tanh(u)) - before.down(was)
            linear = now.down(was) - before.down(was) + before.down((1 - was**2) * (u - before.up(h)))
            ratios.append(float((change - linear).norm() / change.norm()))
            h = now(h)
    return sum(ratios) / len(ratios)


def _slope(depths: Sequence[int], ratios: Sequence[float]) -> float:
    """The power of the depth, least squares."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (depths, ratios))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def figure(
    limits: dict[str, DepthLimit],
    rates: Sequence[float],
    losses: dict[tuple[str | None, int], list[float]],
    depths: Sequence[int],
    bent: dict[str, list[float]],
) -> Figure:
    """Loss by depth, loss by rate, and how linear blocks are."""
    drawn = Figure(figsize=(11, 3.4), layout="constrained")
    by_depth, by_rate, linear = drawn.subplots(1, 3)
    for (depth, found), color in zip(limits.items(), ("tab:blue", "tab:orange"), strict=True):
        x = [1 / blocks for blocks in found.depths]
        at = [
            (float(run.losses[-1]), 0.0 if run.stderr is None else float(run.stderr.losses[-1]))
            for run in found.predictions
        ]
        by_depth.errorbar(
            x,
            [y for y, _ in at],
            [2 * e for _, e in at],
            fmt="o",
            color=color,
            markersize=4,
            label=f"branches of {depth}",
        )
        end, error = float(found.limit.losses[-1]), found.limit.stderr
        by_depth.errorbar(
            [0], [end], [0.0 if error is None else 2 * float(error.losses[-1])], fmt="s", color=color, markersize=5
        )
        by_depth.plot([0, x[-1]], [end, at[-1][0]], "--", color=color, linewidth=1)
        linear.loglog(depths, bent[depth], "o-", color=color, markersize=4, label=f"branches of {depth}")
    for (scaling, blocks), falls in losses.items():
        style = "-" if blocks == depths[-1] else ":"
        color = "tab:blue" if scaling else "tab:gray"
        by_rate.loglog(rates, falls, style, color=color, label=f"{blocks} blocks, branches of {scaling or '1'}")
    by_depth.set(xlabel="1 / number of blocks (square: 0, extrapolated)", ylabel="loss after training")
    by_rate.set(xlabel="base learning rate", ylabel="loss after training")
    linear.set(xlabel="number of blocks", ylabel="change of a block, share not linear")
    linear.set_xticks(depths, [str(blocks) for blocks in depths])
    linear.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    linear.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    linear.minorticks_off()
    for axes in (by_depth, by_rate, linear):
        axes.legend(frameon=False, fontsize="small")
    return drawn


if __name__ == "__main__":
    main()
