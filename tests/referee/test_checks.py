"""Verdicts: right set-ups pass, and every kind of fault is found at the layer that has it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import torch_dmft as dmft
from benchmarks.setups import Fault, Recipe, data, drawn, made
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.power_law import power_law
from torch_dmft.referee.judge import Rule

WIDTHS = (16, 32, 64, 128)
MLP = replace(
    drawn(0), family="mlp", depth=1, activation="relu", norm=False, optimizer="adam", rate=0.02, decay=0.0, rows=8
)
SGD = replace(MLP, optimizer="sgd", rate=0.1, momentum=0.0)
DECAYING = replace(MLP, optimizer="adamw", decay=0.1)
TRANSFORMER = replace(MLP, family="transformer", heads="few", rows=8, squared=False)
MANY_HEADS = replace(TRANSFORMER, heads="many")
CNN = replace(MLP, family="cnn", norm=True, rows=8)


def verdict(recipe: Recipe, fault: Fault | None = None, *, seeds: int = 4, steps: int = 8) -> dmft.Verdict:
    recipe = replace(recipe, fault=fault)
    given = {"steps": steps, "seeds": seeds, "most_seeds": seeds, "data": partial(data, recipe)}
    return dmft.check(partial(made, recipe), WIDTHS, **given)


@pytest.mark.parametrize(
    "recipe",
    [MLP, SGD, DECAYING, TRANSFORMER, MANY_HEADS, CNN],
    ids=["mlp", "sgd", "adamw", "heads widen", "more heads", "cnn"],
)
def test_right_set_ups_are_right(recipe: Recipe) -> None:
    found = verdict(recipe)
    assert found.word in ("right", "not decided"), str(found)
    assert not found.faults
    assert found.exit_code == (0 if found.word == "right" else 3)


def test_plans_are_right_and_pytorchs_defaults_are_not() -> None:
    def plain(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))

    def wrapped(width: int) -> Any:
        model = plain(width)
        plan = dmft.parameterize(model, torch.zeros(2, 8))
        return model, torch.optim.Adam(plan.param_groups(0.05, optimizer="adam"))

    right = dmft.check(wrapped, WIDTHS, steps=8)
    assert right.passed, str(right)
    wrong = dmft.check(plain, WIDTHS, steps=8)
    assert wrong.exit_code == 1
    assert wrong.culprit is not None
    assert (wrong.culprit.name, wrong.culprit.setting, wrong.culprit.mends) == ("2.weight", "rate", -1.0)
    blamed = {(fault.name, fault.setting) for fault in wrong.faults}
    assert blamed == {("2.weight", "rate"), ("4.weight", "initial size"), ("4.weight", "rate")}


class Divided(nn.Linear):
    """A readout that divides what it reads by the width, as mup's does."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs * (16 / self.in_features))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_number_in_front_of_a_readout_is_its_own(optimizer: str) -> None:
    def factory(width: int, excess: float = 0.0) -> Any:
        hidden, head = nn.Linear(width, width, bias=False), Divided(width, 4, bias=False)
        nn.init.normal_(head.weight, std=0.25)
        model = nn.Sequential(nn.Linear(8, width), nn.Tanh(), hidden, nn.Tanh(), head)
        r = width / 16
        rates = [r, 1.0, r] if optimizer == "sgd" else [1.0, 1 / r, 1.0]
        base = 0.1 if optimizer == "sgd" else 0.01
        rates[2] *= r**excess
        groups = [{"params": list(model[2 * i].parameters()), "lr": base * rate} for i, rate in enumerate(rates)]
        return model, (torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam)(groups)

    given: Any = {"widths": WIDTHS, "steps": 4, "seeds": 4, "most_seeds": 4}
    right = dmft.check(factory, **given)
    assert not right.faults, str(right)
    wrong = dmft.check(partial(factory, excess=0.7), **given)
    assert wrong.culprit is not None, str(wrong)
    assert wrong.culprit.name == "4.weight"


