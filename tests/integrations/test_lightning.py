"""The callback in Lightning's own loop: training is the same bit for bit, rows and rates are seen, checkpoints go on."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torch_dmft as dmft
from torch_dmft import solvers


@pytest.fixture
def runs() -> ModuleType:
    """Lightning, its callback and the modules of these tests, imported when a test asks for them."""
    pytest.importorskip("lightning")
    from tests.integrations import lightning_runs

    return lightning_runs


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_recorded_predicted_and_resumed(runs: Any, tmp_path: Path) -> None:
    module, recorder, trainer = runs.fit(tmp_path, epochs=3)
    plain, _, _ = runs.fit(tmp_path, epochs=3, watched=False)
    for mine, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert recorder.step == 12
    assert recorder.training.lr.tolist() == pytest.approx([0.1] * 4 + [0.075] * 4 + [0.025] * 4)
    measured = recorder.trajectory()
    dmft.compare(measured, dmft.solve(recorder.problem(), solvers.StaticNTK(), record=measured.steps))

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    _, later, _ = runs.fit(tmp_path, epochs=6, start=tmp_path / "last.ckpt")
    assert later.trajectory().steps.tolist() == list(range(0, 25, 2))
    assert later.training.notes == ()
    with later.attach(torch.optim.SGD(later.subject.plan.param_groups(0.1))):  # nothing is left attached
        pass


@pytest.mark.filterwarnings("ignore")
def test_a_loop_that_fails_lets_go(runs: Any, tmp_path: Path) -> None:
    module = runs.Module()
    recorder = dmft.Recorder(module.plan, dmft.Probe(runs.INPUTS, runs.TARGETS))
    trainer = runs.L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[runs.RecorderCallback(recorder)],
    )
    with pytest.raises(ValueError, match="unpack"):
        trainer.fit(module, DataLoader(TensorDataset(runs.INPUTS), batch_size=4))
    assert len(recorder.trajectory().steps) == 1
    with recorder.attach(torch.optim.SGD(module.plan.param_groups(0.1))):
        pass


LOOPS: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "accumulation": ("Module", {"accumulate_grad_batches": 2}, 8, ""),
    "bfloat16": ("Module", {"precision": "bf16-mixed"}, 4, ""),
    "two optimizers by hand": ("InTurn", {}, 4, ""),
    "clipping": ("Module", {"gradient_clip_val": 1e-3}, 4, "the gradients were not those"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOOPS)
def test_loops_of_lightning(runs: Any, name: str, tmp_path: Path) -> None:
    """Nothing changes by a bit, steps and their rows are counted as they are, and clipping is found out."""
    kind, settings, rows, doubt = LOOPS[name]
    weights = []
    for watched in (False, True):
        module = getattr(runs, kind)()
        recorder = dmft.Recorder(module.plan, dmft.Probe(runs.INPUTS, runs.TARGETS), data=(runs.INPUTS, runs.TARGETS))
        trainer = runs.L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            callbacks=[runs.RecorderCallback(recorder)] if watched else [],
            **settings,
        )
        torch.manual_seed(3)
        trainer.fit(
            module, DataLoader(dmft.Indexed(TensorDataset(runs.INPUTS, runs.TARGETS)), batch_size=4, shuffle=True)
        )
        weights.append([parameter.detach().clone() for parameter in module.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
    assert recorder.trajectory().steps.tolist() == list(range(16 // rows + 1))
    assert [len(batch) for batch in recorder.training.batches or ()] == [rows] * (16 // rows)
    assert doubt in recorder.training.doubt if doubt else recorder.training.doubt == ""


def test_optimizers_of_fabric_are_seen_as_what_they_wrap(runs: Any) -> None:
    fabric = runs.L.Fabric(accelerator="cpu")
    module = runs.Module()
    optimizer = torch.optim.SGD(module.plan.param_groups(0.1), momentum=0.5)
    model, wrapped = fabric.setup(module.model, optimizer)
    recorder = dmft.Recorder(module.plan, dmft.Probe(runs.INPUTS, runs.TARGETS))
    with recorder.attach(wrapped):
        for _ in range(3):
            wrapped.zero_grad()
            fabric.backward(nn.functional.mse_loss(model(runs.INPUTS), runs.TARGETS))
            wrapped.step()
    assert (recorder.training.optimizer, recorder.problem().steps) == ("SGD", 3)
