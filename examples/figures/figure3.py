"""Figure 3: weight decay, which an infinitely wide lazy network does not survive and a rich one does.

    python examples/figures/figure3.py

(a) losses of ReLU networks of one hidden layer with lambda = 1 at several gamma0, beside the theory of infinite width
(``solvers.InfiniteWidth``) and the static NTK with its decay; (b) alignment of their tangent kernel with the targets.
"""

from collections.abc import Sequence

import torch
from common import COLORS, Claim, Clock, Option, chain, finish, load, options_of, trained
from matplotlib.figure import Figure
from torch import Tensor

import torch_dmft as dmft
from torch_dmft.comparison import target_alignments

DECAY = 1.0
DEGREE = 2
"""Kappa: f(c theta) = c^2 f(theta) for one hidden layer of ReLUs and a readout."""
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


def claims(networks: Runs, theories: Runs, static: dmft.Trajectory, targets: Tensor) -> list[Claim]:
    """Of the caption and of section 4.2."""
    gammas = [*theories]
    lazy, rich = gammas[0], gammas[-1]
    apart = max(float((networks[g].losses - theories[g].losses).abs().max() / theories[g].losses[0]) for g in gammas)
    ends = [float(run.losses[-1] / run.losses[0]) for run in theories.values()]
    kernels = {g: float(ntk(run).matrix().norm() / ntk(run).matrix(0).norm()) for g, run in theories.items()}
    aligned = [float(target_alignments(ntk(run), targets)[-1]) for run in theories.values()]
    off = {g: regressed(run, targets) for g, run in theories.items()}
    still = max(float((run.outputs[-1] - run.outputs[-2]).norm() / targets.norm()) for run in theories.values())
    static_end, static_kernel = float(static.losses[-1] / static.losses[0]), ntk(static)
    static_size = float(static_kernel.matrix().norm() / static_kernel.matrix(0).norm())
    alive = [g for g, size in kernels.items() if size > 0.01]
    return [
        Claim(
            "The dynamics are predicted by DMFT",
            f"losses of networks and theory are apart by {apart:.1%} of L(0) at most",
            apart < 0.05,
        ),
        Claim(
            "gamma0 -> 0 ends at the trivial fixed point f = K = 0",
            f"static NTK: loss {static_end:.3f} of the first, |K| {static_size:.1e} of the first",
            static_size < 0.01 and static_end > 0.99,
        ),
        Claim(
            "Every gamma0 > 0 has a nontrivial fixed point",
            f"not the small ones: at gamma0 = {', '.join(f'{g:g}' for g in gammas if g not in alive)} K vanishes as well; "
            f"from {alive[0]:g} on |K| ends at {min(kernels[g] for g in alive):.2f} to {max(kernels.values()):.2f} of the first"
            if len(alive) < len(gammas)
            else f"|K| ends at {min(kernels.values()):.2f} of the first or more",
            len(alive) == len(gammas),
        ),
        Claim(
            "(a) The final loss decreases with gamma0",
            f"{', '.join(f'{end:.3f}' for end in ends)} of the first at gamma0 = {', '.join(f'{g:g}' for g in gammas)}",
            ends == sorted(ends, reverse=True),
        ),
        Claim(
            "(b) The final kernel is more aligned with the targets at larger gamma0",
            f"A(K, y y^T) = {', '.join(f'{each:.3f}' for each in aligned)}",
            aligned == sorted(aligned),
        ),
        Claim(
            "4.2: f ends at k [K + lambda kappa]^(-1) y with the final kernel",
            f"off by {off[rich]:.2%} of |y| at gamma0 = {rich:g}, {max(off.values()):.2%} at most; "
            f"in the last interval outputs moved by {still:.2%} at most",
            max(off.values()) < 0.02,
        ),
    ]


def figure(networks: Runs, theories: Runs, static: dmft.Trajectory, targets: Tensor) -> Figure:
    """Losses and alignments."""
    drawn = Figure(figsize=(10, 4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    for (gamma0, theory), color in zip(theories.items(), COLORS, strict=False):
        network = networks[gamma0]
        left.semilogy(theory.times, theory.losses, color=color, label=f"$\\gamma_0$ = {gamma0:g}")
        left.semilogy(network.times, network.losses, "o", color=color, markersize=3)
        right.plot(theory.times, target_alignments(ntk(theory), targets), color=color)
        right.plot(network.times, target_alignments(ntk(network), targets), "o", color=color, markersize=3)
    left.semilogy(static.times, static.losses, "k--", label="static NTK")
    right.plot(static.times, target_alignments(ntk(static), targets), "k--")
    left.set(xlabel="time t", ylabel="training loss", title="(a) lines: theory, points: networks")
    right.set(xlabel="time t", ylabel="A(K, y y^T)", title="(b) alignment of the tangent kernel with the targets")
    left.legend(frameon=False)
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
    networks, theories = {}, {}
    for gamma0 in (0.05, 0.5, 1.0, 2.0):
        recorder = trained(
            chain(inputs[0].numel(), options.width, 1, "relu"),
            dmft.Probe(inputs, targets),
            gamma0=gamma0,
            lr=options.lr,
            steps=steps,
            record=record,
            seed=1,
            weight_decay=DECAY,
        )
        problem = recorder.problem()
        networks[gamma0] = recorder.trajectory()
        theories[gamma0] = dmft.solve(problem, dmft.solvers.InfiniteWidth(options.neurons, 1), record=record)
    static = dmft.solve(problem, dmft.solvers.StaticNTK(), record=record)
    found = claims(networks, theories, static, targets)
    settings = f"ReLU, L = 1, lambda = {DECAY:g}, N = {options.width}, P = {options.samples}, to t = {options.time:g}"
    drawn = figure(networks, theories, static, targets)
    finish(options, f"{settings}, {steps} steps of {options.lr:g}", clock, drawn, found)
    return found


if __name__ == "__main__":
    main()
