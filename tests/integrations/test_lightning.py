"""The callback in Lightning's own loop: training is the same bit for bit, rows and rates are seen, checkpoints go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torch_dmft as dmft
from tests.vision import torchvision
from torch_dmft import solvers

assert torchvision  # Lightning imports it, and needs it repaired first
L = pytest.importorskip("lightning")

from torch_dmft.integrations.lightning import RecorderCallback  # noqa: E402

INPUTS = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randn(16, 1, generator=torch.Generator().manual_seed(1))


class Module(L.LightningModule):  # type: ignore[misc]
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


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_recorded_predicted_and_resumed(tmp_path: Path) -> None:
    module, recorder, trainer = fit(tmp_path, epochs=3)
    plain, _, _ = fit(tmp_path, epochs=3, watched=False)
    for mine, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert recorder.step == 12
    assert recorder.training.lr.tolist() == pytest.approx([0.1] * 4 + [0.075] * 4 + [0.025] * 4)
    measured = recorder.trajectory()
    dmft.compare(measured, dmft.solve(recorder.problem(), solvers.StaticNTK(), record=measured.steps))

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    _, later, _ = fit(tmp_path, epochs=6, start=tmp_path / "last.ckpt")
    assert later.trajectory().steps.tolist() == list(range(0, 25, 2))
    assert later.training.notes == ()
    with later.attach(torch.optim.SGD(later.subject.plan.param_groups(0.1))):  # nothing is left attached
        pass


@pytest.mark.filterwarnings("ignore")
def test_a_loop_that_fails_lets_go(tmp_path: Path) -> None:
    module = Module()
    recorder = dmft.Recorder(module.plan, dmft.Probe(INPUTS, TARGETS))
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[RecorderCallback(recorder)],
    )
    with pytest.raises(ValueError, match="unpack"):
        trainer.fit(module, DataLoader(TensorDataset(INPUTS), batch_size=4))
    assert len(recorder.trajectory().steps) == 1
    with recorder.attach(torch.optim.SGD(module.plan.param_groups(0.1))):
        pass


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


LOOPS: dict[str, tuple[type[Module], dict[str, Any], int, str]] = {
    "accumulation": (Module, {"accumulate_grad_batches": 2}, 8, ""),
    "bfloat16": (Module, {"precision": "bf16-mixed"}, 4, ""),
    "two optimizers by hand": (InTurn, {}, 4, ""),
    "clipping": (Module, {"gradient_clip_val": 1e-3}, 4, "the gradients were not those"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOOPS)
def test_loops_of_lightning(name: str, tmp_path: Path) -> None:
    """Nothing changes by a bit, steps and their rows are counted as they are, and clipping is found out."""
    kind, settings, rows, doubt = LOOPS[name]
    weights = []
    for watched in (False, True):
        module = kind()
        recorder = dmft.Recorder(module.plan, dmft.Probe(INPUTS, TARGETS), data=(INPUTS, TARGETS))
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            callbacks=[RecorderCallback(recorder)] if watched else [],
            **settings,
        )
        torch.manual_seed(3)
        trainer.fit(module, DataLoader(dmft.Indexed(TensorDataset(INPUTS, TARGETS)), batch_size=4, shuffle=True))
        weights.append([parameter.detach().clone() for parameter in module.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
    assert recorder.trajectory().steps.tolist() == list(range(16 // rows + 1))
    assert [len(batch) for batch in recorder.training.batches or ()] == [rows] * (16 // rows)
    assert doubt in recorder.training.doubt if doubt else recorder.training.doubt == ""


def test_optimizers_of_fabric_are_seen_as_what_they_wrap() -> None:
    fabric = L.Fabric(accelerator="cpu")
    module = Module()
    optimizer = torch.optim.SGD(module.plan.param_groups(0.1), momentum=0.5)
    model, wrapped = fabric.setup(module.model, optimizer)
    recorder = dmft.Recorder(module.plan, dmft.Probe(INPUTS, TARGETS))
    with recorder.attach(wrapped):
        for _ in range(3):
            wrapped.zero_grad()
            fabric.backward(nn.functional.mse_loss(model(INPUTS), TARGETS))
            wrapped.step()
    assert (recorder.training.optimizer, recorder.problem().steps) == ("SGD", 3)
