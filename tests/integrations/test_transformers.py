"""The callback in the loop of Hugging Face's Trainer, and the optimizers of accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import torch_dmft as dmft
from tests.vision import torchvision
from torch_dmft.core.errors import InvalidInputError

assert torchvision  # transformers imports it, and needs it repaired first
transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

from torch_dmft.integrations.transformers import RecorderCallback  # noqa: E402

INPUTS = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randn(16, 1, generator=torch.Generator().manual_seed(1))


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"x": INPUTS[row], "labels": TARGETS[row]}


class Trainer(transformers.Trainer):  # type: ignore[misc, name-defined]
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


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_recorded_and_resumed(tmp_path: Path) -> None:
    model, recorder = fit(tmp_path / "a")
    plain, _ = fit(tmp_path / "b", watched=False)
    again, later = fit(tmp_path / "a", resume=tmp_path / "a" / "checkpoint-6")
    for mine, theirs, third in zip(model.parameters(), plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(mine, third)
    assert recorder.trajectory().steps.tolist() == later.trajectory().steps.tolist() == list(range(0, 13, 2))
    assert later.training.notes == ()
    assert later.training.lr.tolist() == recorder.training.lr.tolist()
    assert recorder.training.lr.tolist() == pytest.approx([0.1 * (1 - step / 12) for step in range(12)])
    assert "all training rows" in recorder.training.doubt  # batches that nobody noted
    assert recorder.problem(batches=4).steps == 12


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_without_the_recorder_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, watched=False)
    with pytest.raises(InvalidInputError, match="knows nothing of the steps before"):
        fit(tmp_path, resume=tmp_path / "checkpoint-6")


def test_optimizers_of_accelerate_are_seen_as_what_they_wrap() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model, plan, optimizer = wrapped()
    prepared, outer = accelerator.prepare(model, optimizer)
    recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS))
    with recorder.attach(outer):
        for _ in range(3):
            outer.zero_grad()
            accelerator.backward(nn.functional.mse_loss(prepared(INPUTS), TARGETS))
            outer.step()
    assert (recorder.training.optimizer, recorder.problem().steps) == ("SGD", 3)
