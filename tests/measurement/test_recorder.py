"""The recorder: training is bit-identical with it, and what it keeps is right."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from tests.measurement.cases import mlp
from torch_dmft.core.errors import InsufficientMemoryError, InvalidInputError, NotRecordedError, UnsupportedModelError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement import Probe, Recorder, snapshot, subject_of
from torch_dmft.parameterization import centered, parameterize

P, STEPS = 6, 5


def noisy_model() -> nn.Sequential:
    """Everything that a measurement could disturb: batch statistics, dropout masks, in-place operations."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.Dropout(0.5),
        nn.ReLU(inplace=True),
        nn.Linear(16, 3),
    )


def images(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(P, 1, 4, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])


def vectors(generator: torch.Generator, outputs: int = 1) -> tuple[Tensor, Tensor]:
    draw = [torch.randn(P, size, generator=generator, dtype=torch.float64) for size in (4, outputs)]
    return draw[0], draw[1]


def train(model: nn.Module, optimizer: Optimizer, data: tuple[Tensor, Tensor], steps: int = STEPS) -> None:
    inputs, targets = data
    loss = nn.CrossEntropyLoss() if not targets.is_floating_point() else nn.MSELoss()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(inputs), targets).backward()
        optimizer.step()


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd with momentum": lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9),
    "adamw": lambda model: AdamW(model.parameters(), lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("two_time", [False, True, 0.01])
def test_training_is_bit_identical(name: str, two_time: bool | float, generator: torch.Generator) -> None:
    data = images(generator)
    plain = noisy_model().train()
    plain[1].momentum = None  # cumulative statistics count every training batch
    watched = copy.deepcopy(plain)
    watched[4].eval()
    plain[4].eval()  # flags that differ between modules must come back one by one
    optimizers = [OPTIMIZERS[name](model) for model in (plain, watched)]
    recorder = Recorder(watched, Probe(*data), two_time=two_time)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        train(plain, optimizers[0], data)
        after_plain = torch.random.get_rng_state()
        torch.manual_seed(3)
        with recorder.attach(optimizers[1]):
            train(watched, optimizers[1], data)
        assert torch.equal(torch.random.get_rng_state(), after_plain)
    assert [module.training for module in watched.modules()] == [module.training for module in plain.modules()]
    for (key, value), (_, other) in zip(plain.state_dict().items(), watched.state_dict().items(), strict=True):
        assert torch.equal(value, other), key
    for parameter, other in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)
    assert len(recorder.trajectory().steps) == STEPS + 1


def test_measuring_ignores_autocast_and_grad_modes(generator: torch.Generator) -> None:
    inputs, targets = vectors(generator)
    model = mlp().double()
    expected = snapshot(subject_of(model, inputs), inputs)
    recorder = Recorder(model, Probe(inputs, targets))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        record = recorder.record()
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_grad_enabled()
    assert torch.equal(record.ntk.array[0], expected.ntk)


def test_records_are_taken_before_the_update_of_their_step(generator: torch.Generator) -> None:
    inputs, targets = vectors(generator)
    model = mlp().double()
    plan = parameterize(model, inputs, gamma0=1.0, generator=generator)
    optimizer = SGD(plan.param_groups(0.3))
    train_rows = torch.tensor([True, True, False, True, True, False])
    recorder = Recorder(plan, Probe(inputs, targets, train_rows), every=2)
    expected = []
    with recorder.attach(optimizer):
        for _ in range(5):
            with torch.no_grad():
                expected.append(model(inputs))
            optimizer.zero_grad()
            nn.MSELoss()(model(inputs[train_rows]), targets[train_rows]).backward()
            optimizer.step()
    measured = recorder.trajectory()
    assert measured.steps.tolist() == [0, 2, 4]
    assert torch.equal(measured.outputs, torch.stack(expected[::2]))
    losses = [nn.functional.mse_loss(f[train_rows], targets[train_rows]) for f in expected[::2]]
    assert torch.allclose(measured.losses, torch.stack(losses), rtol=1e-12)
    assert measured.lr == pytest.approx(0.3, rel=1e-12)
    assert measured.origin == "network (N=12)"
    assert torch.equal(measured.train, train_rows)
    assert measured.width == 12
    assert measured.training.scheme == "mean_field"
    assert measured.metadata["seconds"] > 0
    taken = snapshot(subject_of(plan, inputs), inputs)
    assert not torch.equal(measured.layers[1].forward.array[-1], taken.layers[1].forward)  # one more update came after


def test_second_attach_continues_the_count(generator: torch.Generator) -> None:
    data = vectors(generator)
    model = mlp().double()
    optimizer = SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, Probe(*data))
    for _ in range(2):
        with recorder.attach(optimizer):
            train(model, optimizer, data, 3)
    assert recorder.trajectory().steps.tolist() == list(range(7))


