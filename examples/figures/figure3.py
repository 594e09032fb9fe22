"""Figure 3: weight decay, which an infinitely wide lazy network does not survive and a rich one does.

    python examples/figures/figure3.py

(a) losses of ReLU networks of one hidden layer with lambda = 1 at several gamma0, beside the theory of infinite width
(``solvers.InfiniteWidth``) and the static NTK with its decay; (b) alignment of their tangent kernel with the targets.
"""

from collections.abc import Sequence

import torch
from common import COLORS, Claim, Clock, Option, chain, finish, half_square, load, options_of, trained
from matplotlib.figure import Figure
from torch import Tensor

import torch_dmft as dmft
from torch_dmft.comparison import target_alignments

DECAY = 1.0
DEGREE = 2
"""Kappa: f(c theta) = c^2 f(theta) for one hidden layer of ReLUs and a readout."""
LEAST = 0.2
"""Gamma0 from which on networks are trained too: f_0, which decays, is 1 / (gamma0 sqrt N)."""
Runs = dict[float, dmft.Trajectory]
"""By gamma0."""


def ntk(run: dmft.Trajectory) -> dmft.Kernel:
    """The tangent kernel, which every run here holds."""
    if run.ntk is None:
        raise ValueError("A run without its tangent kernel.")
    return run.ntk


def regressed(run: dmft.Trajectory, targets: Tensor) -> float:
    """How far the last outputs are from K [K + lambda kappa]^(-1) y with the last kernel, in units of |y|."""
    kernel = ntk(run).matrix().double()
    ridge = DECAY * DEGREE * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    fit = kernel @ torch.linalg.solve(kernel + ridge, targets.double())
    return float((run.outputs[-1].double() - fit).norm() / targets.norm())


