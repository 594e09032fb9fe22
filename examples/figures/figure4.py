"""Figure 4: the theory beside its approximations, and where they break.

    python examples/figures/figure4.py

Deep linear networks, and as theories of them: the full one (``solvers.DeepLinear``), the static NTK, gradient independence
(A = B = 0), and perturbation theory to second order in gamma0. (a) losses; (b) kernels H after training; (c) H between two
times; (d) alignment of each theory's H with the network's, over gamma0. Two statements of section 5.2 on perturbation theory
are measured on a small problem.
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
    load,
    of_samples,
    options_of,
    traced,
    trained,
)
from matplotlib.figure import Figure
from torch import Tensor

import torch_dmft as dmft
from torch_dmft.comparison import relative_error

RICH = 1.5
"""Gamma0 of the kernels shown."""
SHOWN = 1.0
"""Gamma0 of the losses shown."""
NETWORK, FULL, STATIC, INDEPENDENT, PERTURBATION = (
    "network",
    "full DMFT",
    "static NTK",
    "gradient independence",
    "perturbation",
)
Runs = dict[str, dmft.Trajectory]
"""By method."""


def solvers(samples: int) -> dict[str, object]:
    """The theories; of linear networks sampled ones are exact once there are neurons enough."""
    neurons = 8 * samples
    return {
        FULL: dmft.solvers.DeepLinear(),
        STATIC: dmft.solvers.StaticNTK(),
        INDEPENDENT: dmft.solvers.GradientIndependence(neurons, 1),
        PERTURBATION: dmft.solvers.Perturbation(neurons, 1),
    }


def hidden(run: dmft.Trajectory) -> list[dmft.Kernel]:
    """H^1..H^L."""
    return [layer.forward for layer in run.layers[1:]]


def alignments(one: dmft.Trajectory, other: dmft.Trajectory, time: int = -1) -> float:
    """A(H, H) at one of the recorded times, mean of the layers."""
    pairs = zip(hidden(one), hidden(other), strict=True)
    return sum(dmft.alignment(a.matrix(time), b.matrix(time)) for a, b in pairs) / len(hidden(one))


def distance(one: dmft.Trajectory, other: dmft.Trajectory, time: int = -1) -> float:
    """|H - H'| / |H'| at one of the recorded times, mean of the layers; unlike alignment it sees a wrong scale."""
    pairs = zip(hidden(one), hidden(other), strict=True)
    return sum(relative_error(a.matrix(time), b.matrix(time)) for a, b in pairs) / len(hidden(one))


def leading_order(depths: Sequence[int]) -> tuple[list[float], list[float], list[float]]:
    """Of perturbation theory, by depth L, on four white samples with small steps to the end of training.

    Returns:
        The relative change of the NTK per gamma0^2 at t = 0.02, the same at the end, and the change at the end in units of
        eq. 12 with v_a = int Delta_a and v_ab = int Delta_a v_b of the lazy network.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = math.sqrt(8) * torch.linalg.qr(torch.randn(8, 4, generator=generator, dtype=torch.float64)).Q.T
    targets = torch.sign(torch.randn(4, 1, generator=generator, dtype=torch.float64))
    early, late, printed = [], [], []
    for depth in depths:
        lr, steps = 0.004, 500
        settings = {"depth": depth, "activation": "linear", "gamma0": 0.1, "lr": lr, "steps": steps}
        problem = dmft.Problem.mlp(inputs, targets, loss=half_square, **settings)
        run = dmft.solve(problem, dmft.solvers.Perturbation(64, 1), record=[0, 5, steps])
        if run.ntk is None:
            raise ValueError("Perturbation theory has a tangent kernel.")
        change, size = run.ntk.equal_time - run.ntk.equal_time[0], 0.1**2 * run.ntk.equal_time[0].norm()
        early.append(float(change[1].norm() / size))
        late.append(float(change[2].norm() / size))
        error = targets - dmft.solve(problem, dmft.solvers.StaticNTK()).outputs[:, :, 0:1]
        v = lr * torch.cat([torch.zeros_like(error[:1]), error[:-1].cumsum(0)])[..., 0]
        both = lr * torch.einsum("ta,tb->ab", error[:-1, :, 0], v[:-1])
        kernel, last = inputs @ inputs.T / 8, v[-1]
        inner = both + both.T + torch.outer(last, last)
        eq12 = kernel * (kernel * inner).sum() + kernel @ inner @ kernel
        eq12 = 0.1**2 * depth * (depth + 1) / 2 * eq12
        printed.append(float(change[2].norm() / eq12.norm()))
    return early, late, printed


