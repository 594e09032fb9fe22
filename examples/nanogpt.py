"""A small GPT that writes letters: wrapped, checked, its learning rate found at width 64 and used at width 512.

    python examples/nanogpt.py
    python examples/nanogpt.py --quick

The text is the beginning of Shakespeare's Coriolanus (`examples/shakespeare.txt`, public domain). Four steps:

1. wrap: initial sizes and learning rates of every parameter by its role, as found by comparing the model of two widths;
2. check: does every weight do the same at each width? Anybody's set-up can be asked (`torch-dmft check nanogpt:make`);
3. transfer: the best rate at narrow widths, with an interval, and by which power of the width it goes; over as many steps as
   are trained afterwards, since the best rate depends on them;
4. train: networks of all widths at the best rate of width 64, the widest at a quarter of it and at four times it as well, and
   both ends of the widths in PyTorch's own parameterization at its best rate of width 64.

The figure has the loss curves. At the end the widest network writes. Losses are in nats per letter, of the batches that are
trained on.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import torch_dmft as dmft

BATCH, WINDOW, HEAD, BLOCKS = 8, 32, 16, 2
TEXT = Path(__file__).with_name("shakespeare.txt")


@cache
def text() -> tuple[Tensor, str]:
    """The letters as numbers, and which letters there are."""
    letters = TEXT.read_text(encoding="utf-8")
    alphabet = "".join(sorted(set(letters)))
    return torch.tensor([alphabet.index(letter) for letter in letters]), alphabet


def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of the text, and the letter that follows each of theirs: ``(sample, letter)`` both."""
    generator, (letters, _) = torch.Generator().manual_seed(seed), text()
    while True:
        starts = torch.randint(len(letters) - WINDOW, (BATCH, 1), generator=generator)
        windows = letters[starts + torch.arange(WINDOW + 1)]
        yield windows[:, :-1], windows[:, 1:]


class Block(nn.Module):
    """Attention and an MLP, each added to the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The stream ``(sample, letter, neuron)`` behind the block."""
        heads = (part.unflatten(2, (-1, HEAD)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=2))
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Width is that of the stream; heads have 16 neurons each, so that there are more of them in a wider network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        letters = len(text()[1])
        # Embeddings start at size one, which is N(0, 1) of nn.Embedding: they keep it, and blocks add features of size one.
        self.letter, self.place = nn.Embedding(letters, width), nn.Embedding(WINDOW, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, letters, bias=False)

    def forward(self, letters: Tensor) -> Tensor:
        """Logits of the letter that follows each: ``(sample, letter, alphabet)``."""
        x = self.letter(letters) + self.place.weight[: letters.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Nats per letter."""
    letters, following = batch
    return nn.functional.cross_entropy(model(letters).flatten(0, 1), following.flatten())


def make(width: int, lr: float = 0.1) -> tuple[nn.Module, torch.optim.Optimizer, object]:
    """The set-up in mean-field parameterization."""
    model = GPT(width)
    plan = dmft.parameterize(
        model, next(batches(0))[0][:2], wider=GPT(width + 4 * HEAD), outputs=lambda f: f.flatten(1)
    )
    return model, torch.optim.AdamW(plan.param_groups(lr, optimizer="adamw")), loss


def plain(width: int, lr: float = 0.003) -> tuple[nn.Module, torch.optim.Optimizer, object]:
    """The set-up in PyTorch's own parameterization: one rate for all."""
    model = GPT(width)
    return model, torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0), loss


def trained(setup: tuple, steps: int, seed: int = 0) -> list[float]:
    """Train; returns the loss before every step."""
    model, optimizer, _ = setup
    seen = []
    for _, batch in zip(range(steps), batches(seed), strict=False):
        optimizer.zero_grad()
        value = loss(model, batch)
        seen.append(value.item())
        value.backward()
        optimizer.step()
    return seen


@torch.no_grad()
def written(model: nn.Module, length: int, seed: int = 0) -> str:
    """Letters that a model writes, one after the other."""
    alphabet, generator = text()[1], torch.Generator().manual_seed(seed)
    letters = torch.tensor([[alphabet.index("\n")]])
    for _ in range(length):
        chances = model(letters[:, -WINDOW:])[:, -1].softmax(-1)
        letters = torch.cat([letters, torch.multinomial(chances, 1, generator=generator)], dim=1)
    return "".join(alphabet[letter] for letter in letters[0])


def smooth(losses: Sequence[float], over: int = 10) -> list[float]:
    """The mean of so many steps up to each."""
    return [sum(losses[max(0, at - over + 1) : at + 1]) / min(over, at + 1) for at in range(len(losses))]


