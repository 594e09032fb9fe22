"""The best learning rate of a narrow network is that of a wide one - in mean-field parameterization.

    python examples/lr_transfer.py
    python examples/lr_transfer.py --model gpt2 --optimizer adamw --widths 64,128,256,512

For each width the loss after some steps against the base learning rate, in mean-field and in PyTorch's standard
parameterization: the model's own initial weights and one rate for all. In the first the best rate stays where it is,
in the second it falls with the width. Networks of several seeds are averaged; "diverged" is a training of which one did.

Rates are powers of 2. At each width they are tried up and down from the best of the width before, until the best has two
worse ones on either side. Between them the best is placed by the parabola through it and its neighbours, if none diverged.
How far the best rate moves is the ratio of the largest to the smallest of all widths: on the grid 1, 2, 4, ..., of
which 2 can be the noise of a few seeds. With --gamma0 the richness changes: transfer holds at any that is kept.

Models: an MLP and a CNN, whose widths are neurons and channels; GPT-2 and ViT of `transformers` as they come, two blocks
with heads of size 16, whose width is that of the residual stream. In mean-field parameterization GPT-2's embeddings start at
size one, not 0.02: they keep the size they are given, and blocks make features of size one. The loss is taken over the last
quarter of the steps, of batches that were not seen before: digits, for GPT-2 windows of the text that describes them.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft.parameterization import coordinate_check

HEAD, WINDOW = 16, 16
SCHEMES = ("mean_field", "standard")
OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
LOWEST, HIGHEST = -26, 10
"""Powers of 2 between which rates are tried."""


@cache
def digits() -> tuple[Tensor, Tensor]:
    """1797 images ``(sample, 1, 8, 8)`` of mean 0 and variance 1, and their classes."""
    images, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    return nn.functional.layer_norm(images.float(), (64,)).reshape(-1, 1, 8, 8), labels


@cache
def text() -> tuple[Tensor, int]:
    """The description of the digits as numbers of its characters, and how many different ones there are."""
    description = load_digits()["DESCR"].lower()
    alphabet = sorted(set(description))
    return torch.tensor([alphabet.index(letter) for letter in description]), len(alphabet)


def mlp(width: int) -> nn.Module:
    """Two hidden layers."""
    hidden = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))


def cnn(width: int) -> nn.Module:
    """Two convolutions, to 4x4 and to 2x2 places."""
    first, second = nn.Conv2d(1, width, 3, stride=2, padding=1), nn.Conv2d(width, width, 2, stride=2)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(4 * width, 10))


def gpt2(width: int) -> nn.Module:
    """Of `transformers`, untied: a tied weight would be an embedding and a readout at once, which need different sizes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    _, letters = text()
    sizes = {"vocab_size": letters, "n_positions": WINDOW, "n_embd": width, "n_layer": 2, "n_head": width // HEAD}
    plain = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **plain, tie_word_embeddings=False))


def vit(width: int) -> nn.Module:
    """Of `transformers`, on four patches of 4x4 pixels and the class token."""
    from transformers import ViTConfig, ViTForImageClassification

    image = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10}
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // HEAD}
    return ViTForImageClassification(ViTConfig(**image, **sizes, num_hidden_layers=2))


def images(size: int, step: int, order: Tensor) -> tuple[Tensor, Tensor]:
    """The images of one step, and their classes."""
    rows = order[torch.arange(step * size, (step + 1) * size) % len(order)]
    return digits()[0][rows], digits()[1][rows]