FAULTS = {
    "hidden init": (MLP, Fault("init", "2.weight", 0.5), "2.weight", "initial size", -0.5),
    "hidden init, small": (MLP, Fault("init", "2.weight", -0.5), "2.weight", "initial size", 0.5),
    "input init": (MLP, Fault("init", "0.weight", 0.5), "0.weight", "initial size", -0.5),
    "input rate": (MLP, Fault("rate", "0.weight", 0.5), "0.weight", "rate", -0.5),
    "hidden rate": (MLP, Fault("rate", "2.weight", -0.5), "2.weight", "rate", 0.5),
    "bias rate": (MLP, Fault("rate", "2.bias", 0.5), "2.bias", "rate", -0.5),
    "readout rate": (replace(MLP, squared=True, rate=0.005), Fault("rate", "4.weight", 0.5), "4.weight", "rate", -0.5),
    "hidden rate, SGD": (SGD, Fault("rate", "2.weight", 0.5), "2.weight", "rate", -0.5),
    "input init, SGD": (SGD, Fault("init", "0.weight", -0.5), "0.weight", "initial size", 0.5),
    "gain init": (CNN, Fault("init", "1.weight", 0.5), "1.weight", "initial size", -0.5),
    "embedding rate": (TRANSFORMER, Fault("rate", "tokens.weight", 0.5), "tokens.weight", "rate", -0.5),
    "scores": (TRANSFORMER, Fault("scores"), "attention", "scale of the scores", -0.5),
    "decay": (DECAYING, Fault("decay"), "2.weight", "decay", 1.0),
    "rates of SGD": (MLP, Fault("rates of SGD"), "0.weight", "rate", -1.0),
    "eps": (MLP, Fault("eps"), "0.weight", "eps", -1.0),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_found_where_it_is(kind: str) -> None:
    recipe, fault, name, setting, mends = FAULTS[kind]
    found = verdict(recipe, fault, seeds=8 if kind == "readout rate" else 4)
    assert found.word == "wrong", str(found)
    blamed = {one.name: one for one in found.faults if one.setting == setting}
    assert name in blamed, str(found)
    assert found.culprit is not None
    assert found.culprit.name.rpartition(".")[0] in (name.rpartition(".")[0], name), str(found)
    assert blamed[name].mends == pytest.approx(mends, abs=0.3)


def test_a_forgotten_readout_is_found() -> None:
    found = verdict(MLP, Fault("forgotten readout"), seeds=6, steps=16)
    assert found.culprit is not None, str(found)
    assert found.culprit.name == "4.weight"


DEEP = replace(MLP, depth=3, activation="gelu", norm=False, optimizer="sgd", momentum=0.0, squared=True, rows=16)
NORMED = replace(MLP, norm=True, optimizer="sgd", rate=0.07, momentum=0.9, squared=True)


@pytest.mark.parametrize(
    ("recipe", "seed", "readout"),
    [
        (replace(DEEP, rate=0.197), 119, "8.weight"),
        (NORMED, 143, "6.weight"),
        pytest.param(replace(DEEP, rate=0.197), 1, "8.weight", marks=pytest.mark.long),
        pytest.param(drawn(404), 404, "8.weight", marks=pytest.mark.long),
        pytest.param(drawn(3029), 3029, "head.weight", marks=pytest.mark.long),
        pytest.param(NORMED, 2, "6.weight", marks=pytest.mark.long),
    ],
)
def test_a_forgotten_readout_is_found_behind_what_it_causes(recipe: Recipe, seed: int, readout: str) -> None:
    # Features of the deep one fall with the width and hide what the readout starts as; the steps of the other diverge later on.
    recipe = replace(recipe, seed=seed, fault=Fault("forgotten readout"))
    widths = (32, 64, 128, 256)
    found = dmft.check(partial(made, recipe), widths, data=partial(data, recipe))
    assert {one.parameter for one in found.faults} == {readout}, str(found)  # its rate under SGD is as wrong


def test_several_processes_see_the_same() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone, together = (
            dmft.check(partial(made, MLP), (8, 16), steps=2, seeds=2, data=partial(data, MLP), processes=count)
            for count in (1, 2)
        )
    finally:
        torch.set_num_threads(threads)
    assert alone.to_dict() == together.to_dict()


def test_what_is_named_mends() -> None:
    """The factor that is given, given to the set-up, makes it right."""
    wrong = verdict(MLP, Fault("rate", "2.weight", 0.5))
    assert wrong.culprit is not None
    mended = verdict(MLP, Fault("rate", "2.weight", 0.5 + wrong.culprit.mends))
    assert not mended.faults


def test_one_seed_decides_nothing() -> None:
    found = verdict(MLP, seeds=1, steps=2)
    assert found.measured.seeds == 1
    assert (found.word, found.exit_code) == ("not decided", 3)
    assert found.seeds_needed >= 3
    assert "single seed" in found.sentences[0]


def test_seeds_are_doubled_while_nothing_is_decided() -> None:
    recipe = replace(drawn(1025), fault=Fault("rate", "6.weight", 1.0))
    widths = (16, 32, 64, 128)
    looks = [
        dmft.check(partial(made, recipe), widths, steps=4, seeds=2, most_seeds=most, data=partial(data, recipe))
        for most in (2, 8)
    ]
    assert [one.word for one in looks] == ["not decided", "wrong"]
    assert [one.measured.seeds for one in looks] == [2, 4]
    assert [one.rule.looks for one in looks] == [1, 3]
    place = next(one for one in looks[0].measured.places if one[0] == "6.weight")
    few, many = (one.measured.sizes[place, "own"] for one in looks)
    assert torch.equal(few, many[:, :, :2])  # networks that were trained stay


def test_a_power_law_and_its_error() -> None:
    """The slope of exact powers is exact; its error is the scatter of slopes over many draws."""
    generator = torch.Generator().manual_seed(0)
    sizes = (64, 128, 256, 512)
    exact = torch.tensor(sizes, dtype=torch.float64)[:, None] ** -0.5 * torch.tensor([1.0, 3.0])
    law = power_law(sizes, exact)
    assert law.exponent == pytest.approx(-0.5, abs=1e-12)
    assert law.error == pytest.approx(0, abs=1e-12)  # seeds may differ as they please, alike at every size
    laws = [power_law(sizes, torch.randn(4, 4, generator=generator, dtype=torch.float64).exp()) for _ in range(2000)]
    slopes = torch.tensor([one.exponent for one in laws])
    sizes_of_errors = torch.tensor([one.error for one in laws])
    assert float(slopes.std() / sizes_of_errors.square().mean().sqrt()) == pytest.approx(1, abs=5 / 2000**0.5)
    outside = sum(abs(one.exponent) > one.reach(0.05) for one in laws) / len(laws)
    assert outside == pytest.approx(0.05, abs=5 * (0.05 * 0.95 / 2000) ** 0.5)


class _Checks:
    """Subsets of JSON Schema that ``schema.json`` uses."""

    types: ClassVar[dict[str, Any]] = {
        "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None),
    }  # fmt: skip

    @classmethod
    def fits(cls, value: Any, schema: dict[str, Any], at: str = "") -> None:
        if "enum" in schema:
            assert value in schema["enum"], at
        kinds = schema.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        assert not kinds or isinstance(value, tuple(cls.types[kind] for kind in kinds)), at  # type: ignore[arg-type]
        if isinstance(value, dict):
            assert set(schema.get("required", ())) <= set(value), at
            for name, one in value.items():
                cls.fits(one, schema.get("properties", {}).get(name, {}), f"{at}.{name}")
        if isinstance(value, list):
            for i, one in enumerate(value):
                cls.fits(one, schema.get("items", {}), f"{at}[{i}]")


def test_a_verdict_is_read_by_people_and_machines(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from torch_dmft import referee

    found = verdict(MLP, Fault("rate", "2.weight", 0.5), steps=4)
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("WRONG (N = 16, 32, 64, 128; 4 seeds; steps 0..4)")
    schema = json.loads((Path(referee.__file__).parent / "schema.json").read_text())
    told = json.loads(found.to_json())
    _Checks.fits(told, schema)
    with pytest.raises(AssertionError):
        _Checks.fits({**told, "verdict": "fine"}, schema)
    assert told["faults"][0]["parameter"] == "2.weight"
    assert found.to_markdown().startswith("### Width check: WRONG")
    assert "| 2.weight | hidden | grows |" in found.to_markdown()
    assert "Effective gamma0" in str(found.details())
    assert set(found.figures()) == {"sizes", "exponents"}
    found.write_tensorboard(tmp_path)
    log = EventAccumulator(str(tmp_path / "N=64")).Reload()
    assert log.Scalars("own/2.weight")[-1].step == 4
    assert log.Scalars("own/2.weight")[-1].value == pytest.approx(
        float(found.measured.sizes[("2.weight", "addmm", "2"), "own"][-1, 2].mean()), rel=1e-5
    )


def test_the_effective_scaling_of_a_plan_is_what_it_was_given() -> None:
    from torch_dmft.referee.effective import effective

    def wrapped(optimizer: str, width: int) -> Any:
        model = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 64))
        groups = dmft.parameterize(model, torch.zeros(2, 8), gamma0=0.5).param_groups(0.1, optimizer=optimizer)
        return model, (torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam)(groups)

    for optimizer in ("sgd", "adam"):
        found = dmft.check(partial(wrapped, optimizer), (64, 128), steps=1, seeds=4).measured
        for one in effective(found):  # sizes of weights are known to a few per cent
            assert one.gamma0 == pytest.approx(0.5, rel=0.2)
            assert one.rates["0.weight"] == pytest.approx(0.1, rel=0.5)
            assert one.rates["2.weight"] == pytest.approx(0.1, rel=0.5)
            assert one.rates["4.weight"] == pytest.approx(0.1, rel=0.2)