def claims(runs: dict[float, Runs], early: int) -> list[Claim]:
    """Of the caption and of sections 5.1 and 5.2.

    Args:
        runs: by gamma0.
        early: a record at the start of training.
    """
    gammas = [*runs]
    off = {
        name: [1 - alignments(runs[g][name], runs[g][NETWORK]) for g in gammas]
        for name in runs[SHOWN]
        if name != NETWORK
    }
    far = {name: distance(runs[RICH][name], runs[RICH][NETWORK]) for name in off}
    lazy, start, end = (
        distance(runs[gamma0][INDEPENDENT], runs[gamma0][FULL], time)
        for gamma0, time in ((gammas[0], -1), (RICH, early), (RICH, -1))
    )
    rms = {name: apart(runs[RICH][name], runs[RICH][NETWORK]) for name in off}
    others = [name for name in off if name != FULL]
    at = f"at gamma0 = {gammas[0]:g} to {gammas[-1]:g}"
    depths = (1, 2, 3, 4, 5)
    fixed, late, printed = leading_order(depths)
    fixed, late = ([each / changes[0] for each in changes] for changes in (fixed, late))

    def is_linear(changes: Sequence[float]) -> bool:
        return all(abs(change / depth - 1) < 0.25 for change, depth in zip(changes, depths, strict=True))

    return [
        Claim(
            f"(a) Approximations do not track the loss at large gamma0 ({RICH:g})",
            "apart by " + ", ".join(f"{rms[name]:.0%} ({name})" for name in off) + " of the loss, typically",
            all(rms[name] > 2 * rms[FULL] for name in others),
        ),
        Claim(
            "(b, d) Only the full theory is accurate over a wide range of gamma0",
            "1 - A, mean of the layers: "
            + "; ".join(f"{name} {off[name][0]:.4f} to {off[name][-1]:.4f}" for name in off)
            + f" {at}",
            max(off[FULL]) < 0.02 and all(off[name][-1] > 2 * off[FULL][-1] for name in others),
        ),
        Claim(
            f"(b, c) ... and has the kernels at gamma0 = {RICH:g}",
            "H after training is off the network's by " + ", ".join(f"{far[name]:.0%} ({name})" for name in off),
            far[FULL] < 0.1 and all(far[name] > 2 * far[FULL] for name in others),
        ),
        Claim(
            "(d) All theories coincide as gamma0 -> 0",
            f"at gamma0 = {gammas[0]:g} they are apart by {max(off[n][0] for n in off) - min(off[n][0] for n in off):.4f} in A",
            max(off[n][0] for n in off) - min(off[n][0] for n in off) < 0.01,
        ),
        Claim(
            "5.1: gradient independence works near gamma0 = 0 or t = 0 and fails later",
            f"H is off the full theory's by {lazy:.1%} at the end at gamma0 = {gammas[0]:g}; at {RICH:g} by {start:.1%} at "
            f"t = {float(runs[RICH][FULL].times[early]):.2g} and by {end:.1%} at the end",
            5 * lazy < end and start < end,
        ),
        Claim(
            "5.2, eq. 12: the NTK moves by gamma0^2 L (L + 1) / 2 times its two terms",
            f"by {', '.join(f'{each:.2f}' for each in printed)} times that at L = 1 to {depths[-1]}: "
            "(L + 1) (L + 2) / 6, as responses carry what other layers learn",
            max(abs(each - 1) for each in printed) < 0.02,
        ),
        Claim(
            "5.2: the NTK's relative change is of order gamma0^2 L, at the end of training",
            f"at L = 1 to {depths[-1]}: {', '.join(f'{each:.1f}' for each in late)} of that at L = 1",
            is_linear(late),
        ),
        Claim(
            "5.2: ... and at a fixed time",
            f"at a fixed early time {', '.join(f'{each:.1f}' for each in fixed)} of that at L = 1",
            is_linear(fixed),
        ),
    ]