def figure(curves: dict[str, dict[str, list[float]]]) -> Figure:
    """Loss against step, a panel for each kind of network."""
    drawn = Figure(figsize=(10, 3.8), layout="constrained")
    for axes, (title, several) in zip(drawn.subplots(1, len(curves), sharey=True), curves.items(), strict=True):
        for at, (label, losses) in enumerate(several.items()):
            shade = str(round(0.75 - 0.75 * at / max(1, len(several) - 1), 3))
            axes.plot(smooth(losses), color=shade, linewidth=1.2, label=label)
        axes.set_title(title, fontsize=9)
        axes.set(xlabel="step", ylim=(None, 5))
        axes.legend(frameon=False, fontsize=8)
    drawn.axes[0].set_ylabel("loss, nats per letter (mean of 10 steps)")
    return drawn


def main(arguments: Sequence[str] | None = None) -> dict[str, object]:
    """Returns the verdict of the check, the result of the sweep, and the loss curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="64,128,256,512", help="that are trained (default: %(default)s)")
    parser.add_argument(
        "--sweep", default="64,128", help="widths of the sweep; the first is tuned (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=200, help="of every training (default: %(default)s)")
    parser.add_argument(
        "--sweep-steps", type=int, help="of the trainings of the sweeps, to be quick (default: --steps)"
    )
    parser.add_argument("--processes", type=int, help="of the sweeps (default: one for each processor)")
    parser.add_argument("--seeds", type=int, default=3, help="of check and sweep (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="widths 32 to 128 and 60 steps: a minute or two")
    parser.add_argument("--logdir", default="runs/nanogpt", help="for the figure and the sweep (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.widths, options.sweep, options.steps = "32,64,128", "32,64", 60
    widths, swept = ([int(width) for width in several.split(",")] for several in (options.widths, options.sweep))
    base, widest, folder = swept[0], widths[-1], Path(options.logdir)

    torch.manual_seed(0)
    example, other = next(batches(0))[0][:2], GPT(base + 4 * HEAD)
    print(dmft.parameterize(GPT(base), example, wider=other, outputs=lambda f: f.flatten(1)), end="\n\n")

    watched = sys.stderr.isatty()
    verdict = dmft.check(make, widths[:3], steps=4, seeds=options.seeds + 1, data=batches, progress=watched)
    print(verdict, end="\n\n")

    settings = {
        "steps": options.sweep_steps or options.steps,
        "seeds": options.seeds,
        "data": batches,
        "processes": options.processes,
        "progress": watched,
    }
    folder.mkdir(parents=True, exist_ok=True)
    found = dmft.transfer(make, swept, lrs=(0.02, 0.1, 0.5), log=folder / "mean_field.jsonl", **settings)
    print(found, end="\n\n")
    own = dmft.transfer(plain, swept, lrs=(0.001, 0.004, 0.016), log=folder / "plain.jsonl", **settings)
    print(own, end="\n\n")

    rate, own_rate = (one.lr(one.optima[base].value) for one in (found, own))
    curves: dict[str, dict[str, list[float]]] = {}
    setups = {f"width {width}": partial(make, width, rate) for width in widths}
    curves[f"mean field, best rate of width {base}: {rate:.2g}"] = _curves(setups, options.steps)
    setups = {f"{factor:g} times it": partial(make, widest, factor * rate) for factor in (0.25, 1, 4)}
    curves[f"width {widest}, at other rates"] = _curves(setups, options.steps)
    setups = {f"width {width}": partial(plain, width, own_rate) for width in (widths[0], widest)}
    curves[f"PyTorch's own, best rate of width {base}: {own_rate:.2g}"] = _curves(setups, options.steps)
    for title, several in curves.items():
        for label, losses in several.items():
            last = losses[-max(1, len(losses) // 4) :]
            print(f"{title}, {label}: loss {sum(last) / len(last):.3f}")

    torch.manual_seed(0)
    setup = make(widest, rate)
    trained(setup, options.steps)
    print(f"\nThe network of width {widest} writes:{written(setup[0], 200)}\n")
    figure(curves).savefig(folder / "nanogpt.png", dpi=110)
    found.figure().savefig(folder / "transfer.png", dpi=110)
    verdict.write_html(folder / "check.html")
    found.write_html(folder / "transfer.html")
    print(f"{folder}/nanogpt.png, {folder}/transfer.png; a uniform guess has a loss of {math.log(len(text()[1])):.2f}")
    return {"verdict": verdict, "transfer": found, "plain": own, "curves": curves}


def _curves(setups: dict[str, partial], steps: int) -> dict[str, list[float]]:
    made = {}
    for label, setup in setups.items():
        torch.manual_seed(0)
        made[label] = trained(setup(), steps)
    return made


if __name__ == "__main__":
    main()
