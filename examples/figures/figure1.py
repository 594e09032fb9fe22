"""Figure 1: what a deep network learns is captured by the theory of infinitely wide ones.

    python examples/figures/figure1.py

tanh networks of three hidden layers on ten images. (a) losses at several gamma0; then at gamma0 = 1 (b, c) densities of
preactivations at the start and the end, (d) Phi after training, (e) Phi between two times, summed over samples, (f) how well
the kernels of networks of N neurons align with the theory; (g, h, i) the same of the gradient kernels G. The theory is
``solvers.InfiniteWidth``; bars are standard deviations of ten networks.
"""

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
    kernel_errors,
    load,
    of_samples,
    of_times,
    options_of,
    traced,
    trained,
)
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

import torch_dmft as dmft

DEPTH, GAMMA0 = 3, 1.0
ENOUGH = 512
"""The width around which, says the paper, theory and networks begin to agree near perfectly."""
Runs = dict[float, dmft.Trajectory]
"""By gamma0."""
Aligned = dict[int, Tensor]
"""By width: A with the theory of Phi^1..Phi^L and G^1..G^L at all pairs of times, and of Phi at 0: ``(network, 3, layer)``."""


def kernels(run: dmft.Trajectory) -> tuple[list[dmft.Kernel], list[dmft.Kernel]]:
    """Phi^1..Phi^L and G^1..G^L."""
    return [layer.forward for layer in run.layers[1:]], [layer.backward for layer in run.layers[:-1]]


def compared(run: dmft.Trajectory, theory: dmft.Trajectory) -> list[list[float]]:
    """What ``Aligned`` holds of one network."""
    pairs = [[*zip(*both, strict=True)] for both in zip(kernels(run), kernels(theory), strict=True)]
    start = [dmft.alignment(a.matrix(0), b.matrix(0)) for a, b in pairs[0]]
    return [*([dmft.alignment(a, b) for a, b in both] for both in pairs), start]


def preactivations(run: dmft.Trajectory, layer: int, time: int) -> Tensor:
    """The h of all samples and neurons of a layer, 1..L, at the first or last of the recorded times."""
    fields = run.layers[layer - 1].fields
    if fields is None:
        raise ValueError("A run without its fields.")
    return fields.preactivation[time].flatten().double()


def kolmogorov(one: Tensor, other: Tensor) -> float:
    """The largest distance of two empirical distribution functions."""
    points = torch.cat([one, other]).sort().values
    shares = [torch.searchsorted(sample.sort().values, points, right=True) / len(sample) for sample in (one, other)]
    return float((shares[0] - shares[1]).abs().max())


def tenth(run: dmft.Trajectory) -> float:
    """The time at which the loss is a tenth of the first, between two records."""
    levels = run.losses.log10() - run.losses[0].log10() + 1
    after = int((levels < 0).nonzero()[0])
    share = levels[after - 1] / (levels[after - 1] - levels[after])
    return float(run.times[after - 1] + share * (run.times[after] - run.times[after - 1]))


