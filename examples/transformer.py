"""A transformer and its infinite-width limit: heads are few, each of them is wide.

    python examples/transformer.py --width 256 --heads 4

One token of each sequence is marked, and the label is the sign of a feature of that token: it pays to look there. The
scores of attention are q.k / d with d = width / heads neurons per head, times a constant, and not q.k / sqrt(d): only then do
features learn alike at every width. Scores then start at 0 in the limit (at order 1/sqrt(d) in a network), so attention
begins uniform, and all of it is learned. In the limit heads are alike; what sets them apart in a network is its width.

The report's table of what was learned has G of queries and keys moving by 40 times its start in the network, and by more than
1000 times in theory. Both learn much the same: movement is |G(T) - G(0)| / |G(0)|, and G(0) vanishes in the limit, since no
score changes the output before values and readout are correlated. A network of width N starts at order 1/N, and a sample of S
neurons at order 1/S. The last lines and the figure show the size of G, which does compare. The figure's third panel is how much
each head looks at the marked token: 1/4 is chance.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft.report.style import COLORS

TOKENS, FEATURES = 4, 8


def sequences(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs ``(sample, token, feature)``, targets ``(sample, 1)``, and which token is marked in its first feature."""
    inputs = torch.randn(samples, TOKENS, FEATURES, generator=generator)
    marked = torch.randint(TOKENS, (samples,), generator=generator)
    inputs[..., 0] = 3.0 * nn.functional.one_hot(marked, TOKENS)
    return inputs, inputs[torch.arange(samples), marked, 1:2].sign(), marked


class Attention(nn.Module):
    """Multi-head attention with four plain linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.heads = heads

    def split(self, x: Tensor) -> Tensor:
        """``(sample, token, neuron)`` to ``(sample, head, token, neuron of the head)``."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # -1 is what grows with the width

    def scores(self, x: Tensor) -> Tensor:
        """What the softmax sees: ``(sample, head, token, token)``."""
        q, k = self.split(self.q(x)), self.split(self.k(x))
        return q @ k.mT * (4 / q.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        """The same with torch's own function."""
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, scale=4 / q.shape[-1])
        return self.out(mixed.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Embedding, one block of attention and a tanh layer before norms, mean over tokens, readout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, width)
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.readout = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(sample, token, feature)`` to ``(sample, 1)``."""
        x = self.embed(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.down(torch.tanh(self.up(self.norm2(x))))
        return self.readout(x.mean(1))


def start_and_end(run: dmft.Trajectory, position: int) -> str:
    """The size of a weight's G before and after training."""
    start, end = (run.layers[position].backward.equal_time[time].norm().item() for time in (0, -1))
    return f"{run.origin} from {start:.2g} to {end:.2g}"


def main(arguments: Sequence[str] | None = None) -> tuple[dmft.Comparison, Tensor]:
    """Returns the comparison, and the attention of each head to the marked token after training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--gamma0", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=0.02, help="base learning rate")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--neurons", type=int, default=1024, help="sample that stands for infinite width")
    parser.add_argument("--logdir", default="runs/transformer", help="for logs and a figure (default: %(default)s)")
    options = parser.parse_args(arguments)
    generator = torch.Generator().manual_seed(0)
    inputs, targets, marked = sequences(options.samples, generator)
    probe = dmft.Probe(inputs, targets)

    model = Transformer(options.width, options.heads)
    plan = dmft.parameterize(model, inputs, gamma0=options.gamma0, generator=generator)
    optimizer = torch.optim.SGD(plan.param_groups(options.lr))
    recorder = dmft.Recorder(plan, probe, every=max(1, options.steps // 6))
    with recorder.attach(optimizer):
        for _ in range(options.steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
    measured = recorder.trajectory()

    problem = recorder.problem()
    theory = dmft.solve(problem, dmft.solvers.InfiniteWidth(options.neurons, replicas=2), record=measured.steps)
    comparison = dmft.compare(measured, theory)
    Console().print(comparison)
    with torch.no_grad():
        weights = model.attention.scores(model.norm1(model.embed(inputs))).softmax(-1)
    share = weights[torch.arange(len(inputs)), ..., marked].mean((0, 2))  # (head,)
    shares = ", ".join(f"{each:.2f}" for each in share.tolist())
    print(f"attention to the marked token, head by head: {shares} (before training {1 / TOKENS:.2f})")
    for position, layer in enumerate(measured.layers):
        if layer.name in ("attention.q", "attention.k"):
            print(f"|G| of {layer.name}: {', '.join(start_and_end(run, position) for run in comparison.runs)}")
    comparison.write_tensorboard(options.logdir, plan=plan)
    figure(comparison, share).savefig(Path(options.logdir) / "transformer.png", dpi=150)
    print(f'{options.logdir}/transformer.png, and the DMFT tab of: tensorboard --logdir "{options.logdir}"')
    return comparison, share


def figure(comparison: dmft.Comparison, share: Tensor) -> Figure:
    """Losses, the size of G of every weight in the attention over training, and the heads' attention after it."""
    drawn = Figure(figsize=(11, 3.6), layout="constrained")
    loss, sizes, heads = drawn.subplots(1, 3, width_ratios=(1, 1.3, 0.8))
    for run, dashes in zip(comparison.runs, ("o-", "--"), strict=True):
        loss.semilogy(run.steps.numpy(), run.losses.numpy(), dashes, color="k", markersize=3, label=run.origin)
        attention = [layer for layer in run.layers if layer.name.startswith("attention.")]
        for layer, color in zip(attention, COLORS, strict=False):
            norms = layer.backward.equal_time.flatten(1).norm(dim=1)
            label = f"{layer.name.removeprefix('attention.')}, {run.origin}"
            sizes.semilogy(run.steps.numpy(), norms.numpy(), dashes, color=color, markersize=3, label=label)
    loss.set(xlabel="step", ylabel="loss")
    loss.legend(frameon=False, fontsize=8)
    sizes.set(xlabel="step", ylabel="|G| of the weights of attention")
    sizes.legend(frameon=False, fontsize=7, ncols=2)
    heads.bar(range(len(share)), share.numpy(), color="0.5")
    heads.axhline(1 / TOKENS, color="k", linestyle=":", label="before training")
    heads.set(xlabel="head", ylabel="attention to the marked token", xticks=range(len(share)), ylim=(0, 1))
    heads.legend(frameon=False, fontsize=8)
    return drawn


if __name__ == "__main__":
    main()
