"""Runs of Lightning that the tests look at; apart, so that only those import it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torch_dmft as dmft
from torch_dmft.integrations.lightning import RecorderCallback

INPUTS = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randn(16, 1, generator=torch.Generator().manual_seed(1))


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        self.plan = dmft.parameterize(self.model, INPUTS)

    def training_step(self, batch: tuple[Tensor, tuple[Tensor, Tensor]], batch_idx: int) -> Tensor:
        _, (x, y) = batch
        return nn.functional.mse_loss(self.model(x), y)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.plan.param_groups(0.1), momentum=0.5)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3)]


def fit(folder: Path, *, epochs: int, watched: bool = True, start: Path | None = None, stop: int | None = None) -> Any:
    module = Module()
    recorder = dmft.Recorder(module.plan, dmft.Probe(INPUTS, TARGETS), data=(INPUTS, TARGETS), every=2)
    trainer = L.Trainer(
        max_epochs=epochs,
        max_steps=-1 if stop is None else stop,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RecorderCallback(recorder)] if watched else [],
        default_root_dir=folder,
    )
    torch.manual_seed(3)
    loader = DataLoader(dmft.Indexed(TensorDataset(INPUTS, TARGETS)), batch_size=4, shuffle=True)
    trainer.fit(module, loader, ckpt_path=start)
    return module, recorder, trainer


class InTurn(Module):
    """Steps two optimizers by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        groups = self.plan.param_groups(0.1)
        return [torch.optim.SGD(groups[:1]), torch.optim.SGD(groups[1:])]
