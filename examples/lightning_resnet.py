"""A resnet18 of torchvision with BatchNorm in Lightning's loop, with its kernels in TensorBoard while it learns.

    pip install 'torch_dmft[lightning]'
    python examples/lightning_resnet.py --steps 40
    tensorboard --logdir runs/resnet

The network comes as it is. BatchNorm is measured with the statistics of the probe, as a batch of it would be in training;
``--batch-norm run`` takes the running averages of the run instead, which lag behind: the first kernels are then those of
another network.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torch_dmft as dmft
from torch_dmft import data
from torch_dmft.report import LiveScalars, figures


def main(arguments: Sequence[str] | None = None) -> dmft.Trajectory:
    """Returns what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--samples", type=int, default=128, help="handwritten digits 0 and 1 to train on")
    parser.add_argument("--lr", type=float, default=3e-4, help="of AdamW")
    parser.add_argument("--batch-norm", choices=["probe", "run"], default="probe")
    parser.add_argument("--logdir", default="runs/resnet")
    options = parser.parse_args(arguments)
    import lightning
    from torchvision.models import resnet18

    from torch_dmft.integrations.lightning import RecorderCallback

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = resnet18(num_classes=1)
            self.network.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)  # for images of 8 x 8 pixels

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            _, (images, labels) = batch
            return nn.functional.mse_loss(self.network(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.network.parameters(), lr=options.lr)

    lightning.seed_everything(0, verbose=False)
    images, labels = data.load("digits", options.samples)
    module = Classifier()
    recorder = dmft.Recorder(
        module.network,
        dmft.Probe(images[:12], labels[:12]),
        every=max(1, options.steps // 8),
        data=(images, labels),
        batch_norm=options.batch_norm,
        fields=False,
    )
    trainer = lightning.Trainer(
        max_steps=options.steps,
        callbacks=[RecorderCallback(recorder)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = DataLoader(dmft.Indexed(TensorDataset(images, labels)), batch_size=32, shuffle=True)
    with LiveScalars(options.logdir, recorder):
        trainer.fit(module, batches)

    measured = recorder.trajectory()
    figures.learned(measured).savefig(f"{options.logdir}/resnet.png", dpi=150)
    console = Console()
    console.print(measured)
    first, last = (float(measured.ntk.per_sample().matrix(time).diagonal().mean()) for time in (0, -1))
    console.print(
        f"\nBatchNorm with statistics of the {options.batch_norm}: the NTK's mean diagonal is {first:.3g} at the start and "
        f"{last:.3g} at the end.\nHow far kernels moved, weight by weight: {options.logdir}/resnet.png; the kernels: "
        f"tensorboard --logdir {options.logdir}"
    )
    return measured


if __name__ == "__main__":
    main()
