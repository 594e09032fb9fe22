"""Set-ups: what a factory may return, what is chosen where it returns less, and that both follow from width and seed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from torch_dmft import cli
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.referee import load, set_up
from torch_dmft.referee.setup import is_reproducible, named


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 3))


def weights(width: int, seed: int) -> Tensor:
    return set_up(mlp, width, seed).model[0].weight.detach()  # type: ignore[index, union-attr]


def test_weights_follow_from_width_and_seed() -> None:
    assert torch.equal(weights(8, 0), weights(8, 0))
    assert not torch.equal(weights(8, 0), weights(8, 1))
    assert not torch.equal(weights(8, 0), weights(16, 0)[:8])


def test_training_follows_from_width_and_seed() -> None:
    def losses() -> list[float]:
        setup = set_up(mlp, 8, 0)
        batches = setup.batches(0)
        with setup.draws():  # dropout
            return [setup.step(next(batches)) for _ in range(4)]

    assert losses() == losses()
    assert len(set(losses())) == 4


def test_random_states_are_put_back() -> None:
    def state() -> tuple[Any, ...]:  # that of python is drawn from by the check of annotations in tests
        return np.random.rand(), float(torch.rand(1))  # noqa: NPY002

    def factory(width: int) -> nn.Module:
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        return mlp(width)

    def data() -> list[tuple[Tensor, Tensor]]:
        torch.manual_seed(2)
        return [(torch.randn(4, 5), torch.randn(4, 3))]

    with torch.random.fork_rng():
        np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
        expected = state()
        np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
        setup = set_up(factory, 4, 0, data)
        with setup.draws():
            setup.step(next(setup.batches(0)))
        assert state() == expected


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Linear(4, 2), "random rows"),
        (nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)), "random tokens"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), "random images"),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU()), "random images"),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), "random sequences"),
    ],
    ids=["linear", "embedding", "conv", "conv1d", "attention"],
)
def test_inputs_that_fit_the_first_layer_are_chosen_and_said(model: nn.Module, said: str) -> None:
    setup = set_up(lambda width: model, 4, 0)
    assert any(said in note for note in setup.notes)
    assert any("Adam" in note for note in setup.notes)
    assert setup.step(next(setup.batches(0))) > 0


def test_the_models_own_example_comes_first() -> None:
    class Own(nn.Linear):
        def example_input(self) -> Tensor:
            return torch.ones(6, 5)

    setup = set_up(lambda width: Own(5, width), 3, 0)
    inputs, _ = next(setup.batches(0))
    assert torch.equal(inputs, torch.ones(6, 5))
    assert "example_input" in setup.notes[1]


class Steps(nn.Linear):
    """A module with the methods of Lightning's that are asked for."""

    example_input_array = torch.ones(6, 5)

    def __init__(self, width: int) -> None:
        super().__init__(5, width)
        self.numbers: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        self.numbers.append(batch_idx)
        return {"loss": 3 * nn.functional.cross_entropy(self(batch[0]), batch[1])}

    def configure_optimizers(self) -> Any:
        return {"optimizer": torch.optim.SGD(self.parameters(), 0.25), "lr_scheduler": None}


class StepsWithoutNumber(Steps):
    def training_step(self, batch: Any) -> Tensor:  # type: ignore[override]
        return 3 * nn.functional.cross_entropy(self(batch[0]), batch[1])


@pytest.mark.parametrize("kind", [Steps, StepsWithoutNumber])
@pytest.mark.parametrize(
    "data", [None, [(torch.ones(6, 5), torch.tensor([0, 1, 2, 0, 1, 2]))]], ids=["no data", "data"]
)
def test_a_module_of_lightning_says_its_loss_and_its_optimizer(kind: type[Steps], data: Any) -> None:
    setup = set_up(kind, 3, 0, data)
    inputs, targets = batch = next(setup.batches(0))
    assert torch.equal(inputs, torch.ones(6, 5))
    expected = 3 * nn.functional.cross_entropy(setup.model(inputs), targets)
    assert float(setup.loss(setup.model, batch).detach()) == pytest.approx(float(expected.detach()))
    assert [group["lr"] for one in setup.optimizers for group in one.param_groups] == [0.25]
    assert "loss: the model's own training_step" in setup.notes
    assert any("example_input_array" in note for note in setup.notes) == (data is None)


def test_a_training_step_that_takes_no_pairs_needs_data() -> None:
    class Strange(Steps):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return batch["inputs"].sum()

    with pytest.raises(InvalidInputError, match=r"training_step of the model does not take a batch"):
        set_up(Strange, 3, 0)


