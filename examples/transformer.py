"""A transformer and its infinite-width limit: heads are few, each of them is wide.

    python examples/transformer.py --width 256 --heads 4

One token of each sequence is marked, and the label is the sign of a feature of that token: it pays to look there. The
scores of attention are q.k / d with d = width / heads neurons per head, times a constant, and not q.k / sqrt(d): only then do
features learn alike at every width. Scores then start at 0 in the limit (at order 1/sqrt(d) in a network), so attention
begins uniform, and all of it is learned. In the limit heads are alike; what sets them apart in a network is its width.

The report's table of what was learned has G of queries and keys moving by 40 times its start in the network, and by more than
1000 times in theory. Both learn much the same: movement is |G(T) - G(0)| / |G(0)|, and G(0) vanishes in the limit, since no
score changes the output before values and readout are correlated. A network of width N starts at order 1/N, and a sample of S
neurons at order 1/S. The last lines show G at the start and at the end, which do compare.
"""

import argparse
from collections.abc import Sequence

import torch
from rich.console import Console
from torch import Tensor, nn

import torch_dmft as dmft

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
    return comparison, share


if __name__ == "__main__":
    main()
