"""A run as people train, beside the infinitely wide network that is trained just so.

    python examples/real_run.py --width 512

1797 digits, ten classes, cross entropy, a ReLU network of four layers, batches of 64 from a shuffling DataLoader,
momentum, weight decay, warmup and cosine. Nothing is typed twice: ``recorder.problem()`` has the loss, the rate of every
step, the rows of every batch and the data. Kernels are kept of a probe of 32 digits, half of them held out; cost goes with
the probe and the batch.

The theory here is extrapolated in the width from networks that see the same batches. A network of width N is off by a few
1/sqrt(N) in every kernel; the verdict says where it is farthest, and whether that is more. Compared is the whole course of
outputs, features and gradients, on digits that were trained on and on held-out ones.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import track
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torch_dmft as dmft
from torch_dmft.report.overview import overview


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="neurons per hidden layer (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=0.15, help="largest base learning rate (default: %(default)s)")
    parser.add_argument("--gamma0", type=float, default=1.0, help="feature-learning strength (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of networks per width (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the network trains (default: %(default)s)")
    parser.add_argument("--logdir", default="runs/real", help="for logs and a figure (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> dmft.Comparison:
    """Train, predict, compare."""
    options = parse(arguments)
    torch.manual_seed(options.seed)
    images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    images = nn.functional.layer_norm(images.float(), (64,)).to(options.device)
    labels = labels.to(options.device)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(options.seed))
    held_out, training = order[:16], order[16:]
    data = TensorDataset(images[training], labels[training])
    rows = torch.cat([training[:16], held_out])
    probe = dmft.Probe(images[rows], labels[rows], train=torch.arange(32) < 16)

    width = options.width
    model = nn.Sequential(
        *(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
        *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)),
    ).to(options.device)
    plan = dmft.parameterize(
        model, images[:2], gamma0=options.gamma0, generator=torch.Generator().manual_seed(options.seed)
    )
    optimizer = torch.optim.SGD(plan.param_groups(options.lr, weight_decay=0.02), momentum=0.9)
    warmup = max(1, options.steps // 10)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * min(step / options.steps, 1.0))),
    )
    loader = DataLoader(data, batch_size=64, shuffle=True)
    recorder = dmft.Recorder(plan, probe, schedule=dmft.log_spaced(8, last=options.steps), fields=False)
    loss = nn.CrossEntropyLoss()
    with recorder.attach(optimizer):
        bar = iter(track(range(options.steps), "training"))
        while recorder.step < options.steps:
            for x, y in recorder.batches(loader):
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()
                scheduler.step()
                next(bar, None)
                if recorder.step == options.steps:
                    break
    next(bar, None)  # ends the progress bar
    measured = recorder.trajectory()

    started = time.perf_counter()
    widths = (width // 4, width // 2, width)
    theory = dmft.solve(
        recorder.problem(),
        dmft.solvers.WideEnsemble(widths, pairs=options.pairs),
        record=measured.steps,
        progress=True,
    )
    print(f"The theory took {time.perf_counter() - started:.0f} s.")
    comparison = dmft.compare(measured, theory)
    print(comparison)
    comparison.write_tensorboard(options.logdir, plan=plan)
    overview(comparison).savefig(Path(options.logdir) / "real_run.png", dpi=150)
    print(f'{options.logdir}/real_run.png, and the DMFT tab of: tensorboard --logdir "{options.logdir}"')
    return comparison


if __name__ == "__main__":
    main()