def windows(size: int, step: int, order: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Windows of the text, and the character that follows each of theirs."""
    starts = order[torch.arange(step * size, (step + 1) * size) % len(order)] % (len(text()[0]) - WINDOW)
    letters = text()[0][starts[:, None] + torch.arange(WINDOW + 1)]
    return {"input_ids": letters[:, :-1]}, letters[:, 1:]


@dataclass(frozen=True)
class Task:
    """A model and what it learns.

    Attributes:
        build: from the width to the model.
        batch: from batch size, step and an order of all rows to what ``forward`` takes, and targets.
        outputs: from what the model returns to f ``(sample, output)``.
        size: samples in a batch.
        widths: that are tried unless others are asked for.
    """

    build: Callable[[int], nn.Module]
    batch: Callable[[int, int, Tensor], tuple[Any, Tensor]]
    outputs: Callable[[Any], Tensor]
    size: int
    widths: tuple[int, ...]


TASKS = {
    "mlp": Task(mlp, images, lambda f: f, 32, (64, 128, 256, 512, 1024)),
    "cnn": Task(cnn, images, lambda f: f, 32, (64, 128, 256, 512, 1024)),
    "gpt2": Task(gpt2, windows, lambda returned: returned.logits.flatten(1), 8, (64, 128, 256)),
    "vit": Task(
        vit,
        lambda *which: ({"pixel_values": images(*which)[0]}, images(*which)[1]),
        lambda r: r.logits,
        32,
        (64, 128, 256),
    ),
}


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of f ``(sample, output)``, the logits of a place, or of those of every place in turn."""
    return nn.functional.cross_entropy(outputs.reshape(targets.numel(), -1), targets.flatten())


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The sum over classes of (f - y)^2, with y 1 for the class that is right and 0 for others; mean over places."""
    outputs = outputs.reshape(targets.numel(), -1)
    return (outputs - nn.functional.one_hot(targets.flatten(), outputs.shape[1])).square().sum(1).mean()


LOSSES = {"mse": squared_error, "cross_entropy": cross_entropy}


@dataclass
class Sweep:
    """Losses by rate at each width, in one parameterization.

    Attributes:
        losses: for each width and power p of the rate 2^p, the losses of the seeds; infinite where training diverged.
    """

    losses: dict[int, dict[int, list[float]]] = field(default_factory=dict)

    def means(self, width: int) -> dict[int, float]:
        """The mean loss by power of the rate, in the order of the rates."""
        return {power: sum(row) / len(row) for power, row in sorted(self.losses[width].items())}

    def power(self, width: int) -> int:
        """Of the best rate on the grid."""
        means = self.means(width)
        return min(means, key=lambda power: means[power])

    def exponent(self, width: int) -> float:
        """Of the best rate by the parabola through the best and its neighbours, or on the grid where one diverged."""
        means, best = self.means(width), self.power(width)
        low, middle, high = (means.get(best + by, math.inf) for by in (-1, 0, 1))
        curvature = low - 2 * middle + high
        return best + 0.5 * (low - high) / curvature if 0 < curvature < math.inf else float(best)

    def moves(self) -> tuple[float, float]:
        """The largest best rate over the smallest: on the grid, and by parabolas."""
        by_grid, by_parabola = ([of(width) for width in self.losses] for of in (self.power, self.exponent))
        return 2.0 ** (max(by_grid) - min(by_grid)), 2.0 ** (max(by_parabola) - min(by_parabola))

    def at_the_edge(self) -> list[int]:
        """Widths whose best rate has no worse one on both sides."""
        return [
            width
            for width in self.losses
            if not {self.power(width) - 1, self.power(width) + 1} <= {*self.losses[width]}
        ]


class Start:
    """A network before training, in a parameterization, from which every rate starts."""

    def __init__(self, options: argparse.Namespace, scheme: str, width: int, seed: int) -> None:
        self.options, self.task = options, TASKS[options.model]
        torch.manual_seed(seed)
        self.rows = torch.randperm(1797)
        self.model = self.task.build(width)
        self.plan = None
        if scheme == "mean_field":
            inputs, _ = self.task.batch(2, 0, self.rows)
            other = self.task.build(width // 2 if width >= 4 * HEAD else 2 * width)  # two heads at least
            for module in (*self.model.modules(), *other.modules()):
                # Embeddings keep their size, and GPT-2's of 0.02 would be lost in the stream beside blocks of size one.
                if isinstance(module, nn.Embedding):
                    nn.init.normal_(module.weight)
            self.plan = dmft.parameterize(self.model, inputs, options.gamma0, wider=other, outputs=self.task.outputs)
        self.state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def optimizer(self, lr: float) -> torch.optim.Optimizer:
        """Of the plan's groups, or of one group with one rate; weight decay is torch's own."""
        name = self.options.optimizer
        if self.plan is None:
            return OPTIMIZERS[name](self.model.parameters(), lr)
        decay = 0.01 if name == "adamw" else 0.0
        return OPTIMIZERS[name](self.plan.param_groups(lr, optimizer=name, weight_decay=decay))

    def final_loss(self, lr: float) -> float:
        """The loss averaged over the last quarter of the steps; infinite if training diverges."""
        self.model.load_state_dict(self.state)
        optimizer, seen = self.optimizer(lr), []
        for step in range(self.options.steps):
            inputs, targets = self.task.batch(self.task.size, step, self.rows)
            optimizer.zero_grad()
            returned = self.model(**inputs) if isinstance(inputs, dict) else self.model(inputs)
            loss = LOSSES[self.options.loss](self.task.outputs(returned), targets)
            seen.append(loss.item())
            if not seen[-1] < 100 * seen[0]:
                return math.inf
            loss.backward()
            optimizer.step()
        last = seen[-max(1, self.options.steps // 4) :]
        return sum(last) / len(last)


def sweep(options: argparse.Namespace, scheme: str, widths: Sequence[int], show: Callable[[str], None]) -> Sweep:
    """Losses around the best rate of every width."""
    result = Sweep()
    power = {("mean_field", "adamw"): -3, ("standard", "adamw"): -8}.get((scheme, options.optimizer), -2)
    for width in widths:
        losses = result.losses[width] = {}
        starts = [Start(options, scheme, width, seed) for seed in range(options.seeds)]
        while True:
            for tried in range(max(LOWEST, power - 2), min(HIGHEST, power + 2) + 1):
                if tried not in losses:
                    losses[tried] = [start.final_loss(2.0**tried) for start in starts]
                    show(f"{scheme}, N={width}, lr=2^{tried}: loss {result.means(width)[tried]:.4g}")
            if result.power(width) == power:
                break
            power = result.power(width)
    return result


def main(arguments: Sequence[str] | None = None) -> dict[str, Sweep]:
    """Returns the losses by scheme."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(TASKS), default="mlp")
    parser.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="sgd")
    parser.add_argument("--loss", choices=sorted(LOSSES), help="default: mse of mlp and cnn, else cross_entropy")
    parser.add_argument("--widths", help="default: 64 to 1024, of transformers to 256, by factors of 2")
    parser.add_argument("--gamma0", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2, help="networks whose losses are averaged")
    parser.add_argument("--check", action="store_true", help="first see whether features move alike at every width")
    parser.add_argument("--logdir", default="runs/lr_transfer", help="for figure and losses (default: %(default)s)")
    options = parser.parse_args(arguments)
    task = TASKS[options.model]
    options.loss = options.loss or ("mse" if options.model in ("mlp", "cnn") else "cross_entropy")
    widths = [int(width) for width in options.widths.split(",")] if options.widths else task.widths

    console = Console()
    if options.check:
        inputs, targets = task.batch(task.size, 0, torch.arange(1797))
        checked = {"widths": widths, "optimizer": options.optimizer, "gamma0": options.gamma0, "seeds": options.seeds}
        console.print(
            coordinate_check(task.build, inputs, targets, loss=LOSSES[options.loss], outputs=task.outputs, **checked)
        )
    with console.status("") as status:
        sweeps = {scheme: sweep(options, scheme, widths, status.update) for scheme in SCHEMES}
    for scheme, one in sweeps.items():
        console.print(table(scheme, one))
        if one.at_the_edge():
            print(f"The best rate is at the edge of what was tried at N = {one.at_the_edge()}.")
    moved = {scheme: "{:g} (by parabolas {:.2g})".format(*one.moves()) for scheme, one in sweeps.items()}
    print(
        f"Between widths {min(widths)} and {max(widths)} the best rate of {options.model} with {options.optimizer} moves by a "
        f"factor {moved['mean_field']} in mean-field parameterization, {moved['standard']} in the standard one."
    )
    about = {name: getattr(options, name) for name in ("model", "optimizer", "loss", "gamma0", "steps", "seeds")}
    known = {scheme: asdict(one)["losses"] for scheme, one in sweeps.items()}
    file = Path(options.logdir) / f"{options.model}-{options.optimizer}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".json").write_text(json.dumps({**about, "losses": known}, indent=1) + "\n")
    figure(sweeps, f"{options.model}, {options.optimizer}").savefig(file.with_suffix(".png"), dpi=110)
    print(f"{file}.png, {file}.json")
    return sweeps


