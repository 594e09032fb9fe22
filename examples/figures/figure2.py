"""Figure 2: deep linear networks, whose kernels the theory has in closed form.

    python examples/figures/figure2.py

(a) losses of networks of several depths and of the theory; (b) the kernels H of the deepest after training; (c) how far
kernels turn from where they began, by depth; (d) kernels between two times. The theory is ``solvers.DeepLinear``: gradient
descent as eq. 11 has it, exact to round-off. Section 4.1's network on white data is held against its equations.
"""

import math
from collections.abc import Sequence

import torch
from common import (
    COLORS,
    Claim,
    Clock,
    Option,
    by_class,
    chain,
    finish,
    half_square,
    kernel_errors,
    load,
    of_samples,
    of_times,
    options_of,
    traced,
    trained,
)
from matplotlib.figure import Figure
from torch import Tensor

import torch_dmft as dmft

GAMMA0 = 1.0
Runs = dict[int, dmft.Trajectory]
"""By depth."""


def similarity(run: dmft.Trajectory) -> Tensor:
    """A(H(t), H(0)) of every hidden layer: ``(layer, time)``."""
    kernels = [layer.forward.equal_time for layer in run.layers[1:]]
    return torch.tensor([[dmft.alignment(at, kernel[0]) for at in kernel] for kernel in kernels], device="cpu")


def white(gamma0: float, lr: float, steps: int) -> tuple[float, float, float]:
    """How far section 4.1's equations for white data are off, relatively: of dDelta/dt, of H_y(t), and of the last H.

    One hidden layer, by gradient descent in small steps; the derivative is a central difference.
    """
    samples, size = 6, 8
    generator = torch.Generator().manual_seed(0)
    inputs = math.sqrt(size) * torch.linalg.qr(torch.randn(size, samples, generator=generator, dtype=torch.float64)).Q.T
    targets = torch.sign(torch.randn(samples, 1, generator=generator, dtype=torch.float64))
    settings = {"depth": 1, "activation": "linear", "gamma0": gamma0, "loss": half_square, "lr": lr, "steps": steps}
    run = dmft.solve(dmft.Problem.mlp(inputs, targets, **settings), dmft.solvers.DeepLinear())
    y = float(targets.norm())
    delta, along = (targets - run.outputs).norm(dim=(1, 2)), targets / y
    kernel = run.layers[1].forward.equal_time
    grown = (1 + gamma0**2 * (y - delta) ** 2).sqrt()
    slope = (delta[2:] - delta[:-2]) / (2 * lr)
    said = -2 * grown[1:-1] * delta[1:-1]
    spike = torch.eye(samples, dtype=torch.float64) + (math.sqrt(1 + (gamma0 * y) ** 2) - 1) * along @ along.T
    return (
        float((slope - said).norm() / said.norm()),
        float(((along.T @ kernel @ along).flatten() - grown).norm() / grown.norm()),
        float((kernel[-1] - spike).norm() / spike.norm()),
    )


def claims(networks: Runs, theories: Runs, *, lr: float) -> list[Claim]:
    """Of the caption and of section 4.1."""
    deepest = max(networks)
    apart = max(float((networks[d].losses - theories[d].losses).abs().max() / theories[d].losses[0]) for d in networks)
    pairs = zip(networks[deepest].layers[1:], theories[deepest].layers[1:], strict=True)
    last = min(dmft.alignment(a.forward.equal_time[-1], b.forward.equal_time[-1]) for a, b in pairs)
    turned = {depth: 1 - similarity(run)[:, -1] for depth, run in theories.items()}
    means = [float(each.mean()) for each in turned.values()]
    first, in_networks = (
        [float(each[0]) for each in turned.values()],
        [float((1 - similarity(run)[:, -1]).mean()) for run in networks.values()],
    )
    forward, backward = kernel_errors(networks[deepest], theories[deepest])
    flow, grown, spike = white(2.0, lr / 3, round(4.5 / lr))
    return [
        Claim("(a) Theory has the losses of every depth", f"apart by {apart:.1%} of L(0) at most", apart < 0.05),
        Claim(
            f"(b) Kernels H after training match, L = {deepest}",
            f"alignment {last:.4f} or more in every layer",
            last > 0.98,
        ),
        Claim(
            "(c) At equal gamma0 deeper networks change their features more",
            f"1 - A(H(T), H(0)), mean of the layers, rises from {means[0]:.3f} to {means[-1]:.3f} with depth in theory, "
            f"from {in_networks[0]:.3f} to {in_networks[-1]:.3f} in networks",
            means == sorted(means) and in_networks == sorted(in_networks),
        ),
        Claim(
            "(c) ... each layer's kernel does (section 4.1)",
            f"not the first layer's: {first[0]:.3f} at depth {min(turned)}, {first[-1]:.4f} at depth {deepest}; "
            "what grows is the change of the upper layers",
            first == sorted(first),
        ),
        Claim(
            "(d) Theory has the kernels at two times",
            f"largest relative error {forward:.1%} of H, {backward:.1%} of G",
            max(forward, backward) < 0.2,
        ),
        Claim("4.1, white data: dDelta/dt = -2 sqrt(1 + gamma0^2 (y - Delta)^2) Delta", f"to {flow:.2%}", flow < 0.02),
        Claim("4.1: H grows along y alone, as sqrt(1 + gamma0^2 (y - Delta)^2)", f"to {grown:.2%}", grown < 0.02),
        Claim("4.1: H ends at 1 + (sqrt(1 + gamma0^2 y^2) - 1) y y^T / y^2", f"to {spike:.2%}", spike < 0.02),
    ]


