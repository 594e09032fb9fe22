"""The referee: how often it calls right set-ups wrong, and how many wrong ones it finds, with the right layer."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import torch_dmft as dmft
from benchmarks.binomial import share
from benchmarks.clock import Say, timed
from benchmarks.markdown import table
from benchmarks.setups import Recipe, data, drawn, faulty, made


@dataclass(frozen=True)
class Settings:
    """Random set-ups, right and wrong in turn, each checked at these widths.

    Attributes:
        count: how many, half of which are right.
        first: seed of the first; the others have those that follow, so that none is used twice. The rules of the referee were
            made with seeds below 1000.
        widths: N.
        seeds: networks at each width; up to four times as many while nothing is decided.
        steps: of training.
        processes: set-ups that are checked at once, each in one thread.
        log: file in which every set-up is kept when it is done, and from which a run goes on; "" for none.
    """

    count: int = 400
    first: int = 1000
    widths: tuple[int, ...] = (32, 64, 128, 256)
    seeds: int = 4
    steps: int = 16
    processes: int = 2
    log: str = "runs/referee.jsonl"


FULL = Settings()
QUICK = Settings(4, 1000, (32, 64), 2, 2, 1, "")


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """Check all of them that are not in the log."""
    numbers = range(settings.first, settings.first + settings.count)
    kept = _Log(settings)
    missing = [number for number in numbers if number not in kept.found]
    if len(missing) < len(numbers):
        say(f"{len(numbers) - len(missing)} of {len(numbers)} are in {settings.log}")
    for done, one in enumerate(_all(settings, missing), len(numbers) - len(missing) + 1):
        kept.add(one)
        say(f"{done} of {len(numbers)}: {_line(one)}")
    return _summary([kept.found[number] for number in numbers])


class _Log:
    """What was found of every seed, in a file of JSON lines; its first line says with which settings and source."""

    def __init__(self, settings: Settings) -> None:
        self.path = Path(settings.log) if settings.log else None
        self.found: dict[int, dict[str, Any]] = {}
        about = {"widths": list(settings.widths), "seeds": settings.seeds, "steps": settings.steps, "source": _source()}
        if self.path is None:
            return
        if self.path.exists():
            first, *lines = self.path.read_text().splitlines(keepends=True)
            if json.loads(first) != about:
                raise ValueError(
                    f"{self.path} is of other settings, or of another source: {first.strip()}. Move it away."
                )
            whole = [line for line in lines if line.endswith("\n")]  # a kill may have cut the last one short
            self.found = {one["seed"]: one for one in map(json.loads, whole)}
            self.path.write_text(first + "".join(whole))
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(about) + "\n")

    def add(self, one: dict[str, Any]) -> None:
        self.found[one["seed"]] = one
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(one) + "\n")


def _source() -> str:
    """A digest of everything that a verdict may depend on."""
    package = Path(dmft.__file__).parent
    files = sorted(path for room in ("core", "uses", "referee") for path in (package / room).rglob("*.py"))
    digest = hashlib.sha256()
    for path in (*files, Path(__file__).with_name("setups.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _all(settings: Settings, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Check set-ups in their order; alone in this process."""
    checked = partial(_checked, settings)
    if settings.processes == 1:
        yield from map(checked, numbers)
        return
    with ProcessPoolExecutor(settings.processes, get_context("spawn"), _one_thread) as pool:
        yield from pool.map(checked, numbers)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _checked(settings: Settings, number: int) -> dict[str, Any]:
    """One set-up: right if its seed is an even number from the first."""
    recipe, expected = drawn(number), set[str]()
    if (number - settings.first) % 2:
        recipe, expected = faulty(recipe)
    verdict, spent = timed(lambda: check(recipe, settings))
    fault, culprit = recipe.fault, verdict.culprit
    return {
        "seed": recipe.seed,
        "set-up": f"{recipe.family}, {recipe.optimizer}",
        "fault": "" if fault is None else fault.kind,
        "parameter": "" if fault is None else fault.parameter,
        "power": 0.0 if fault is None else fault.power,
        "verdict": verdict.word,
        "culprit": "" if culprit is None else f"{culprit.name}: {culprit.setting}",
        "networks": verdict.measured.seeds,
        "named": verdict.word == "wrong" and culprit is not None and _is_meant(culprit, expected),
        **{name: round(value, 3) for name, value in spent.json().items()},
    }


