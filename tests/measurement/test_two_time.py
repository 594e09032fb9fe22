"""Two-time kernels to a tolerance: at every pair of steps within it of the exact ones, and never without saying so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from tests.measurement.cases import mlp
from torch_dmft.core.errors import InsufficientMemoryError, InvalidInputError
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement import Probe, Recorder, compression
from torch_dmft.measurement.compression import Basis
from torch_dmft.parameterization import parameterize

P, STEPS, TOLERANCE = 5, 50, 0.01


def run(
    *,
    width: int = 64,
    gamma0: float = 1.0,
    outputs: int = 1,
    batch: int | None = None,
    adam: bool = False,
    steps: int = STEPS,
    tolerances: tuple[bool | float, ...] = (True, TOLERANCE),
    activation: type[nn.Module] = nn.Tanh,
    **settings: Any,
) -> list[Trajectory]:
    """One network's run, by a recorder of each kind."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(P, 6, generator=generator), torch.randn(P, outputs, generator=generator)
    hidden = [nn.Linear(6, width), activation(), nn.Linear(width, width), activation()]
    model = nn.Sequential(*hidden, nn.Linear(width, outputs))
    plan = parameterize(model, inputs, gamma0=gamma0, generator=generator)
    optimizer: Optimizer = Adam(plan.param_groups(0.02, optimizer="adam")) if adam else SGD(plan.param_groups(0.2))
    recorders = [Recorder(plan, Probe(inputs, targets), two_time=each, **settings) for each in tolerances]
    one, *others = recorders
    with one.attach(optimizer):
        for recorder in others:
            recorder.record()
        for step in range(steps):
            rows = torch.randperm(P, generator=generator)[:batch]
            for recorder in recorders:
                recorder.batch(rows)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
            for recorder in others:
                recorder.step = step + 1
                recorder.record()
    return [recorder.trajectory() for recorder in recorders]


def kernels(run: Trajectory) -> list[Kernel]:
    """Phi and G of all weights."""
    return [kernel for layer in run.layers for kernel in (layer.forward, layer.backward)]


def errors(exact: Kernel, found: Tensor) -> tuple[Tensor, Tensor]:
    """|difference| at every pair of times, and (|K(t, t)| |K(s, s)|)^{1/2}: each ``(time, time)``."""
    times, half = len(exact.array), exact.array.ndim // 2
    rows = exact.array.shape[1:half].numel()
    known, other = (k.reshape(times, rows, times, rows).transpose(1, 2).double() for k in (exact.values, found))
    size = torch.linalg.matrix_norm(known).diagonal().sqrt()
    return torch.linalg.matrix_norm(known - other), size[:, None] * size


def worst(exact: Trajectory, found: Trajectory) -> float:
    """The largest error of all kernels and pairs of times, in units of what is allowed."""
    shares = []
    for known, other in zip(kernels(exact), kernels(found), strict=True):
        error, size = errors(known, other.values)
        shares.append(float((error / size).max()))
    return max(shares) / TOLERANCE


CASES: dict[str, dict[str, Any]] = {
    "descent": {},
    "wide": {"width": 128},
    "lazy": {"gamma0": 0.1},
    "rich": {"gamma0": 5.0},
    "minibatches": {"batch": 2},
    "Adam": {"adam": True},
    "Adam in minibatches": {"adam": True, "batch": 2, "gamma0": 3.0},
    "kinks": {"activation": nn.ReLU},
    "three outputs": {"outputs": 3, "steps": 30},
    "averaged outputs": {"outputs": 3, "steps": 30, "per_output": False},
    "some rows": {"rows": [0, 2, 3]},
}


@pytest.mark.parametrize("name", CASES)
def test_every_pair_of_steps_is_within_the_tolerance(name: str) -> None:
    exact, few = run(**CASES[name])
    assert worst(exact, few) < 1
    for known, other in zip(kernels(exact), kernels(few), strict=True):
        assert torch.allclose(known.equal_time, other.array, rtol=1e-5, atol=1e-5)
        error, size = errors(known, other.values)
        for t in range(0, len(size), 13):
            for s in range(len(size)):
                bound = other.bound(t, s)
                assert float(error[t, s]) <= bound + 1e-6 * float(size[t, s])
                assert bound <= 1.001 * TOLERANCE * float(size[t, s])


def test_directions_are_few_and_numbers_fewer_than_of_all_pairs() -> None:
    (few,) = run(width=256, steps=200, tolerances=(TOLERANCE,))
    for kernel in kernels(few):
        assert kernel.factors.directions <= 8 * P
        assert kernel.factors.parts[0].numel() < 0.2 * kernel.array[0].numel() * len(kernel.array) ** 2