def claims(networks: Runs, theories: Runs, aligned: Aligned) -> list[Claim]:
    """Of the caption."""
    network, theory = networks[GAMMA0], theories[GAMMA0]
    apart = max(float((networks[g].losses - theories[g].losses).abs().max() / theories[g].losses[0]) for g in networks)
    times = [[tenth(run) for run in runs.values()] for runs in (networks, theories)]
    layers = range(1, DEPTH + 1)
    start, end = (
        max(kolmogorov(preactivations(network, l, t), preactivations(theory, l, t)) for l in layers) for t in (0, -1)
    )
    moved = max(kolmogorov(preactivations(theory, l, 0), preactivations(theory, l, -1)) for l in layers)
    last = [
        min(dmft.alignment(a.matrix(), b.matrix()) for a, b in zip(*both, strict=True))
        for both in zip(kernels(network), kernels(theory), strict=True)
    ]
    errors = kernel_errors(network, theory)
    widths = sorted(aligned)
    near = min(widths, key=lambda width: abs(width - ENOUGH))
    phi, g, initial = aligned[near].mean(0)
    missing = 1 - torch.stack([aligned[width].mean(0) for width in widths])
    slopes = [fall(widths, missing[:, kind].mean(1)) for kind in (0, 1)]
    first, final, begun = ([float(1 - each) for each in kind] for kind in (phi, g, initial))

    def listed(values: Sequence[float]) -> str:
        return f"1 - A = {', '.join(f'{each:.4f}' for each in values)} in layers 1 to {DEPTH}"

    return [
        Claim("(a) Theory has the losses", f"apart by {apart:.1%} of L(0) at most", apart < 0.05),
        Claim(
            "(a) Increasing gamma0 accelerates training",
            f"a tenth of the loss at t = {', '.join(f'{t:.2f}' for t in times[0])} (networks), "
            f"{', '.join(f'{t:.2f}' for t in times[1])} (theory) at gamma0 = {', '.join(f'{each:g}' for each in networks)}",
            all(each == sorted(each, reverse=True) for each in times),
        ),
        Claim(
            "(b, c) Densities of preactivations match at the start and the end",
            f"distribution functions are apart by {start:.3f} at the start, {end:.3f} at the end; "
            f"training moves them by {moved:.3f}",
            max(start, end) < min(0.05, moved / 2),
        ),
        Claim("(d) The final Phi match", f"alignment {last[0]:.4f} or more", last[0] > 0.98),
        Claim("(g) The final G match", f"alignment {last[1]:.4f} or more", last[1] > 0.98),
        Claim("(e) Phi at two times match", f"relative error {errors[0]:.1%} at most", errors[0] < 0.1),
        Claim("(h) G at two times match", f"relative error {errors[1]:.1%} at most", errors[1] < 0.1),
        Claim(
            f"(f, i) Around N = {ENOUGH} networks and theory agree near perfectly",
            f"N = {near}: A = {float(phi.min()):.4f} of Phi or more, {float(g.min()):.4f} of G or more; "
            f"1 - A falls like N^{slopes[0]:.2f} and N^{slopes[1]:.2f}",
            float(min(phi.min(), g.min())) > 0.98,
        ),
        Claim(
            "(f) Finite-width effects of Phi are larger at later layers",
            f"{listed(first)} at N = {near}; before training {', '.join(f'{each:.4f}' for each in begun)}",
            first == sorted(first),
        ),
        Claim(
            "(i) Those of G are larger at early layers",
            f"{listed(final)} at N = {near}",
            final == sorted(final, reverse=True),
        ),
    ]


def fall(widths: Sequence[int], missing: Tensor) -> float:
    """The exponent of N, by least squares."""
    x, y = torch.tensor(widths, dtype=torch.float64, device="cpu").log(), missing.double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def figure(networks: Runs, theories: Runs, aligned: Aligned, targets: Tensor) -> Figure:
    """All nine panels."""
    drawn = Figure(figsize=(13, 10), layout="constrained")
    rows = drawn.subfigures(3, 1, height_ratios=(3, 3.4, 3.4))
    losses, *densities = rows[0].subplots(1, 3)
    for (gamma0, theory), color in zip(theories.items(), COLORS, strict=False):
        losses.semilogy(theory.times, theory.losses, color=color, label=f"$\\gamma_0$ = {gamma0:g}")
        losses.semilogy(networks[gamma0].times, networks[gamma0].losses, "o", color=color, markersize=3)
    losses.set(xlabel="time t", ylabel="training loss", title="(a) lines: theory, points: networks")
    losses.legend(frameon=False)
    network, theory = networks[GAMMA0], theories[GAMMA0]
    for axes, time, title in zip(densities, (0, -1), ("(b) start", "(c) end"), strict=True):
        for layer, color in zip(range(1, DEPTH + 1), COLORS, strict=False):
            values = preactivations(network, layer, time)
            axes.hist(values.numpy(), 80, density=True, color=color, alpha=0.35, label=f"layer {layer}")
            axes.hist(preactivations(theory, layer, time).numpy(), 80, density=True, color=color, histtype="step")
        axes.set(
            xlabel="preactivation h", ylabel="density", title=f"{title}; lines: theory, filled: network", xlim=(-4, 4)
        )
    densities[0].legend(frameon=False)
    for part, kind, name, letters in zip(rows[1:], (0, 1), ("\\Phi", "G"), ("def", "ghi"), strict=True):
        both = kernels(network)[kind], kernels(theory)[kind]
        left, middle, right = part.subfigures(1, 3, width_ratios=(3.4, 5.2, 3.4))
        _matrices(left, both, targets, f"({letters[0]}) ${name}$ after training")
        middle.suptitle(f"({letters[1]}) $\\sum_\\mu {name}_{{\\mu\\mu}}(t, s)$, theory above, network below")
        for layer, axes in enumerate(middle.subplots(1, DEPTH)):
            of_times(axes, traced(both[1][layer]), traced(both[0][layer]), float(theory.times[-1]))
            axes.set(title=f"layer {layer + 1}", xlabel="s", ylabel="" if layer else "t")
        axes = right.subplots()
        for layer, color in zip(range(DEPTH), COLORS, strict=False):
            values = [aligned[width][:, kind, layer] for width in sorted(aligned)]
            mean, spread = [float(v.mean()) for v in values], [float(v.std()) for v in values]
            axes.errorbar(
                sorted(aligned),
                mean,
                spread,
                marker="o",
                markersize=3,
                capsize=2,
                color=color,
                label=f"layer {layer + 1}",
            )
        axes.set(
            xscale="log", xlabel="width N", ylabel="alignment", title=f"({letters[2]}) ${name}$ of networks and theory"
        )
        axes.legend(frameon=False)
    return drawn


