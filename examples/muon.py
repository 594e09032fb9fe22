"""SGD, Adam and Muon at N = infinity on the same data, beside networks that people train.

    python examples/muon.py --width 256 --steps 15

A network of three tanh layers learns digits three times: all of it by SGD, and its hidden matrices by torch.optim.Adam or
torch.optim.Muon, the rest by SGD as before. The recorder has seen all optimizers, and the theory is asked the same questions:
lines, the infinitely wide networks; dots, the finite ones. Adam and Muon move features further at the same loss, as they turn
entries or singular values of every size in a gradient into about 1. Their steps do not shrink with the gradient, so that their
rates fall to zero along a line.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

import torch_dmft as dmft
from torch_dmft import data
from torch_dmft.comparison import movement


def trained(
    name: str, probe: dmft.Probe, options: argparse.Namespace, generator: torch.Generator
) -> tuple[dmft.Trajectory, dmft.Problem]:
    """A network in a loop of its own: what was measured, and the question to the theory."""
    width, steps = options.width, options.steps
    hidden = [layer for _ in range(2) for layer in (nn.Linear(width, width, bias=False), nn.Tanh())]
    first = nn.Linear(probe.tensor[0].numel(), width, bias=False)
    model = nn.Sequential(nn.Flatten(), first, nn.Tanh(), *hidden, nn.Linear(width, 1, bias=False))
    plan = dmft.parameterize(model, probe.tensor, gamma0=options.gamma0, generator=generator)
    matrices = [layer.weight for layer in hidden if isinstance(layer, nn.Linear)] if name != "SGD" else []

    def groups(groups: list[dict[str, Any]], of_matrices: bool) -> list[dict[str, Any]]:
        """Those of the matrices alone, or of everything else."""
        for group in groups:
            group["params"] = [p for p in group["params"] if any(p is matrix for matrix in matrices) == of_matrices]
        return [group for group in groups if group["params"]]

    optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD(groups(plan.param_groups(options.lr), False))]
    if name == "Adam":
        optimizers.append(torch.optim.Adam(groups(plan.param_groups(options.adam_lr, optimizer="adam"), True)))
    if name == "Muon":  # of spectral norm gamma0 per unit of the base rate
        optimizers.append(torch.optim.Muon(matrices, lr=options.muon_lr * options.gamma0, weight_decay=0.0))
    falls = [torch.optim.lr_scheduler.LinearLR(each, 1.0, 1 / steps, steps) for each in optimizers[1:]]
    recorder = dmft.Recorder(plan, probe)
    with recorder.attach(*optimizers):
        for _ in range(steps):
            for optimizer in optimizers:
                optimizer.zero_grad()
            nn.functional.mse_loss(model(probe.tensor), probe.targets).backward()
            for stepper in [*optimizers, *falls]:
                stepper.step()
    return recorder.trajectory(), recorder.problem()


def main(arguments: Sequence[str] | None = None) -> dict[str, tuple[dmft.Trajectory, dmft.Trajectory]]:
    """Returns network and theory of each optimizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--gamma0", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=0.15, help="base rate of SGD")
    parser.add_argument("--adam-lr", type=float, default=0.1, help="base rate of Adam")
    parser.add_argument("--muon-lr", type=float, default=0.1, help="base rate of Muon")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--neurons", type=int, default=2048, help="sample that stands for infinite width")
    parser.add_argument("--logdir", default="runs/muon", help="for the figure (default: %(default)s)")
    options = parser.parse_args(arguments)
    inputs, targets = data.load("digits", options.samples)
    probe = dmft.Probe(inputs, targets)
    found = {}
    for name in ("SGD", "Adam", "Muon"):
        measured, problem = trained(name, probe, options, torch.Generator().manual_seed(0))
        theory = dmft.solve(problem, dmft.solvers.InfiniteWidth(options.neurons, replicas=2))
        print(f"{name}\n{dmft.compare(measured, theory)}\n")
        found[name] = measured, theory
    Path(options.logdir).mkdir(parents=True, exist_ok=True)
    figure(found, options.width).savefig(Path(options.logdir) / "muon.png", dpi=150)
    print(f"{options.logdir}/muon.png")
    return found


def figure(found: dict[str, tuple[dmft.Trajectory, dmft.Trajectory]], width: int) -> Figure:
    """Loss, and how far features have moved."""
    drawn = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, label in zip(drawn.subplots(1, 2), ("loss", "|Φ(t) - Φ(0)| / |Φ(0)|, last features"), strict=True):
        for (name, runs), color in zip(found.items(), ("tab:blue", "tab:green", "tab:orange"), strict=True):
            for run, style, what in zip(runs, ("o", "-"), (f"N = {width}", "N = ∞"), strict=True):
                values = run.losses if label == "loss" else movement(run.layers[-1].forward)
                axes.plot(run.steps, values, style, color=color, markersize=3, label=f"{name}, {what}")
        axes.set(xlabel="step", ylabel=label)
    axes.legend(frameon=False)
    return drawn


if __name__ == "__main__":
    main()