def late(kernel: dmft.Kernel, targets: Tensor) -> float:
    """Alignment with the targets, mean of the last quarter of the records: neurons on a kink make it jitter."""
    aligned = target_alignments(kernel, targets)
    return float(aligned[-(len(aligned) // 4) :].mean())


def claims(
    networks: Runs, theories: Runs, static: dmft.Trajectory, linear: dmft.Trajectory, targets: Tensor
) -> list[Claim]:
    """Of the caption and of section 4.2."""
    gammas, start = [*theories], theories[1.0].losses[0]
    apart = torch.stack([(run.losses - theories[g].losses).abs() / start for g, run in networks.items()])
    ends = [float(run.losses[-1] / start) for run in theories.values()]
    sizes = [float(ntk(run).matrix().norm() / ntk(run).matrix(0).norm()) for run in (static, *theories.values())]
    dead = [g for g, size in zip(gammas, sizes[1:], strict=True) if size < 0.01]
    tangent, features = (
        [late(kernel, targets) for kernel in kernels]
        for kernels in ([ntk(run) for run in theories.values()], [run.layers[-1].forward for run in theories.values()])
    )
    off = max(regressed(theories[g], targets) for g in gammas if g not in dead)
    at = f"at gamma0 = {', '.join(f'{g:g}' for g in gammas)}"
    return [
        Claim(
            "Losses are predicted by DMFT",
            f"apart by {float(apart[:, 1:].max()):.1%} of L(0) at most once trained; "
            f"by {float(apart[:, 0].max()):.1%} at the start, from the network's random f_0",
            bool(apart[:, 1:].max() < 0.05),
        ),
        Claim(
            "gamma0 -> 0 ends at the trivial fixed point f = K = 0",
            f"static NTK: |K| ends at {sizes[0]:.0e} of the first, the loss at {float(static.losses[-1] / start):.3f}",
            sizes[0] < 0.01 and bool(static.losses[-1] > 0.99 * start),
        ),
        Claim(
            "gamma0 > 0 has a nontrivial fixed point",
            f"|K| ends at {', '.join(f'{size:.1g}' for size in sizes[1:])} of the first {at}: "
            + ("none below a threshold" if dead else "at all of these"),
            not dead,
        ),
        Claim(
            "(a) The final loss decreases with gamma0",
            f"{', '.join(f'{end:.3f}' for end in ends)} of the first {at}",
            ends == sorted(ends, reverse=True),
        ),
        *(
            Claim(
                f"(b) The final kernel is more aligned with the targets at larger gamma0: {which}",
                f"{', '.join(f'{each:.3f}' for each in aligned)} {at}; where K does not vanish",
                aligned[len(dead) :] == sorted(aligned[len(dead) :]),
            )
            for which, aligned in (("features", features), ("tangent kernel", tangent))
        ),
        Claim(
            "4.2: f ends at k [K + lambda kappa]^(-1) y with the final kernel of homogeneous networks",
            f"linear network: off by {regressed(linear, targets):.0e} of |y|",
            regressed(linear, targets) < 1e-3,
        ),
        Claim(
            "4.2: ... of ReLU networks",
            f"off by {off:.1%} of |y| at most: neurons rest on the kink of a sample, where K is not defined",
            off < 0.01,
        ),
    ]


def figure(networks: Runs, theories: Runs, static: dmft.Trajectory, targets: Tensor) -> Figure:
    """Losses and alignments."""
    drawn = Figure(figsize=(11, 4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    for (gamma0, theory), color in zip(theories.items(), COLORS, strict=False):
        left.semilogy(theory.times, theory.losses, color=color, label=f"$\\gamma_0$ = {gamma0:g}")
        right.plot(theory.times, target_alignments(ntk(theory), targets), color=color)
        if gamma0 in networks:
            network = networks[gamma0]
            left.semilogy(network.times, network.losses, "o", color=color, markersize=3)
            right.plot(network.times, target_alignments(ntk(network), targets), "o", color=color, markersize=3)
    left.semilogy(static.times, static.losses, "k--", label="static NTK")
    right.plot(static.times, target_alignments(ntk(static), targets), "k--")
    left.set(xlabel="time t", ylabel="training loss", title="(a) lines: theory, points: networks")
    right.set(xlabel="time t", ylabel="$A(K, yy^T)$", title="(b) alignment of the tangent kernel with the targets")
    drawn.legend(loc="outside right center", frameon=False)
    return drawn


def main(arguments: Sequence[str] | None = None) -> list[Claim]:
    """Returns the claims."""
    options = options_of(
        __doc__,
        "figure3",
        arguments,
        width=Option(1000, 256, "N"),
        neurons=Option(4096, 512, "sample that stands for infinite width"),
        samples=Option(20, 8, "P"),
        time=Option(10.0, 6.0, "until when"),
        lr=Option(0.02, 0.05, "base learning rate; time is lr * step"),
    )
    clock = Clock.started()
    inputs, targets = load(options, options.samples)
    steps = round(options.time / options.lr)
    record = range(0, steps + 1, max(1, steps // 40))
    settings = {"depth": 1, "loss": half_square, "lr": options.lr, "steps": steps, "weight_decay": DECAY}
    networks, theories = {}, {}
    for gamma0 in (0.05, 0.2, 0.5, 1.0, 2.0):
        problem = dmft.Problem.mlp(inputs.flatten(1), targets, activation="relu", gamma0=gamma0, **settings)
        theories[gamma0] = dmft.solve(problem, dmft.solvers.InfiniteWidth(options.neurons, 1), record=record)
        if gamma0 < LEAST:
            continue
        model = chain(inputs[0].numel(), options.width, 1, "relu")
        rates = {"gamma0": gamma0, "lr": options.lr, "steps": steps, "weight_decay": DECAY}
        networks[gamma0] = trained(model, dmft.Probe(inputs, targets), record=record, seed=1, **rates).trajectory()
    static = dmft.solve(problem, dmft.solvers.StaticNTK(), record=record)
    alike = dmft.Problem.mlp(inputs.flatten(1), targets, activation="linear", gamma0=1.0, **settings)
    linear = dmft.solve(alike, dmft.solvers.DeepLinear(), record=record)
    found = claims(networks, theories, static, linear, targets)
    said = f"ReLU, L = 1, lambda = {DECAY:g}, N = {options.width}, P = {options.samples}, to t = {options.time:g}"
    drawn = figure(networks, theories, static, targets)
    finish(options, f"{said}, {steps} steps of {options.lr:g}", clock, drawn, found)
    return found


if __name__ == "__main__":
    main()
