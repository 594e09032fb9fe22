"""Runs of Hugging Face's Trainer that the tests look at; apart, so that only those import it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import Dataset

import torch_dmft as dmft
from torch_dmft.integrations.transformers import RecorderCallback

INPUTS = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randn(16, 1, generator=torch.Generator().manual_seed(1))


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"x": INPUTS[row], "labels": TARGETS[row]}


class Trainer(transformers.Trainer):
    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        return nn.functional.mse_loss(model(inputs["x"]), inputs["labels"])


def wrapped() -> tuple[nn.Module, dmft.Plan, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    plan = dmft.parameterize(model, INPUTS)
    return model, plan, torch.optim.SGD(plan.param_groups(0.1), momentum=0.5)


def fit(folder: Path, *, watched: bool = True, resume: Path | None = None) -> tuple[nn.Module, dmft.Recorder]:
    model, plan, optimizer = wrapped()
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS), data=(INPUTS, TARGETS), every=2)
    args = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=3,
        report_to=[],
        use_cpu=True,
        save_steps=6,
        remove_unused_columns=False,
        max_grad_norm=0.0,
        seed=5,
        disable_tqdm=True,
    )
    callbacks = [RecorderCallback(recorder)] if watched else []
    Trainer(model, args, train_dataset=Rows(), optimizers=(optimizer, None), callbacks=callbacks).train(
        resume_from_checkpoint=None if resume is None else str(resume)
    )
    return model, recorder
