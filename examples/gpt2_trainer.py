"""A small GPT-2 of `transformers`, trained by its own Trainer, with its kernels in TensorBoard while it learns.

    pip install 'torch_dmft[transformers]'
    python examples/gpt2_trainer.py --steps 60
    tensorboard --logdir runs/gpt2

The model comes as it is: no wrapping, no theory, only measuring. Its outputs are logits of every token; f is what it says of
the last one, seen through four fixed random directions of the vocabulary. How far Phi, G and the NTK move tells how rich its
learning is, and which layer learns.
"""

import argparse
from collections.abc import Sequence

import torch
from rich.console import Console

import torch_dmft as dmft
from torch_dmft.comparison import movement
from torch_dmft.measurement import Projection
from torch_dmft.report import LiveScalars, figures

TEXT = """The first figure of the paper shows what a wide network learns: features move, kernels align with the task, and the
loss falls as a theory of a few kernels says. What a network of any width learns can be measured in the same way, layer by
layer."""
LENGTH = 24


class Windows(torch.utils.data.Dataset):
    """Every window of the text, as characters."""

    def __init__(self) -> None:
        alphabet = sorted(set(TEXT))
        self.letters = torch.tensor([alphabet.index(letter) for letter in TEXT])
        self.size = len(alphabet)

    def __len__(self) -> int:
        return len(self.letters) - LENGTH

    def __getitem__(self, start: int) -> dict[str, torch.Tensor]:
        window = self.letters[start : start + LENGTH]
        return {"input_ids": window, "labels": window}


def main(arguments: Sequence[str] | None = None) -> dmft.Trajectory:
    """Returns what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--features", type=int, default=64, help="size of the residual stream")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate of AdamW, the Trainer's own optimizer")
    parser.add_argument("--logdir", default="runs/gpt2")
    options = parser.parse_args(arguments)
    import transformers

    from torch_dmft.integrations.transformers import RecorderCallback

    windows = Windows()
    transformers.set_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=windows.size,
            n_positions=LENGTH,
            n_embd=options.features,
            n_layer=options.blocks,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    tokens = torch.stack([windows[start]["input_ids"] for start in range(0, 80, 10)])
    recorder = dmft.Recorder(
        model,
        dmft.Probe({"input_ids": tokens}),
        every=max(1, options.steps // 10),
        outputs=Projection(4, of=lambda returned: returned.logits[:, -1]),
    )
    settings = transformers.TrainingArguments(
        options.logdir,
        max_steps=options.steps,
        learning_rate=options.lr,
        per_device_train_batch_size=16,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = transformers.Trainer(model, settings, train_dataset=windows, callbacks=[RecorderCallback(recorder)])
    with LiveScalars(options.logdir, recorder):
        trainer.train()

    measured = recorder.trajectory()
    figures.learned(measured).savefig(f"{options.logdir}/gpt2.png", dpi=150)
    console = Console()
    console.print(measured)
    moved = {layer.name: float(movement(layer.forward)[-1]) for layer in measured.layers}
    most, ntk = max(moved, key=lambda name: moved[name]), float(movement(measured.ntk)[-1])
    console.print(
        f"\nThe features that move most are the inputs of {most}: by {moved[most]:.0%} of what they were; the NTK moves by "
        f"{ntk:.0%}. Near 0% a network is lazy, from some tens of per cent on rich.\n"
        f"How far kernels moved, weight by weight: {options.logdir}/gpt2.png; the kernels: "
        f"tensorboard --logdir {options.logdir}"
    )
    return measured


if __name__ == "__main__":
    main()