def check(recipe: Recipe, settings: Settings) -> dmft.Verdict:
    """The verdict on a set-up."""
    return dmft.check(
        partial(made, recipe), settings.widths, steps=settings.steps, seeds=settings.seeds, data=partial(data, recipe)
    )


def _is_meant(culprit: Any, expected: set[str]) -> bool:
    """Whether the layer that is named is one of those with a fault: weight and bias of a layer are in one place."""
    layer = culprit.path if not culprit.parameter else culprit.parameter.rpartition(".")[0] or culprit.parameter
    return layer in {name if name == "attention" else name.rpartition(".")[0] or name for name in expected}


def _line(one: dict[str, Any]) -> str:
    """A set-up in a line of progress."""
    what = " ".join(filter(None, (one["fault"], one["parameter"]))) or "right"
    said = one["verdict"] + (f" ({one['culprit']})" if one["culprit"] else "")
    return f"seed {one['seed']}, {one['set-up']}, {what}: {said}"


def _summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    right = [one for one in found if not one["fault"]]
    wrong = [one for one in found if one["fault"]]
    kinds = dict.fromkeys(one["fault"] for one in wrong)
    return {
        "right": _counts(right),
        "wrong": _counts(wrong),
        "named": sum(one["named"] for one in wrong),
        "kinds": {kind: _found([one for one in wrong if one["fault"] == kind]) for kind in kinds},
        "networks": sum(one["networks"] for one in found) / len(found),
        "spent": {name: sum(one[name] for one in found) for name in ("cpu", "wall")},
        "false_alarms": [one for one in right if one["verdict"] == "wrong"],
        "missed": [one for one in wrong if not one["named"]],
    }


def _counts(several: Iterable[dict[str, Any]]) -> dict[str, int]:
    counts = Counter(one["verdict"] for one in several)
    return {word: counts[word] for word in ("right", "wrong", "not decided")}


def _found(several: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {
        "set-ups": len(several),
        "found": sum(one["verdict"] == "wrong" for one in several),
        "named": sum(one["named"] for one in several),
    }


def report(settings: Settings, result: dict[str, Any]) -> str:
    """What was found, in markdown."""
    right, wrong = result["right"], result["wrong"]
    rows = [[kind, *row.values()] for kind, row in result["kinds"].items()]
    rows.append(["all", sum(wrong.values()), wrong["wrong"], result["named"]])
    return (
        f"{sum(right.values())} right set-ups: {right['right']} called right, {right['not decided']} not decided, "
        f"{right['wrong']} called wrong, {share(right['wrong'], sum(right.values()))}. Of {sum(wrong.values())} wrong ones "
        f"{wrong['wrong']} are called wrong, {share(wrong['wrong'], sum(wrong.values()))}, and with the right layer "
        f"{result['named']}, {share(result['named'], sum(wrong.values()))}. Bounds are Clopper and Pearson's at 95%. "
        "By what is wrong:\n\n"
        + table(["fault", "set-ups", "called wrong", "right layer named"], rows)
        + f"\n\nWidths {', '.join(map(str, settings.widths))}; {settings.steps} steps; {settings.seeds} networks at each, and "
        f"up to {4 * settings.seeds} while nothing is decided, {result['networks']:.1f} in the mean; seeds from "
        f"{settings.first}, of which the rules have seen none; {result['spent']['cpu'] / 60:.0f} minutes of CPU time."
    )