@pytest.mark.parametrize("two_time", [False, True, 0.01])
def test_checkpoint_resumes(two_time: bool | float, generator: torch.Generator, tmp_path: Path) -> None:
    data = vectors(generator)
    model = mlp().double()
    optimizer = SGD(model.parameters(), lr=0.1)
    whole = Recorder(model, Probe(*data), two_time=two_time)
    with whole.attach(optimizer):
        train(model, optimizer, data, 2)
    torch.save(whole.state_dict(), tmp_path / "recorder.pt")
    resumed = Recorder(model, Probe(*data), two_time=two_time)
    resumed.load_state_dict(torch.load(tmp_path / "recorder.pt", weights_only=True))
    with whole.attach(optimizer), resumed.attach(optimizer):
        train(model, optimizer, data, 2)
    one, other = whole.trajectory(), resumed.trajectory()
    assert one.steps.tolist() == other.steps.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(one.layers[1].backward.array, other.layers[1].backward.array)
    assert torch.equal(one.layers[1].fields.preactivation, other.layers[1].fields.preactivation)
    with pytest.raises(InvalidInputError, match="does not fit"):
        Recorder(noisy_model(), Probe(*images(generator)), two_time=two_time).load_state_dict(whole.state_dict())


@pytest.mark.parametrize("outputs", [1, 2])
def test_two_time_kernels(outputs: int, generator: torch.Generator) -> None:
    data = vectors(generator, outputs)
    model = mlp(outputs).double()
    optimizer = SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, Probe(*data), two_time=True)
    features, fields = [], []

    def keep(step: int, record: Trajectory) -> None:
        layer = snapshot(recorder.subject, data[0]).layers[1].stream
        features.append(layer.inputs[0][:, 0])
        fields.append(layer.gradient_fields())

    recorder.callbacks = (keep,)
    with recorder.attach(optimizer):
        train(model, optimizer, data, 3)
    layer = recorder.trajectory().layers[1]
    x, g = torch.stack(features), torch.stack(fields)
    forward = torch.einsum("tmi,sai->tmsa", x, x) / 12
    backward = torch.einsum("tmcn,sadn->tmcsad", g, g) / 12
    assert torch.allclose(layer.forward.values, forward, rtol=1e-10)
    assert torch.allclose(layer.backward.values, backward.squeeze() if outputs == 1 else backward, rtol=1e-10)
    assert layer.ntk.equal_time.shape[0] == 4


def test_centered_model(generator: torch.Generator) -> None:
    """Outputs of f - f_0, layers of f."""
    inputs, targets = vectors(generator)
    plan = parameterize(mlp().double(), inputs, gamma0=0.1, generator=generator)
    recorder = Recorder(plan, Probe(inputs, targets), model=centered(plan.model))
    record = recorder.record()
    assert not record.outputs.any()
    whole = Recorder(plan, Probe(inputs, targets)).record()
    assert whole.outputs.any()
    assert record.ntk == whole.ntk
    assert [layer.name for layer in Recorder(centered(plan.model), Probe(inputs)).record().layers] == ["0", "2", "4"]
    with pytest.raises(InvalidInputError, match="must hold"):
        Recorder(plan, Probe(inputs, targets), model=mlp().double())


def test_callbacks_see_every_record(generator: torch.Generator) -> None:
    data = vectors(generator)
    model = mlp().double()
    optimizer = SGD(model.parameters(), lr=0.1)
    seen: list[tuple[int, Trajectory]] = []
    recorder = Recorder(model, Probe(*data), schedule=[1, 3], callbacks=[lambda *event: seen.append(event)])
    with recorder.attach(optimizer):
        train(model, optimizer, data)
    assert [step for step, _ in seen] == [0, 1, 3]
    assert seen[1][1] is recorder.records[1]


def test_nothing_is_left_attached_after_an_exception(generator: torch.Generator) -> None:
    data = vectors(generator)
    model = mlp().double().train()
    optimizer = SGD(model.parameters(), lr=0.1)

    def fail(step: int, record: Trajectory) -> None:
        if step == 2:
            raise KeyboardInterrupt

    recorder = Recorder(model, Probe(*data), callbacks=[fail])
    with pytest.raises(KeyboardInterrupt), recorder.attach(optimizer):
        train(model, optimizer, data)
    assert not optimizer._optimizer_step_post_hooks
    assert all(module.training and not module._forward_hooks for module in model.modules())
    recorder.callbacks = ()
    with recorder.attach(optimizer):
        train(model, optimizer, data, 1)
    assert recorder.trajectory().steps.tolist() == [0, 1, 2, 3]


def test_lazily_sampled_modules_keep_what_they_revealed() -> None:
    class Revealing(nn.Linear):
        keeps_what_it_reveals = True

        def __init__(self) -> None:
            super().__init__(4, 8)
            self.register_buffer("seen", torch.tensor(0))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            return super().forward(x)

    class Counting(Revealing):
        keeps_what_it_reveals = False

    for kind, seen in ((Revealing, 1), (Counting, 0)):
        model = nn.Sequential(kind(), nn.Tanh(), nn.Linear(8, 1))
        recorder = Recorder(model, Probe(torch.zeros(2, 4)))
        before = int(model[0].seen)
        recorder.record()
        assert int(model[0].seen) - before == seen


