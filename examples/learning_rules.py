"""Gradient descent, feedback alignment and Hebb's rule at N = infinity on the same data, beside networks that they teach.

    python examples/learning_rules.py --width 512 --steps 40

Networks of three tanh layers learn digits by rules that are no gradient (``dmft.learning_rule``): errors come down through
fixed matrices that know the initial weights to a part rho (feedback alignment), straight from the outputs (direct feedback
alignment), or not at all (Hebb). The recorder has seen the rule, and the theory is asked the same question: lines, the
infinitely wide networks; dots, the finite ones. Behind the last hidden layer the weights align with the fixed ones as they
learn, which the cosine of gradient and pseudo-gradient tells. Features move whatever the rule, and least by Hebb's.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

import torch_dmft as dmft
from torch_dmft import data
from torch_dmft.comparison import movement

RULES = {
    "gradient descent": ("gradient", 0.0),
    "feedback alignment, ρ = 0.5": ("feedback_alignment", 0.5),
    "feedback alignment, ρ = 0": ("feedback_alignment", 0.0),
    "direct feedback alignment": ("direct_feedback_alignment", 0.0),
    "Hebb": ("hebb", 0.0),
}
"""Rule and rho, by what they are called."""
Runs = dict[str, tuple[dmft.Trajectory, dmft.Trajectory]]
"""Network and theory of every rule."""


def trained(name: str, probe: dmft.Probe, options: argparse.Namespace) -> tuple[dmft.Trajectory, dmft.Problem, float]:
    """A network that is taught by a rule: what was measured, the question to the theory, and the last cosine.

    The cosine is that of gradient and pseudo-gradient at the last hidden layer, mean over samples.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in in (probe.tensor[0].numel(), options.width, options.width):
        layers += [nn.Linear(fan_in, options.width, bias=False), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(options.width, 1, bias=False))
    generator = torch.Generator().manual_seed(options.seed)
    plan = dmft.parameterize(model, probe.tensor, gamma0=options.gamma0, generator=generator)
    optimizer = torch.optim.SGD(plan.param_groups(options.lr))
    recorder = dmft.Recorder(plan, probe)
    rule, rho = RULES[name]
    with dmft.learning_rule(plan, rule, rho=rho, generator=generator) as taught, recorder.attach(optimizer):
        for _ in range(options.steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(probe.tensor), probe.targets).backward()
            optimizer.step()
        cosine = float(taught.alignment(probe.tensor)[-1].mean())
    return recorder.trajectory(), recorder.problem(), cosine


def main(arguments: Sequence[str] | None = None) -> Runs:
    """Returns network and theory of each rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--gamma0", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=0.1, help="base learning rate")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--neurons", type=int, default=2048, help="sample that stands for infinite width")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logdir", default="runs/learning_rules", help="for the figure (default: %(default)s)")
    options = parser.parse_args(arguments)
    probe = dmft.Probe(*data.load("digits", options.samples))
    found: Runs = {}
    for name in RULES:
        measured, problem, cosine = trained(name, probe, options)
        theory = dmft.solve(problem, dmft.solvers.InfiniteWidth(options.neurons, replicas=2))
        print(f"{name}: cosine of gradient and pseudo-gradient {cosine:.2f}\n{dmft.compare(measured, theory)}\n")
        found[name] = measured, theory
    Path(options.logdir).mkdir(parents=True, exist_ok=True)
    figure(found, options.width).savefig(Path(options.logdir) / "learning_rules.png", dpi=150)
    print(f"{options.logdir}/learning_rules.png")
    return found


def figure(found: Runs, width: int) -> Figure:
    """Loss, and how far features have moved."""
    drawn = Figure(figsize=(9, 3.6), layout="constrained")
    drawn.suptitle(f"lines: N = ∞, dots: one network of N = {width}", fontsize=9)
    panels = drawn.subplots(1, 2)
    for axes, label in zip(panels, ("loss", "|Φ(t) - Φ(0)| / |Φ(0)|, last features"), strict=True):
        for at, (name, runs) in enumerate(found.items()):
            for run, style in zip(runs, ("o", "-"), strict=True):
                values = run.losses if label == "loss" else movement(run.layers[-1].forward)
                axes.plot(
                    run.steps, values, style, color=f"C{at}", markersize=2.5, label=name if style == "-" else None
                )
        axes.set(xlabel="step", ylabel=label)
    panels[0].legend(frameon=False, fontsize=8)
    return drawn


if __name__ == "__main__":
    main()