def figure(networks: Runs, theories: Runs, targets: Tensor) -> Figure:
    """All four panels."""
    drawn = Figure(figsize=(11, 10), layout="constrained")
    top, middle, bottom = drawn.subfigures(3, 1, height_ratios=(3.2, 3.4, 3.6))
    left, right = top.subplots(1, 2)
    for depth, color in zip(networks, COLORS, strict=False):
        network, theory = networks[depth], theories[depth]
        left.semilogy(theory.times, theory.losses, color=color, label=f"L = {depth}")
        left.semilogy(network.times, network.losses, "o", color=color, markersize=3)
        right.plot(theory.times, similarity(theory).mean(0), color=color)
        right.plot(network.times, similarity(network).mean(0), "o", color=color, markersize=3)
    left.set(xlabel="time t", ylabel="training loss", title="(a) losses; lines: theory, points: networks")
    right.set(xlabel="time t", ylabel="A(H(t), H(0)), mean of layers", title="(c) kernels turn")
    left.legend(frameon=False)

    deepest = max(networks)
    network, theory = networks[deepest], theories[deepest]
    middle.suptitle(f"(b) H after training, L = {deepest}, samples by class")
    for row, (name, run) in enumerate((("network", network), ("theory", theory))):
        for column in range(deepest):
            axes = middle.add_subplot(2, deepest, row * deepest + column + 1)
            limit = float(theory.layers[column + 1].forward.equal_time[-1].abs().max())
            of_samples(axes, by_class(run.layers[column + 1].forward.equal_time[-1], targets), limit)
            if row == 0:
                axes.set_title(f"layer {column + 1}", fontsize=9)
            if column == 0:
                axes.set_ylabel(name)
    bottom.suptitle(f"(d) kernels at two times, L = {deepest}; above the diagonal: theory, below: network")
    for row, name in enumerate((r"$\sum_\mu H_{\mu\mu}(t, s)$", "$G(t, s)$")):
        for column in range(deepest):
            axes = bottom.add_subplot(2, deepest, row * deepest + column + 1)
            above, below = (
                traced(run.layers[column + 1].forward if row == 0 else run.layers[column].backward)
                for run in (theory, network)
            )
            of_times(axes, above, below, float(theory.times[-1]))
            axes.set(xlabel="s" if row else "", ylabel=f"{name}\nt" if column == 0 else "")
            if row == 0:
                axes.set_title(f"layer {column + 1}", fontsize=9)
    return drawn


def main(arguments: Sequence[str] | None = None) -> list[Claim]:
    """Returns the claims."""
    options = options_of(
        __doc__,
        "figure2",
        arguments,
        depth=Option(5, 3, "the largest"),
        width=Option(1000, 192, "N"),
        samples=Option(20, 8, "P"),
        steps=Option(300, 40, "of gradient descent"),
        lr=Option(0.003, 0.02, "base learning rate; time is lr * step"),
    )
    clock = Clock.started()
    inputs, targets = load(options, options.samples)
    record = range(0, options.steps + 1, max(1, options.steps // 30))
    networks, theories = {}, {}
    for depth in range(1, options.depth + 1):
        recorder = trained(
            chain(inputs[0].numel(), options.width, depth, "linear"),
            dmft.Probe(inputs, targets),
            gamma0=GAMMA0,
            lr=options.lr,
            steps=options.steps,
            record=record,
            seed=depth,
            two_time=True,
        )
        networks[depth] = recorder.trajectory()
        theories[depth] = dmft.solve(recorder.problem(), dmft.solvers.DeepLinear(), record=record, two_time=True)
    found = claims(networks, theories, lr=options.lr)
    settings = f"linear, L = 1 to {options.depth}, N = {options.width}, P = {options.samples}, gamma0 = {GAMMA0:g}"
    finish(
        options,
        f"{settings}, {options.steps} steps of {options.lr:g}",
        clock,
        figure(networks, theories, targets),
        found,
    )
    return found


if __name__ == "__main__":
    main()