def apart(one: dmft.Trajectory, other: dmft.Trajectory) -> float:
    """A typical ratio of two losses, minus 1: the root mean square difference of their logarithms."""
    return math.expm1(float((one.losses.log() - other.losses.log()).square().mean().sqrt()))


def figure(runs: dict[float, Runs], targets: Tensor) -> Figure:
    """All four panels."""
    methods, depth = [*runs[RICH]], len(hidden(runs[RICH][FULL]))
    drawn = Figure(figsize=(13, 11), layout="constrained")
    top, bottom = drawn.subfigures(2, 1, height_ratios=(3, 8))
    left, right = top.subplots(1, 2)
    for name, color in zip(methods[1:], COLORS, strict=False):
        left.semilogy(runs[SHOWN][name].times, runs[SHOWN][name].losses, color=color, label=name)
        values = [alignments(each[name], each[NETWORK]) for each in runs.values()]
        right.plot([*runs], values, "o-", color=color, label=name)
    left.semilogy(runs[SHOWN][NETWORK].times, runs[SHOWN][NETWORK].losses, "ko", markersize=3, label=NETWORK)
    left.set(xlabel="time t", ylabel="training loss", title=f"(a) losses, $\\gamma_0$ = {SHOWN:g}")
    right.set(xlabel="$\\gamma_0$", ylabel="alignment with the network", title="(d) H after training, mean of layers")
    left.legend(frameon=False)
    after, times = bottom.subfigures(1, 2)
    after.suptitle(f"(b) H after training, $\\gamma_0$ = {RICH:g}, samples by class")
    times.suptitle(f"(c) $\\sum_\\mu H_{{\\mu\\mu}}(t, s)$ until t = {float(runs[RICH][FULL].times[-1]):g}")
    grids = after.subplots(len(methods), depth), times.subplots(len(methods), depth)
    for layer in range(depth):
        kernels = {name: hidden(runs[RICH][name])[layer] for name in methods}
        limit, most = float(kernels[NETWORK].matrix().abs().max()), float(traced(kernels[NETWORK]).max())
        for row, name in enumerate(methods):
            of_samples(grids[0][row, layer], by_class(kernels[name].matrix(), targets), limit)
            grids[1][row, layer].imshow(traced(kernels[name]).numpy(), vmin=0, vmax=most)
            grids[1][row, layer].set(xticks=[], yticks=[])
        for grid in grids:
            grid[0, layer].set_title(f"layer {layer + 1}", fontsize=9)
    for grid in grids:
        for row, name in enumerate(methods):
            grid[row, 0].set_ylabel(name.replace(" ", "\n"), fontsize=9)
    return drawn


def main(arguments: Sequence[str] | None = None) -> list[Claim]:
    """Returns the claims."""
    options = options_of(
        __doc__,
        "figure4",
        arguments,
        depth=Option(5, 2, "L"),
        width=Option(1000, 512, "N"),
        samples=Option(100, 10, "P"),
        steps=Option(150, 40, "of gradient descent"),
        lr=Option(0.0005, 0.01, "base learning rate; time is lr * step"),
    )
    clock = Clock.started()
    inputs, targets = load(options, options.samples)
    record = range(0, options.steps + 1, max(1, options.steps // 12))
    runs: dict[float, Runs] = {}
    for gamma0 in (0.1, 0.5, SHOWN, RICH):
        recorder = trained(
            chain(inputs[0].numel(), options.width, options.depth, "linear"),
            dmft.Probe(inputs, targets),
            gamma0=gamma0,
            lr=options.lr,
            steps=options.steps,
            record=record,
            seed=0,
            two_time=gamma0 == RICH,
        )
        problem = recorder.problem()
        runs[gamma0] = {NETWORK: recorder.trajectory()}
        for name, solver in solvers(options.samples).items():
            runs[gamma0][name] = dmft.solve(problem, solver, record=record, two_time=gamma0 == RICH)
    found = claims(runs, early=1)
    settings = f"linear, L = {options.depth}, N = {options.width}, P = {options.samples}"
    finish(options, f"{settings}, {options.steps} steps of {options.lr:g}", clock, figure(runs, targets), found)
    return found


if __name__ == "__main__":
    main()
