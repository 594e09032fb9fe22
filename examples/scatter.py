"""How far networks of any width scatter, told by one run at N = infinity, beside networks that are trained.

    python examples/scatter.py --networks 24 --steps 40

The theory asks how much each neuron of the infinitely wide network has to do with a number (``theory.fluctuations``). Networks
of width N then scatter around the limit with the standard deviation sqrt(Sigma / N): a band around what is predicted for a
digit that no network was trained on, with networks of the first width inside and around it. The spreads of networks of
several widths are dots, with what chance makes of so few; the theory is one line for all widths.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import torch_dmft as dmft
from torch_dmft import data
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.report.style import COLORS
from torch_dmft.theory import Fluctuations, fluctuations

NAMES = ("output for a new digit", "mean square of the last features")


@dataclass
class Scatter:
    """What was found.

    Attributes:
        steps: when, ``(time,)``.
        theory: at infinite width, of the outputs at these steps and of the features at the last.
        spreads: standard deviations over networks of the numbers at the last step, by width: ``(2,)``.
        outputs: those of networks of the first width, ``(network, time)``.
    """

    steps: list[int]
    theory: Fluctuations
    spreads: dict[int, Tensor]
    outputs: Tensor

    def predicted(self, width: int) -> Tensor:
        """Their standard deviations, as the theory has them."""
        return self.theory.spread(width)[-2:]

    def sigma_root(self, at: int) -> tuple[float, float]:
        """The root of Sigma of one of them, and its standard error."""
        assert self.theory.stderr is not None
        root, error = (float(each.diagonal()[at - 2]) for each in (self.theory.sigma, self.theory.stderr))
        return root**0.5, error / (2 * root**0.5)


def numbers(run: Trajectory) -> Tensor:
    """The output for the last row at all times, and the mean square of the last features at the end: ``(time + 1,)``."""
    features = run.layers[-1].forward.array[-1].diagonal().mean()
    return torch.cat([run.outputs[:, -1, 0].double(), features.double()[None]])


def main(arguments: Sequence[str] | None = None) -> Scatter:
    """Returns the theory and what networks do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--networks", type=int, default=100, help="of every width")
    parser.add_argument("--gamma0", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=0.1, help="base learning rate")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--neurons", type=int, default=1000, help="sample that stands for infinite width")
    parser.add_argument("--logdir", default="runs/scatter", help="for the figure (default: %(default)s)")
    options = parser.parse_args(arguments)
    inputs, targets = data.load("digits", options.samples + 2)
    problem = dmft.Problem.mlp(
        inputs[:-2].flatten(1),
        targets[:-2],
        test_inputs=inputs[-2:].flatten(1),
        depth=2,
        gamma0=options.gamma0,
        lr=options.lr,
        steps=options.steps,
    )
    steps = sorted({options.steps * part // 8 for part in range(9)})
    theory = fluctuations(problem, numbers, record=steps, neurons=options.neurons, progress=True)
    spreads, curves = {}, []
    for width in options.widths:
        networks = dmft.solve(problem, dmft.solvers.FiniteWidth(width, options.networks), record=steps)
        found = torch.stack([numbers(one) for one in networks.replicas])
        spreads[width] = found.std(0)[-2:]
        curves.append(found[:, :-1])
    result = Scatter(steps, theory, spreads, curves[0])
    print(
        f"{'N':>5}  standard deviation over {options.networks} networks / sqrt(Sigma / N), by chance 1 +- {chance(options):.2f}"
    )
    for width, found in spreads.items():
        ratios = found / result.predicted(width)
        print(f"{width:5d}  {', '.join(f'{ratio:.2f} ({name})' for ratio, name in zip(ratios, NAMES, strict=True))}")
    Path(options.logdir).mkdir(parents=True, exist_ok=True)
    figure(result, options.widths[0], chance(options)).savefig(Path(options.logdir) / "scatter.png", dpi=150)
    print(f"{options.logdir}/scatter.png")
    return result


def chance(options: argparse.Namespace) -> float:
    """The relative standard error of a standard deviation over so many networks."""
    return 1 / math.sqrt(2 * (options.networks - 1))


def figure(found: Scatter, width: int, chance: float) -> Figure:
    """A band around the limit, and spreads against the width."""
    drawn = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = drawn.subplots(1, 2)
    limit, spread = found.theory.values[:-1], found.theory.spread(width)[:-1]
    for curve in found.outputs[:30]:
        left.plot(found.steps, curve, color="black", linewidth=0.5, alpha=0.5)
    for times, alpha in ((1, 0.35), (2, 0.2)):
        left.fill_between(
            found.steps, limit - times * spread, limit + times * spread, color=COLORS[0], alpha=alpha, linewidth=0
        )
    left.plot(found.steps, limit, color=COLORS[0], label=f"N = ∞, and one and two standard deviations of N = {width}")
    left.plot([], [], color="black", linewidth=0.5, label=f"networks of N = {width}")
    left.set(xlabel="step", ylabel=NAMES[0])
    left.legend(frameon=False, fontsize=8)
    widths = torch.tensor(list(found.spreads))
    for at, (name, color) in enumerate(zip(NAMES, COLORS[::2], strict=False)):
        dots = torch.stack([width**0.5 * each[at] for width, each in found.spreads.items()])
        right.errorbar(widths, dots, chance * dots, fmt="o", color=color, markersize=4)
        level, error = found.sigma_root(at)
        right.axhline(level, color=color, label=name)
        right.axhspan(level - error, level + error, color=color, alpha=0.2, linewidth=0)
    right.set(xscale="log", xlabel="width N", ylabel="√N × standard deviation")
    right.set_ylim(0, None)
    right.set_xticks(widths.tolist(), [str(int(n)) for n in widths])
    right.set_xticks([], minor=True)
    title = "lines: √Σ from one run; dots: networks"
    right.legend(frameon=False, fontsize=8, loc="lower left", title=title, title_fontsize=8, alignment="left")
    return drawn


if __name__ == "__main__":
    main()
