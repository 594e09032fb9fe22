"""A model that cannot be wrapped is recorded all the same, in the standard parameterization, and theory says no by name."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import torch_dmft as dmft
from torch_dmft.core.errors import UnsupportedModelError, UnsupportedProblemError
from torch_dmft.core.trajectory import Trajectory

INPUTS = torch.randn(6, 5, 16, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randn(6, 1, generator=torch.Generator().manual_seed(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[:, 0])


def fit(watched: bool) -> tuple[nn.Module, dmft.Recorder]:
    torch.manual_seed(0)
    model = Encoder()
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    recorder = dmft.Recorder(model, dmft.Probe(INPUTS, TARGETS), every=3)
    with recorder.attach(optimizer) if watched else contextlib.nullcontext():
        for _ in range(6):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(INPUTS), TARGETS).backward()
            optimizer.step()
    return model, recorder


def test_a_transformer_of_torch_is_recorded_and_not_predicted(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError):
        dmft.describe(Encoder(), INPUTS)
    (model, recorder), (plain, _) = fit(True), fit(False)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    measured = recorder.trajectory()
    assert len(measured.layers) == 9
    assert measured.training.notes == ()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    rows = []
    for row in range(6):
        inputs = INPUTS[row : row + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda *values, inputs=inputs: torch.func.functional_call(
                model, dict(zip(parameters, values, strict=True)), (inputs,)
            ),
            tuple(parameters.values()),
        )
        rows.append(torch.cat([part.flatten() for part in jacobian]))
    jacobians = torch.stack(rows)
    ntk = jacobians @ jacobians.T
    assert float((measured.ntk.equal_time[-1] - ntk).norm() / ntk.norm()) < 1e-5
    with pytest.raises(UnsupportedProblemError, match="standard parameterization"):
        recorder.problem()
    measured.save(tmp_path / "run.npz")
    assert Trajectory.load(tmp_path / "run.npz") == measured
