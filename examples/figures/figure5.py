"""Figure 5: at fixed gamma0 convolutional networks of N and of 2N channels learn alike.

    python examples/figures/figure5.py

Five layers (L = 4) on two classes of images by minibatches; (a) test loss, (b) test error, (c) alignment of the last features'
kernel on test images with their targets. Lines are means of several networks, shades their standard deviations.
"""

from collections.abc import Sequence

import torch
from common import COLORS, Claim, Clock, Option, finish, load, options_of
from matplotlib.figure import Figure
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft.comparison import movement, target_alignments

GAMMAS = (0.2, 0.5, 1.0)
KINDS = ("test loss", "test error", "alignment with targets", "last kernel moved")
Curves = dict[tuple[float, int], Tensor]
"""By gamma0 and channels: ``(network, kind, time)``."""


def network(colors: int, channels: int) -> nn.Sequential:
    """Four convolutions with ReLU, and a linear readout of the channels at 2x2 places."""
    layers: list[nn.Module] = []
    for inputs in (colors, *[channels] * 3):
        layers += [nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.ReLU()]
    layers.insert(4, nn.AvgPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 1, bias=False))


def trained(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    gamma0: float,
    channels: int,
    lr: float,
    steps: int,
    batch: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """The curves of one network, ``(kind, time)``, and the steps."""
    generator = torch.Generator().manual_seed(seed)
    plan = dmft.parameterize(network(train[0].shape[1], channels), train[0], gamma0=gamma0, generator=generator)
    model = dmft.centered(plan.model)
    optimizer = torch.optim.SGD(plan.param_groups(lr))
    every = max(1, steps // 15)
    recorder = dmft.Recorder(plan, dmft.Probe(*test), model=model, every=every, data=train, ntk=False, fields=False)
    with recorder.attach(optimizer):
        for _ in range(steps):
            rows = torch.randperm(len(train[0]), generator=generator)[:batch]
            optimizer.zero_grad()
            nn.functional.mse_loss(model(train[0][rows]), train[1][rows]).backward()
            optimizer.step()
    run = recorder.trajectory()
    errors = ((run.outputs > 0) != (test[1] > 0)).double().mean((1, 2))
    kernel = run.layers[-1].forward
    return torch.stack([run.losses.double(), errors, target_alignments(kernel, test[1]), movement(kernel)]), run.steps


def gap(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Between the means of two sets of curves ``(network, time)``: root mean square over time, and its standard error."""
    noise = sum(curves.var(0) / len(curves) for curves in (one, other))
    return float((one.mean(0) - other.mean(0)).square().mean().sqrt()), float(torch.as_tensor(noise).mean().sqrt())


def claims(curves: Curves) -> list[Claim]:
    """Of the caption and of section 6."""
    widths = sorted({width for _, width in curves})
    found = []
    for letter, kind in zip("abc", range(3), strict=True):
        between = [gap(*(curves[gamma0, width][:, kind] for width in widths)) for gamma0 in GAMMAS]
        other = [gap(*(curves[gamma0, width][:, kind] for gamma0 in (GAMMAS[0], GAMMAS[-1]))) for width in widths]
        width, noise = max(between)
        gammas = min(each for each, _ in other)
        found.append(
            Claim(
                f"({letter}) At fixed gamma0 the {KINDS[kind]} is the same for N and 2N channels",
                f"{widths[0]} and {widths[1]} are apart by {width:.4f} at most (standard error {noise:.4f}), "
                f"gamma0 = {GAMMAS[0]:g} and {GAMMAS[-1]:g} by {gammas:.4f} or more",
                False if width > 3 * noise else True if gammas > width else None,  # where gamma0 makes no difference
            )
        )
    means = {key: each.mean(0) for key, each in curves.items()}
    loss, aligned, moved = (
        [[float(of(means[g, w])) for g in GAMMAS] for w in widths]
        for of in (lambda mean: mean[0].mean(), lambda mean: mean[2, -1], lambda mean: mean[3, -1])
    )
    return [
        *found,
        Claim(
            "(a, b) Networks with higher gamma0 train more rapidly",
            f"test loss, mean over training: {_rows(loss, widths)} at gamma0 = {', '.join(f'{g:g}' for g in GAMMAS)}",
            all(row == sorted(row, reverse=True) for row in loss),
        ),
        Claim(
            "(c) Higher gamma0 aligns the last kernel more with the targets",
            f"at the end {_rows(aligned, widths)}; before training {float(means[GAMMAS[0], widths[-1]][2, 0]):.3f}",
            all(row == sorted(row) for row in aligned),
        ),
        Claim(
            "6: ... and changes its norm more",
            f"|Phi(T) - Phi(0)| / |Phi(0)| = {_rows(moved, widths)}",
            all(row == sorted(row) for row in moved),
        ),
    ]


def _rows(values: Sequence[Sequence[float]], widths: Sequence[int]) -> str:
    rows = zip(widths, values, strict=True)
    return "; ".join(f"{', '.join(f'{each:.3f}' for each in row)} ({width} channels)" for width, row in rows)


def figure(curves: Curves, steps: Tensor) -> Figure:
    """The three panels."""
    drawn = Figure(figsize=(12, 4), layout="constrained")
    widths = sorted({width for _, width in curves})
    for kind, (axes, letter) in enumerate(zip(drawn.subplots(1, 3), "abc", strict=True)):
        for gamma0, color in zip(GAMMAS, COLORS, strict=False):
            for width, dashes in zip(widths, ("--", "-"), strict=True):
                values = curves[gamma0, width][:, kind]
                mean, spread = values.mean(0), values.std(0)
                axes.plot(steps, mean, dashes, color=color, label=f"$\\gamma_0$ = {gamma0:g}, {width} channels")
                axes.fill_between(steps, mean - spread, mean + spread, color=color, alpha=0.12, linewidth=0)
        axes.set(xlabel="step", ylabel=KINDS[kind], title=f"({letter})")
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    return drawn


def main(arguments: Sequence[str] | None = None) -> list[Claim]:
    """Returns the claims."""
    options = options_of(
        __doc__,
        "figure5",
        arguments,
        channels=Option(32, 8, "N; the other networks have 2N"),
        networks=Option(3, 2, "of each width and gamma0"),
        samples=Option(200, 40, "training images"),
        tests=Option(100, 20, "test images"),
        batch=Option(20, 10, "images per step"),
        steps=Option(150, 40, "of stochastic gradient descent"),
        lr=Option(0.05, 0.05, "base learning rate"),
    )
    clock = Clock.started()
    inputs, targets = load(options, options.samples + options.tests)
    train = inputs[: options.samples], targets[: options.samples]
    test = inputs[options.samples :], targets[options.samples :]
    sizes = {"lr": options.lr, "steps": options.steps, "batch": options.batch}
    curves: Curves = {}
    for gamma0 in GAMMAS:
        for channels in (options.channels, 2 * options.channels):
            runs = [
                trained(train, test, gamma0=gamma0, channels=channels, seed=seed, **sizes)
                for seed in range(options.networks)
            ]
            curves[gamma0, channels] = torch.stack([values for values, _ in runs])
            steps = runs[0][1]
    found = claims(curves)
    said = f"CNN, L = 4, {options.channels} and {2 * options.channels} channels, {options.networks} networks of each"
    said = f"{said}, {options.samples} images, {options.steps} steps of {options.lr:g} with {options.batch} images"
    finish(options, said, clock, figure(curves, steps), found)
    return found


if __name__ == "__main__":
    main()