def test_base_rate(generator: torch.Generator) -> None:
    data = vectors(generator)
    plan = parameterize(mlp().double(), data[0], gamma0=2.0, generator=generator)

    def measured_lr(optimizer: Optimizer) -> float:
        recorder = Recorder(plan, Probe(*data))
        with recorder.attach(optimizer):
            return recorder.trajectory().lr

    assert measured_lr(SGD(plan.param_groups(0.2))) == pytest.approx(0.2, rel=1e-12)
    assert measured_lr(AdamW(plan.param_groups(0.2, optimizer="adamw"))) == pytest.approx(0.2, rel=1e-12)
    with pytest.warns(UserWarning, match=r"not those of plan\.param_groups.*numbers of their own for 0\.weight"):
        measured_lr(SGD(plan.model.parameters(), lr=0.2))
    warm = SGD(plan.param_groups(0.2))
    torch.optim.lr_scheduler.LambdaLR(warm, lambda step: step / 10)
    assert measured_lr(warm) == 0.0  # as it is now, in the first step of the warmup
    with pytest.raises(InvalidInputError, match="trains none"):
        measured_lr(SGD(mlp().parameters(), lr=0.1))


def test_how_the_network_is_trained_is_seen_and_resumed(generator: torch.Generator) -> None:
    data = vectors(generator)
    plan = parameterize(mlp().double(), data[0], generator=generator)
    recorder = Recorder(plan, Probe(*data))
    optimizer = SGD(plan.param_groups(0.2, weight_decay=0.1), momentum=0.9, nesterov=True)
    with recorder.attach(optimizer):
        train(plan.model, optimizer, data, 2)
    resumed = Recorder(plan, Probe(*data))
    resumed.load_state_dict(recorder.state_dict())
    assert resumed.trajectory().training == recorder.trajectory().training
    with resumed.attach(optimizer):
        train(plan.model, optimizer, data, 1)
    seen = resumed.trajectory().training
    assert (seen.optimizer, seen.steps, seen.batches_known, seen.notes) == ("SGD", 3, True, ())
    numbers = {name: seen.number(name) for name in ("lr", "momentum", "nesterov", "weight_decay")}
    assert numbers == pytest.approx({"lr": 0.2, "momentum": 0.9, "nesterov": 1.0, "weight_decay": 0.1})
    with resumed.attach(AdamW(plan.param_groups(0.2, optimizer="adamw"))):
        assert resumed.training.optimizer == "SGD and then AdamW"


def test_default_losses(generator: torch.Generator) -> None:
    inputs, classes = images(generator)
    model = noisy_model().eval()
    loss = nn.CrossEntropyLoss()(model(inputs), classes).detach()
    trajectory = Recorder(model, Probe(inputs, classes), batch_norm="run")
    trajectory.record()
    assert float(trajectory.trajectory().losses[0]) == pytest.approx(float(loss), rel=1e-6)
    assert torch.equal(trajectory.trajectory().targets, nn.functional.one_hot(classes).float())
    assert math.isnan(Recorder(model, Probe(inputs)).record().losses.item())
    twice = Recorder(
        model, Probe(inputs, classes), batch_norm="run", loss=lambda f, y: 2 * nn.functional.cross_entropy(f, y)
    )
    assert twice.record().losses.item() == pytest.approx(2 * float(loss), rel=1e-6)


def test_errors(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    data = vectors(generator)
    model = mlp().double()
    with pytest.raises(InvalidInputError, match="one schedule"):
        Recorder(model, Probe(*data), every=2, schedule=[1])
    recorder = Recorder(model, Probe(*data), two_time=True)
    with pytest.raises(NotRecordedError, match="attach"):
        recorder.trajectory()
    optimizer = SGD(model.parameters(), lr=0.1)
    with (
        recorder.attach(optimizer),
        pytest.raises(InvalidInputError, match="attached already"),
        recorder.attach(optimizer),
    ):
        pass

    def nothing_left(needed: int, device: torch.device, *, what: str, remedy: str) -> None:
        raise InsufficientMemoryError(what, remedy=remedy)

    monkeypatch.setattr("torch_dmft.measurement.two_time.require_memory", nothing_left)
    recorder.step = 1
    with pytest.raises(InsufficientMemoryError, match="log_spaced"):
        recorder.record()


def test_a_look_may_check_the_measurement_anew(generator: torch.Generator) -> None:
    """What is known from the first record is then not taken for granted."""
    inputs, targets = vectors(generator)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 1)).double()
    recorder = Recorder(model, Probe(inputs, targets))
    recorder.record()
    taken, checked = recorder.look(), recorder.look(check=True)
    assert torch.equal(taken.ntk, checked.ntk)
    module = model[0]

    def doubled(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(2 * x, module.weight, module.bias) * torch.rand(1, dtype=torch.float64)

    module.forward = doubled
    with pytest.raises(UnsupportedModelError):
        recorder.look(check=True)
