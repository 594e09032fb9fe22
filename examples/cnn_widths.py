"""Convolutional networks of different widths learn the same features at fixed gamma0.

    python examples/cnn_widths.py --widths 16,64,256

The claim behind the theory, measured without it: in mean-field parameterization loss and kernels have a limit in the
width, so networks compare with networks. Each width is compared with the widest; the difference falls like 1/sqrt(N).
Section 6 of Bordelon & Pehlevan 2022 does this for deeper networks on CIFAR-10. For the limit itself, solve
``recorder.problem()``.

In the last lines alignment should approach 1 and the losses' distance fall by about half for four times the channels. The
widest network is no limit: it is itself off by its own 1/sqrt(N), so that the width before it looks closer than it is.
"""

import argparse
from collections.abc import Sequence

import torch
from rich.console import Console
from torch import nn

import torch_dmft as dmft
from torch_dmft import data


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


def main(arguments: Sequence[str] | None = None) -> list[dmft.Comparison]:
    """Returns the comparison of each width with the widest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="16,64,256", help="channels per layer")
    parser.add_argument("--gamma0", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=0.05, help="base learning rate, the same at every width")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--samples", type=int, default=16)
    options = parser.parse_args(arguments)
    inputs, targets = data.load("digits", options.samples)
    probe = dmft.Probe(inputs, targets)

    torch.manual_seed(0)
    runs = []
    for width in sorted(int(width) for width in options.widths.split(",")):
        plan = dmft.parameterize(network(width), inputs, gamma0=options.gamma0)
        model = dmft.centered(plan.model)
        optimizer = torch.optim.SGD(plan.param_groups(options.lr))
        recorder = dmft.Recorder(plan, probe, model=model, every=max(1, options.steps // 10))
        with recorder.attach(optimizer):
            for _ in range(options.steps):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(inputs), targets).backward()
                optimizer.step()
        runs.append(recorder.trajectory())

    comparisons = [dmft.compare(run, runs[-1]) for run in runs[:-1]]
    for comparison in comparisons:
        Console().print(comparison)
    for comparison in comparisons:
        features = comparison.deviations[0].layers[-1].forward
        print(
            f"{comparison.measured.origin} against {comparison.predictions[0].origin}: last features aligned to "
            f"{features.alignment[-1]:.3f}, losses apart by {comparison.deviations[0].losses.rms.max():.3f}"
        )
    return comparisons


if __name__ == "__main__":
    main()
