"""Four lines in your training loop, two more for the theory.

    python examples/quick.py --gamma0 1.0

Trains a small network on digits, records its kernels, asks the theory of the infinitely wide network the same question,
and prints how far the two are apart, with the static NTK beside them, and whether the network's width explains that.

In the report, errors of a few 1/sqrt(N) are what any network of this width has. The static NTK is far off at gamma0 = 1, as
features are learned, and close at --gamma0 0.1. "closer than typical" is luck, no fault. The figure has the loss of all, their
error over training, the last kernels and the density of preactivations; the DMFT tab of TensorBoard has the rest.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import torch_dmft as dmft
from torch_dmft import data
from torch_dmft.report.overview import overview


def main(arguments: Sequence[str] | None = None) -> dmft.Comparison:
    """Train, record, predict, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--gamma0", type=float, default=1.0, help="feature-learning strength")
    parser.add_argument("--lr", type=float, default=0.1, help="base learning rate")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--neurons", type=int, default=2048, help="sample that stands for infinite width")
    parser.add_argument(
        "--logdir", default="runs/quick", help="where to write logs and a figure (default: %(default)s)"
    )
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    inputs, targets = data.load("digits", samples=16)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, options.width), nn.Tanh(), nn.Linear(options.width, options.width), nn.Tanh(),
        nn.Linear(options.width, 1),
    )  # fmt: skip

    plan = dmft.parameterize(model, inputs, gamma0=options.gamma0)  # 1
    optimizer = torch.optim.SGD(plan.param_groups(options.lr))  # 2
    recorder = dmft.Recorder(plan, dmft.Probe(inputs, targets), every=5)  # 3
    with recorder.attach(optimizer):  # 4
        for _ in range(options.steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
    measured = recorder.trajectory()

    problem = recorder.problem()
    theory = dmft.solve(problem, dmft.solvers.InfiniteWidth(options.neurons), record=measured.steps)
    static = dmft.solve(problem, dmft.solvers.StaticNTK(), record=measured.steps)
    comparison = dmft.compare(measured, theory, static, problem=problem, replicas=20)
    print(comparison)
    comparison.write_tensorboard(options.logdir, plan=plan)
    overview(comparison).savefig(Path(options.logdir) / "quick.png", dpi=150)
    print(f'{options.logdir}/quick.png, and the DMFT tab of: tensorboard --logdir "{options.logdir}"')
    return comparison


if __name__ == "__main__":
    main()