def _matrices(part: SubFigure, both: tuple[list[dmft.Kernel], list[dmft.Kernel]], targets: Tensor, title: str) -> None:
    part.suptitle(title)
    grid = part.subplots(2, DEPTH)
    for row, name in enumerate(("network", "theory")):
        for layer in range(DEPTH):
            axes = grid[row, layer]
            of_samples(axes, by_class(both[row][layer].matrix(), targets), float(both[1][layer].matrix().abs().max()))
            if row == 0:
                axes.set_title(f"layer {layer + 1}", fontsize=9)
        grid[row, 0].set_ylabel(name)


def main(arguments: Sequence[str] | None = None) -> list[Claim]:
    """Returns the claims."""
    options = options_of(
        __doc__,
        "figure1",
        arguments,
        width=Option(2500, 512, "N of panels a to e and g, h"),
        widest=Option(1024, 64, "the largest N of panels f and i"),
        networks=Option(10, 2, "of each width"),
        neurons=Option(8192, 1024, "sample that stands for infinite width"),
        samples=Option(10, 6, "P"),
        steps=Option(150, 24, "of gradient descent"),
        lr=Option(0.03, 0.08, "base learning rate; time is lr * step"),
    )
    clock = Clock.started()
    inputs, targets = load(options, options.samples)
    probe, features = dmft.Probe(inputs, targets), inputs[0].numel()
    settings = {"lr": options.lr, "steps": options.steps, "two_time": True}
    settings["record"] = range(0, options.steps + 1, max(1, options.steps // 24))
    networks, theories = {}, {}
    for gamma0 in (0.2, 1.0, 2.0):
        recorder = trained(chain(features, options.width, DEPTH, "tanh"), probe, gamma0=gamma0, seed=0, **settings)
        networks[gamma0] = recorder.trajectory()
        solver = dmft.solvers.InfiniteWidth(options.neurons, 1)
        theories[gamma0] = dmft.solve(recorder.problem(), solver, record=settings["record"], two_time=True)
    aligned, width = {}, 32
    while width <= options.widest:
        found = []
        for seed in range(options.networks):
            run = trained(
                chain(features, width, DEPTH, "tanh"), probe, gamma0=GAMMA0, seed=1 + seed, **settings
            ).trajectory()
            found.append(compared(run, theories[GAMMA0]))
        aligned[width] = torch.tensor(found, device="cpu")
        width *= 2
    shown = claims(networks, theories, aligned)
    said = f"tanh, L = {DEPTH}, N = {options.width} (f, i: {options.networks} networks of each), P = {options.samples}"
    drawn = figure(networks, theories, aligned, targets)
    finish(options, f"{said}, {options.steps} steps of {options.lr:g}", clock, drawn, shown)
    return shown


if __name__ == "__main__":
    main()
