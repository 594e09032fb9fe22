"""From lazy to rich: how far features move with gamma0, in a network and in theory.

    python examples/richness.py --gammas 0.1,0.3,1,3

At small gamma0 the kernels stay where they were and the network is the static NTK's kernel machine; at gamma0 of order 1
they move by their own size and turn towards the targets. Trained is the centered model f - f_0, since at small gamma0 a
finite network begins at a large random output, which its infinitely wide limit does not have.

"moved" is |K(T) - K(0)| / |K(0)| of the last features: below a tenth, the static NTK is a good description; around 1, features
are learned. "on targets" is the kernel's alignment with y y^T: 1 if nothing but the labels is left in it. It starts at what
the untrained network has, the value at the smallest gamma0. Where network and theory differ by more than a few 1/sqrt(N),
the network is too narrow for this gamma0.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import nn

import torch_dmft as dmft
from torch_dmft import data
from torch_dmft.comparison import movement, target_alignments


def network(width: int) -> nn.Sequential:
    """Two hidden layers."""
    hidden = [nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 1))


def learned(run: dmft.Trajectory, targets: torch.Tensor) -> tuple[float, float]:
    """Of the last features: how far their kernel moved, and its alignment with the targets at the end."""
    kernel = run.layers[-1].forward
    return movement(kernel)[-1].item(), target_alignments(kernel, targets)[-1].item()


def main(arguments: Sequence[str] | None = None) -> dict[str, list[tuple[float, float]]]:
    """Returns (movement, target alignment) of network and theory for each gamma0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gammas", default="0.1,0.3,1,3")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--lr", type=float, default=0.1, help="base learning rate")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--neurons", type=int, default=2048, help="sample that stands for infinite width")
    parser.add_argument("--logdir", default="runs/richness", help="for logs and a figure (default: %(default)s)")
    options = parser.parse_args(arguments)
    gammas = [float(gamma) for gamma in options.gammas.split(",")]
    inputs, targets = data.load("digits", options.samples)
    probe = dmft.Probe(inputs, targets)

    torch.manual_seed(0)
    found: dict[str, list[tuple[float, float]]] = {"network": [], "theory": []}
    for gamma0 in gammas:
        plan = dmft.parameterize(network(options.width), inputs, gamma0=gamma0)
        model = dmft.centered(plan.model)
        optimizer = torch.optim.SGD(plan.param_groups(options.lr))
        recorder = dmft.Recorder(plan, probe, model=model, schedule=[0, options.steps])
        with recorder.attach(optimizer):
            for _ in range(options.steps):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(inputs), targets).backward()
                optimizer.step()
        theory = dmft.solve(recorder.problem(), dmft.solvers.InfiniteWidth(options.neurons), record=[0, options.steps])
        measured = recorder.trajectory()
        dmft.compare(measured, theory).write_tensorboard(f"{options.logdir}/gamma0={gamma0:g}", plan=plan)
        found["network"].append(learned(measured, targets))
        found["theory"].append(learned(theory, targets))

    Console().print(table(gammas, found, options.width))
    figure(gammas, found).savefig(Path(options.logdir) / "richness.png", dpi=150)
    print(f'{options.logdir}/richness.png, and the DMFT tab of: tensorboard --logdir "{options.logdir}"')
    return found


def table(gammas: Sequence[float], found: dict[str, list[tuple[float, float]]], width: int) -> Table:
    """A row per gamma0."""
    shown = Table(title=f"Kernel of the last features after training; network of width {width}", title_justify="left")
    for name in ("gamma0", "moved: network", "theory", "on targets: network", "theory"):
        shown.add_column(name, justify="right")
    for gamma0, network_, theory in zip(gammas, found["network"], found["theory"], strict=True):
        numbers = (network_[0], theory[0], network_[1], theory[1])
        shown.add_row(f"{gamma0:g}", *(f"{number:.3f}" for number in numbers))
    return shown


def figure(gammas: Sequence[float], found: dict[str, list[tuple[float, float]]]) -> Figure:
    """Movement and target alignment against gamma0."""
    drawn = Figure(figsize=(8, 3.4), layout="constrained")
    for index, (axes, label) in enumerate(
        zip(drawn.subplots(1, 2), ("|Φ(T) - Φ(0)| / |Φ(0)|", "alignment of Φ(T) with the targets"), strict=True)
    ):
        for name, style in (("network", "ko"), ("theory", "-")):
            axes.semilogx(gammas, [pair[index] for pair in found[name]], style, label=name)
        axes.set_xticks(gammas, [f"{gamma0:g}" for gamma0 in gammas])
        axes.minorticks_off()
        axes.set(xlabel="gamma0", ylabel=label)
        axes.legend(frameon=False)
    return drawn


if __name__ == "__main__":
    main()