def test_a_module_of_lightning_itself_is_checked() -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self, width: int) -> None:
            super().__init__()
            self.net = mlp(width)
            self.example_input_array = torch.ones(6, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    found = dmft.check(Module, (4, 8), steps=1, seeds=2, most_seeds=2)
    assert {note.split(":")[0] for note in found.measured.notes} == {"inputs", "targets", "loss"}
    assert ("net.0.weight", "own") in {(one.place[0], one.quantity) for one in found.readings}


def test_a_factory_with_random_numbers_of_its_own_is_told() -> None:
    generator = torch.Generator().manual_seed(0)

    def draws(width: int) -> nn.Module:
        model = mlp(width)
        nn.init.normal_(model[0].weight, generator=generator)
        return model

    assert is_reproducible(set_up(mlp, 4, 0), mlp)
    assert not is_reproducible(set_up(draws, 4, 0), draws)
    settings: Any = {"widths": (4, 8), "steps": 1, "seeds": 2, "most_seeds": 2}
    assert not any("source of its own" in note for note in dmft.check(mlp, **settings).measured.notes)
    assert "source of its own" in " ".join(str(dmft.check(draws, **settings)).split())


def test_a_factory_that_makes_the_same_weights_for_every_seed_is_refused() -> None:
    def fixed(width: int) -> nn.Module:
        torch.manual_seed(0)
        return mlp(width)

    with pytest.raises(InvalidInputError, match=r"other initial weights for every seed"):
        dmft.check(fixed, (4, 8), steps=1, seeds=2)


def test_batches_are_the_same_at_every_width_and_start_again() -> None:
    def data(seed: int) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        return [(torch.randn(2, 5, generator=generator), torch.randn(2, 3, generator=generator)) for _ in range(2)]

    narrow, wide = (set_up(mlp, width, 0, data).batches(3) for width in (4, 8))
    first = [next(narrow)[0] for _ in range(5)]
    assert all(torch.equal(one, next(wide)[0]) for one in first)
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])


def test_losses_of_every_form() -> None:
    batch = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.SGD

    def by(loss: Any, data: Any) -> float:
        def factory(width: int) -> Any:
            model = mlp(width).eval()
            return (model, optimizer(model.parameters(), 0.1), loss) if loss else model

        setup = set_up(factory, 4, 0, data)
        return float(setup.loss(setup.model, next(setup.batches(0))).detach())

    def own(model: nn.Module, given: Any) -> Tensor:
        return nn.functional.cross_entropy(model(given[0]), given[1])

    expected = by(own, [batch])
    assert by(nn.CrossEntropyLoss(), [batch]) == expected
    assert by(nn.functional.cross_entropy, lambda: [batch]) == expected
    assert by(None, [batch]) == expected
    assert by(None, lambda seed: ([batch], own)) == expected


@pytest.mark.parametrize(
    ("factory", "data", "said"),
    [
        (lambda width: 3, None, "must return a model first"),
        (lambda width: 1 / 0, None, "ZeroDivisionError"),
        (lambda width: (mlp(width), "sgd"), None, "must be an optimizer"),
        (lambda width: (mlp(width), torch.optim.SGD(mlp(2).parameters(), 0.1)), None, "no parameter of the model"),
        (lambda width: (mlp(width), None, "mse"), None, "loss must be callable"),
        (lambda width: mlp(width).requires_grad_(False), None, "trained"),
        (lambda width: nn.Bilinear(3, 3, 3), None, "data must be given"),
        (mlp, torch.ones(3), "batches to go through"),
        (mlp, lambda: 3, "batches to go through"),
        (mlp, lambda: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_what_cannot_be_a_set_up_is_refused(factory: Any, data: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"{said}"):
        set_up(factory, 4, 0, data)


def test_data_that_end_at_once_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"each time that it is gone through"):
        next(set_up(mlp, 4, 0, []).batches(0))


def test_a_function_is_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_setup.py").write_text("def make(width):\n    return width\nnumber = 3\n")
    (tmp_path / "broken_setup.py").write_text("import no_such_module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    assert load("some_setup:make")(3) == 3
    for name, said in {
        "some_setup": "its module and its name",
        "some_setup:mak": "some_setup:make",
        "some_setup:number": "must be a function",
        "broken_setup:make": "no_such_module",
    }.items():
        with pytest.raises(InvalidInputError, match=said):
            load(name)


@pytest.mark.parametrize("status", [0, 2])
def test_a_program_that_ends_is_no_verdict(status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own status, 0 after a training that went well, was that of the command: right."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / f"ends{status}.py").write_text(f"import sys\ndef make(width): ...\nsys.exit({status})\n")
    (tmp_path / f"quits{status}.py").write_text(f"import sys\ndef make(width): sys.exit({status})\n")
    settings = ["--widths", "4,8", "--steps", "1", "--processes", "1"]
    with pytest.raises(InvalidInputError, match=rf"ends the program when it is imported.*sys.exit\({status}\)"):
        named(f"ends{status}:make", "factory")
    with pytest.raises(InvalidInputError, match=rf"`factory` fails where it is called.*SystemExit: {status}"):
        set_up(named(f"quits{status}:make", "factory"), 4, 0)
    for module in (f"ends{status}", f"quits{status}"):
        assert cli.main(["check", f"{module}:make", *settings]) == 2