def table(scheme: str, one: Sweep) -> Table:
    """A row per rate, a column per width; the best of each width is marked, and placed between the rates in the last row."""
    shown = Table(title=f"{scheme}: loss by base learning rate and width", title_justify="left")
    for name in ("lr", *(f"N={width}" for width in one.losses)):
        shown.add_column(name, justify="right")
    for tried in sorted({tried for row in one.losses.values() for tried in row}):
        cells = []
        for width in one.losses:
            loss = one.means(width).get(tried)
            cell = "" if loss is None else "diverged" if math.isinf(loss) else f"{loss:.3g}"
            cells.append(f"* {cell}" if tried == one.power(width) else cell)
        shown.add_row(f"2^{tried}", *cells, end_section=tried == max(max(row) for row in one.losses.values()))
    shown.add_row("best lr", *(f"{2 ** one.exponent(width):.2g}" for width in one.losses))
    return shown


def figure(sweeps: dict[str, Sweep], title: str) -> Figure:
    """Loss against base learning rate, a line per width, a panel per scheme; stars are the best rates."""
    drawn = Figure(figsize=(9, 3.8), layout="constrained")
    drawn.suptitle(title)
    best = [one.means(width)[one.power(width)] for one in sweeps.values() for width in one.losses]
    highest = 2.5 * max(best)  # diverging losses would hide the others
    for axes, (scheme, one) in zip(drawn.subplots(1, len(sweeps), sharey=True), sweeps.items(), strict=True):
        for shade, width in enumerate(one.losses):
            means = {tried: loss for tried, loss in one.means(width).items() if loss <= highest}
            color = str(round(0.8 - 0.8 * shade / max(1, len(one.losses) - 1), 3))
            axes.plot(list(means), list(means.values()), "o-", ms=3, color=color, label=f"N={width}")
            axes.plot(one.power(width), means[one.power(width)], "*", ms=11, color=color)
        low, high = (f(f(row) for row in one.losses.values()) for f in (min, max))
        ticks = range(low, high + 1, 1 if high - low < 9 else 2)
        axes.set_xticks(list(ticks), [f"$2^{{{tried}}}$" for tried in ticks])
        axes.set(title=scheme.replace("_", " "), xlabel="base learning rate", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(which="both", labelsize=8)
        axes.legend(frameon=False, fontsize=8)
    drawn.axes[0].set_ylabel("loss, last quarter of the steps")
    return drawn


if __name__ == "__main__":
    main()
