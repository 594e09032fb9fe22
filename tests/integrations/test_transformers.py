"""The callback in the loop of Hugging Face's Trainer, and the optimizers of accelerate."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import torch_dmft as dmft
from tests.accelerated import accelerator
from torch_dmft.core.errors import InvalidInputError


@pytest.fixture
def runs() -> ModuleType:
    """The Trainer, its callback and the runs of these tests, imported when a test asks for them."""
    pytest.importorskip("transformers")
    from tests.integrations import transformers_runs

    return transformers_runs


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_recorded_and_resumed(runs: Any, tmp_path: Path) -> None:
    model, recorder = runs.fit(tmp_path / "a")
    plain, _ = runs.fit(tmp_path / "b", watched=False)
    again, later = runs.fit(tmp_path / "a", resume=tmp_path / "a" / "checkpoint-6")
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
def test_a_checkpoint_without_the_recorder_is_refused(runs: Any, tmp_path: Path) -> None:
    runs.fit(tmp_path, watched=False)
    with pytest.raises(InvalidInputError, match="knows nothing of the steps before"):
        runs.fit(tmp_path, resume=tmp_path / "checkpoint-6")


def test_optimizers_of_accelerate_are_seen_as_what_they_wrap(runs: Any) -> None:
    library = accelerator()
    model, plan, optimizer = runs.wrapped()
    prepared, outer = library.prepare(model, optimizer)
    recorder = dmft.Recorder(plan, dmft.Probe(runs.INPUTS, runs.TARGETS))
    with recorder.attach(outer):
        for _ in range(3):
            outer.zero_grad()
            library.backward(nn.functional.mse_loss(prepared(runs.INPUTS), runs.TARGETS))
            outer.step()
    assert (recorder.training.optimizer, recorder.problem().steps) == ("SGD", 3)