def test_a_finer_tolerance_is_met() -> None:
    exact, coarse, fine = run(tolerances=(True, 0.1, 1e-4))
    assert 100 * worst(exact, fine) < 1 < worst(exact, coarse) < 10
    directions = [max(kernel.factors.directions for kernel in kernels(each)) for each in (coarse, fine)]
    assert directions[0] < directions[1]


def test_wrong_kernels_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the two times exchanged; no directions beyond the first record's; a record taken for the one before."""
    case = {"gamma0": 3.0, "width": 128}
    exact, few = run(**case)
    for known, other in zip(kernels(exact)[1:3], kernels(few)[1:3], strict=True):
        error, size = errors(known, other.values.permute(0, 3, 2, 1))
        assert float((error / size).max()) > 3 * TOLERANCE
        late = other.factors.parts[0].clone()
        late[0] = late[5]
        error, size = errors(known, (late.flatten(0, 1) @ late.flatten(0, 1).T).reshape(known.array.shape))
        assert float((error / size).max()) > 3 * TOLERANCE

    def only_first(basis: Basis, rest: Tensor, allowed: float, learn: Callable[..., None] = Basis._learn) -> None:
        if not basis._known:
            learn(basis, rest, allowed)

    monkeypatch.setattr(Basis, "_learn", only_first)
    exact, few = run(**case)
    assert worst(exact, few) > 3
    known, other = kernels(exact)[1], kernels(few)[1]
    error, size = errors(known, other.values)
    bounds = torch.tensor([[other.bound(t, s) for s in range(STEPS)] for t in range(0, STEPS, 13)])
    rounding = 1e-6 * size[:STEPS:13, :STEPS]
    assert bool((error[:STEPS:13, :STEPS] <= bounds * 1.001 + rounding).all())  # what is left out is known also then
    assert float((bounds / size[:STEPS:13, :STEPS]).max()) > 3 * TOLERANCE


def test_dropping_more_than_is_allowed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_LOST", 0.75 - 30)
    exact, few = run(gamma0=3.0)
    assert worst(exact, few) > 1


def test_a_checkpoint_goes_on(tmp_path: Path, generator: torch.Generator) -> None:
    inputs, targets = (torch.randn(P, size, generator=generator, dtype=torch.float64) for size in (4, 1))
    model = mlp().double()
    optimizer = SGD(model.parameters(), lr=0.3)

    def recorder(tolerance: bool | float = TOLERANCE) -> Recorder:
        return Recorder(model, Probe(inputs, targets), two_time=tolerance)

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()

    whole = recorder()
    with whole.attach(optimizer):
        train(4)
    torch.save(whole.state_dict(), tmp_path / "recorder.pt")
    saved = torch.load(tmp_path / "recorder.pt", weights_only=True)
    resumed = recorder()
    resumed.load_state_dict(saved)
    with whole.attach(optimizer), resumed.attach(optimizer):
        train(6)
    one, other = whole.trajectory(), resumed.trajectory()
    assert len(one.steps) == 11
    assert one.layers[1].forward == other.layers[1].forward
    assert one.layers[1].backward == other.layers[1].backward
    for wrong in (recorder(True), recorder(False), recorder(0.02)):
        with pytest.raises(InvalidInputError, match="does not fit"):
            wrong.load_state_dict(saved)


def test_what_was_recorded_stays_where_memory_ends(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, targets = (torch.randn(P, size, generator=generator, dtype=torch.float64) for size in (4, 1))
    for tolerance in (True, TOLERANCE):
        recorder = Recorder(mlp().double(), Probe(inputs, targets), two_time=tolerance, fields=False)
        recorder.record()
        after = recorder.look()
        with monkeypatch.context() as patch:
            patch.setattr("torch_dmft.core.memory.free_memory", lambda device: 10)
            patch.setattr("torch_dmft.core.memory._was_plenty", lambda *_: False)
            recorder.step = 1
            with pytest.raises(InsufficientMemoryError, match=r"record 1 of layer .*two_time=0\.0"):
                recorder.keep(after)
        kept = recorder.trajectory()
        assert kept.steps.tolist() == [0]
        assert all(len(kernel.values) == 1 for kernel in kernels(kept))


def test_numbers_that_are_not_finite_are_none_later() -> None:
    basis = Basis(TOLERANCE)
    x = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    x[1, 0, 0] = torch.nan
    for vectors in x:
        basis.add(vectors)
    times = torch.arange(3)
    found = basis.factors().between(times, times)
    assert not bool(found[1].isfinite().any())
    assert torch.allclose(found[0, :, 2], x[0] @ x[2].T, atol=1e-5)
    first = Basis(TOLERANCE)
    first.add(x[1])
    assert not bool(first.factors().between(times[:1], times[:1]).isfinite().any())
    zero = Basis(TOLERANCE)
    zero.add(torch.zeros(2, 8))
    assert not bool(zero.factors().between(times[:1], times[:1]).any())