class Tied(nn.Module):
    """Several outputs, a tied weight, dropout, and parameters that are frozen or not used."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(9, width), nn.Linear(width, width)
        self.frozen, self.unused = nn.Linear(width, width).requires_grad_(False), nn.Linear(3, width)
        self.drop, self.norm = nn.Dropout(0.2), nn.BatchNorm1d(width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        h = self.table(tokens)
        h = self.norm(self.drop(self.frozen(self.layer(h).relu())).transpose(1, 2)).transpose(1, 2)
        return {"logits": h @ self.table.weight.T, "hidden": [h], "loss": (h @ self.table.weight.T).square().mean()}


def test_models_of_any_kind_are_measured() -> None:
    def data(seed: int) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        return [{"tokens": torch.randint(9, (4, 6), generator=generator)} for _ in range(3)]

    found = dmft.check(Tied, (8, 16, 32), steps=4, seeds=2, data=data)
    names = {place[0] for place in found.measured.places}
    assert {"table.weight", "layer.weight", "frozen.weight", "norm.weight"} <= names
    assert not any("unused" in name for name in names)
    assert found.measured.evaluated
    judged = {(reading.place[0], reading.quantity) for reading in found.readings}
    assert ("layer.weight", "own") in judged
    assert ("frozen.weight", "own") not in judged  # it does not move
    assert {reading.in_eval for reading in found.readings} == {False, True}


def test_what_cannot_be_checked_is_refused_and_said() -> None:
    def linear(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2))

    cases: dict[str, dict[str, Any]] = {
        "two different widths": {"widths": (8,)},
        "at least two different": {"widths": (8, 8)},
        "wider models": {"factory": lambda width: linear(4)},
        "same parameters": {"factory": lambda width: nn.Sequential(*linear(width), *[nn.Linear(2, 2)] * (width > 8))},
        "finite before": {"data": [(torch.full((3, 4), torch.nan), torch.zeros(3, 2))]},
        "fails where it is called": {"data": [(torch.zeros(3, 7), torch.zeros(3, 2))]},
        "tolerance": {"tolerance": 0.7},
        "seeds": {"seeds": 0},
    }
    for said, settings in cases.items():
        with pytest.raises(InvalidInputError, match=said):
            dmft.check(**{"factory": linear, "widths": (8, 16), "steps": 1, "seeds": 1, **settings})


def test_a_loss_that_diverges_at_large_widths_is_wrong() -> None:
    def factory(width: int) -> Any:
        model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
        return model, torch.optim.SGD(model.parameters(), 0.01 * (width / 8) ** 12), nn.MSELoss()

    found = dmft.check(factory, (8, 16, 64), steps=16, seeds=2)
    assert found.word == "wrong"
    assert found.diverged == (64,) or 64 in found.diverged


def test_the_rule_can_be_read() -> None:
    assert Rule().tolerance < Rule().fault < 0.5
