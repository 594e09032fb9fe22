"""Set-ups of others before the referee: MLPs, a residual CNN and GPT-2, with and without rates that go with the width.

    pip install -c constraints.txt -e '.[foreign,transformers]'
    python examples/foreign_setups.py --widths 32,64,128,256

Each is judged as it is. Beside the verdict stands what mup's own coordinate check has of the same models, the size of the
outputs after a few steps of its own optimizer, as a power of the width: it is meant to be looked at, and says no word.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import torch_dmft as dmft

CLASSES, TOKENS, LENGTH = 8, 64, 16


def mlp(width: int, readout: Callable[[int, int], nn.Module] = nn.Linear) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), readout(width, CLASSES))


class Residual(nn.Module):
    """h + conv(relu(norm(conv(relu(norm(h))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        conv = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.branch = nn.Sequential(
            *(part for one in conv for part in (nn.BatchNorm2d(width), nn.ReLU(), one)),
        )

    def forward(self, h: Tensor) -> Tensor:
        """The stream behind the block."""
        changed: Tensor = h + self.branch(h)
        return changed


def cnn(width: int, readout: Callable[[int, int], nn.Module] = nn.Linear) -> nn.Sequential:
    """A residual network of two blocks on images of 8 x 8 pixels."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        *(Residual(width), Residual(width), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        readout(width, CLASSES),
    )


def gpt2(width: int, readout: Callable[[int, int], nn.Module] | None = None) -> nn.Module:
    """GPT-2 of transformers with two blocks and heads of 16 features, as it comes, or with a readout of its own."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = {"n_embd": width, "n_head": width // 16, "n_layer": 2, "vocab_size": TOKENS, "n_positions": LENGTH}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**settings, **none, tie_word_embeddings=readout is None))
    if readout is not None:
        model.lm_head = readout(width, TOKENS)
    return model


def with_mup(
    make: Callable[..., nn.Module], optimizer: str, lr: float, std: float | None = None
) -> Callable[[int], tuple[nn.Module, Any]]:
    """A model with mup's readout, starts and optimizer; base width 32."""
    import mup

    def readout(inputs: int, outputs: int) -> nn.Module:
        made: nn.Module = mup.MuReadout(inputs, outputs, bias=False)
        return made

    def factory(width: int) -> tuple[nn.Module, Any]:
        model = make(width, readout)
        mup.set_base_shapes(model, make(32, readout), delta=make(48, readout))
        for parameter in model.parameters():
            if parameter.ndim >= 2 and std is None:
                mup.init.kaiming_normal_(parameter)
            elif parameter.ndim >= 2:
                mup.init.normal_(parameter, std=std)
        return model, getattr(mup, optimizer)(model.parameters(), lr=lr)

    return factory


def by_hand(width: int) -> tuple[nn.Module, Any]:
    """GPT-2 with the starts and rates of Adam's muP written down for every group; base width 32."""
    model = gpt2(width, lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False))
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or (".h." not in name and "lm_head" not in name)]
    with torch.no_grad():
        for parameter in matrices:
            parameter *= (32 / width) ** 0.5
        model.lm_head.weight *= 32 / width
    groups = [{"params": [*matrices, model.lm_head.weight], "lr": 0.01 * 32 / width}, {"params": others}]
    return model, torch.optim.Adam(groups, lr=0.01)


class Multiplied(nn.Linear):
    """A readout whose outputs are multiplied by a number."""

    factor = 1.0

    def forward(self, input: Tensor) -> Tensor:
        """Logits."""
        return super().forward(input) * self.factor


def megatron(width: int, *, tied: bool) -> tuple[nn.Module, Any]:
    """GPT-2 with what Megatron-LM's `--use-mup` sets for Adam; base width 32.

    Starts of hidden weights fall as 1/sqrt(m), those of embeddings and readout stay; logits are multiplied by 1/m; rate and eps
    of every matrix that is no embedding, the readout among them, are divided by m. Tied weights count as embeddings.
    Read in `get_mup_config_overrides` (megatron/core/optimizer/__init__.py) and in the configuration of its transformers.
    """
    model, m = gpt2(width, lambda inputs, outputs: Multiplied(inputs, outputs, bias=False)), width / 32
    head: Any = model.lm_head
    head.factor = 1 / m
    if tied:
        head.weight = model.transformer.wte.weight  # type: ignore[union-attr]
    else:
        nn.init.normal_(head.weight, std=0.02)
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    with torch.no_grad():
        for parameter in hidden:
            parameter *= m**-0.5
    matrices = hidden if tied else [*hidden, head.weight]
    others = [p for p in model.parameters() if not any(p is one for one in matrices)]
    groups = [{"params": matrices, "lr": 0.01 / m, "eps": 1e-8 / m}, {"params": others}]
    return model, torch.optim.Adam(groups, lr=0.01, eps=1e-8)


def granite(width: int, *, rates: bool) -> tuple[nn.Module, Any]:
    """Granite of transformers with the multipliers of its configuration: logits over m, scores over d; base width 32.

    The configuration has neither starts nor rates that go with the width; with `rates` both are muP's for Adam.
    """
    from transformers import GraniteConfig, GraniteForCausalLM

    m = width / 32
    shape = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": width // 16,
    }
    numbers = {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 1 / 16,
        "logits_scaling": m,
    }
    tokens = {"vocab_size": TOKENS, "max_position_embeddings": LENGTH, "bos_token_id": 0, "eos_token_id": 1}
    model = GraniteForCausalLM(GraniteConfig(**shape, **numbers, **tokens, initializer_range=0.1))
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    if rates:
        with torch.no_grad():
            for parameter in hidden:
                parameter *= m**-0.5
    others = [p for p in model.parameters() if not any(p is one for one in hidden)]
    groups = [{"params": hidden, "lr": 0.01 / m if rates else 0.01}, {"params": others}]
    return model, torch.optim.Adam(groups, lr=0.01)


def unit_scaled(width: int) -> tuple[nn.Module, Any]:
    """Unit scaling's layers and its Adam (u-muP)."""
    import unit_scaling as uu
    from unit_scaling.optim import Adam

    model = nn.Sequential(
        *(uu.Linear(16, width, bias=False), uu.GELU(), uu.Linear(width, width, bias=False), uu.GELU()),
        uu.LinearReadout(width, CLASSES),
    )
    return model, Adam(model.parameters(), lr=0.05)


def plain(
    make: Callable[[int], nn.Module], optimizer: type[torch.optim.Optimizer], lr: float
) -> Callable[[int], tuple[nn.Module, Any]]:
    """A model as it comes, with one rate."""
    return lambda width: ((model := make(width)), optimizer(model.parameters(), lr=lr))  # type: ignore[call-arg]


def setups() -> dict[str, Callable[[int], tuple[nn.Module, Any]]]:
    """Name -> factory; those of mup begin with its name."""
    return {
        "MLP, mup's layers, MuAdam": with_mup(mlp, "MuAdam", 0.01),
        "MLP, mup's layers, MuSGD": with_mup(mlp, "MuSGD", 0.1),
        "MLP, unit scaling, its Adam": unit_scaled,
        "MLP, PyTorch's defaults, Adam": plain(mlp, torch.optim.Adam, 0.01),
        "MLP, PyTorch's defaults, SGD": plain(mlp, torch.optim.SGD, 0.1),
        "residual CNN, mup's layers, MuSGD": with_mup(cnn, "MuSGD", 0.1),
        "residual CNN, PyTorch's defaults, SGD": plain(cnn, torch.optim.SGD, 0.1),
        "GPT-2, mup's layers, MuAdam": with_mup(gpt2, "MuAdam", 0.01, std=0.05),
        "GPT-2, Adam's muP by hand": by_hand,
        "GPT-2 of transformers as it comes, Adam": plain(gpt2, torch.optim.Adam, 0.01),
        "GPT-2, Megatron-LM's muP, tied": lambda width: megatron(width, tied=True),
        "GPT-2, Megatron-LM's muP, untied": lambda width: megatron(width, tied=False),
        "Granite, its multipliers, muP's starts and rates": lambda width: granite(width, rates=True),
        "Granite, its multipliers, one start and rate": lambda width: granite(width, rates=False),
    }


def batches(name: str) -> Callable[[int], list[tuple[Any, Tensor]]]:
    """Random rows, images or tokens with random answers, by seed."""

    def made(seed: int) -> list[tuple[Any, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        if name.startswith(("GPT-2", "Granite")):
            tokens = torch.randint(TOKENS, (2, 8), generator=generator)  # few beside the width
            return [({"input_ids": tokens, "labels": tokens}, tokens)]
        shape = (16, 3, 8, 8) if "CNN" in name else (16, 16)
        return [(torch.randn(shape, generator=generator), torch.randint(CLASSES, (16,), generator=generator))]

    return made


def coordinate_check(
    name: str, make: Callable[[int], tuple[nn.Module, Any]], widths: Sequence[int], steps: int
) -> float:
    """The power of the width of the outputs' mean size after the last step, of mup's own check with the set-up's optimizer."""
    from mup.coord_check import _get_coord_data  # its public function builds an optimizer of its own

    (batch,) = batches(name)(0)
    if isinstance(batch[0], dict):
        data: Any = [batch[0]]
        settings: dict[str, Any] = {"dict_in_out": True, "output_name": "loss"}
        end = "lm_head"
    else:
        data, settings = [batch], {}
        end = str(len(list(make(widths[0])[0].children())) - 1)
    held: dict[int, Any] = {}

    def model(width: int) -> nn.Module:
        held[0] = make(width)
        made: nn.Module = held[0][0]
        return made

    found = _get_coord_data(
        {width: (lambda width=width: model(width)) for width in widths},
        data,
        lambda _: held[0][1],
        nsteps=steps,
        nseeds=3,
        cuda=False,
        show_progress=False,
        **settings,
    )
    last = found[(found.t == steps) & (found.module == end)].groupby("width").l1.mean()
    return float(np.polyfit(np.log(last.index.to_numpy(float)), np.log(last.to_numpy()), 1)[0])


def main(arguments: Sequence[str] | None = None) -> dict[str, dmft.Verdict]:
    """Returns name -> verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="32,64,128,256")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--only", default="", help="set-ups whose name holds this")
    options = parser.parse_args(arguments)
    widths = [int(width) for width in options.widths.split(",")]
    table = Table("set-up", "verdict", "to blame", "mup's check: |f| ~ N^", "seconds", title=f"N = {options.widths}")
    found = {}
    for name, make in setups().items():
        if options.only not in name:
            continue
        started = time.perf_counter()
        verdict = dmft.check(make, widths, steps=options.steps, seeds=options.seeds, data=batches(name), progress=True)
        seconds = time.perf_counter() - started
        try:
            power = f"{coordinate_check(name, make, widths, options.steps):+.2f}"
        except TypeError:  # of modules that return None among others, as attention does
            power = "fails"
        blamed = ", ".join(f"{fault.setting} of {fault.name}" for fault in verdict.faults) or "-"
        table.add_row(name, verdict.word, blamed, power, f"{seconds:.0f}")
        found[name] = verdict
    Console(width=160).print(table)
    return found


if __name__ == "__main__":
    main()
