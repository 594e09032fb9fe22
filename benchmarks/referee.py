"""The referee: how often it calls right set-ups wrong, and how many wrong ones it finds, with the right layer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

import torch_dmft as dmft
from benchmarks.clock import Say
from benchmarks.markdown import percent, table
from benchmarks.setups import Recipe, data, drawn, faulty, made


@dataclass(frozen=True)
class Settings:
    """So many right and wrong set-ups, each checked at these widths."""

    right: int = 200
    wrong: int = 200
    widths: tuple[int, ...] = (32, 64, 128, 256)
    seeds: int = 4
    steps: int = 16
    processes: int = 2
    first: int = 0


FULL = Settings()
QUICK = Settings(2, 2, (32, 64), 2, 2, 1)


def run(settings: Settings, say: Say) -> dict[str, Any]:
    """Check all of them."""
    jobs = [(i, False) for i in range(settings.right)] + [(i, True) for i in range(settings.wrong)]
    found: list[dict[str, Any]] = []
    began = time.perf_counter()
    with ProcessPoolExecutor(settings.processes, get_context("spawn"), _one_thread) as pool:
        for one in pool.map(partial(_checked, settings), jobs):
            found.append(one)
            if len(found) % 20 == 0:
                say(f"{len(found)} of {len(jobs)}")
    right = [one for one in found if not one["fault"]]
    wrong = [one for one in found if one["fault"]]
    return {
        "right": _counts([one["verdict"] for one in right]),
        "wrong": _counts([one["verdict"] for one in wrong]),
        "named": sum(one["named"] for one in wrong),
        "kinds": {
            kind: {
                "set-ups": len(several),
                "found": sum(one["verdict"] == "wrong" for one in several),
                "named": sum(one["named"] for one in several),
            }
            for kind in dict.fromkeys(one["fault"] for one in wrong)
            if (several := [one for one in wrong if one["fault"] == kind])
        },
        "seconds": time.perf_counter() - began,
        "false_alarms": [one for one in right if one["verdict"] == "wrong"],
        "missed": [one for one in wrong if not one["named"]],
    }


def _one_thread() -> None:
    torch.set_num_threads(1)


def _checked(settings: Settings, job: tuple[int, bool]) -> dict[str, Any]:
    """One set-up."""
    number, is_wrong = job
    recipe, expected = drawn(settings.first + number), set[str]()
    if is_wrong:
        recipe, expected = faulty(recipe)
    verdict = check(recipe, settings)
    named = verdict.culprit is not None and _is_meant(verdict.culprit, expected)
    fault = recipe.fault
    return {
        "seed": recipe.seed,
        "set-up": f"{recipe.family}, {recipe.optimizer}",
        "fault": "" if fault is None else fault.kind,
        "parameter": "" if fault is None else fault.parameter,
        "power": 0.0 if fault is None else fault.power,
        "verdict": verdict.word,
        "culprit": "" if verdict.culprit is None else f"{verdict.culprit.name}: {verdict.culprit.setting}",
        "named": is_wrong and verdict.word == "wrong" and named,
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


def _counts(words: Sequence[str]) -> dict[str, int]:
    counts = Counter(words)
    return {word: counts[word] for word in ("right", "wrong", "not decided")}


def report(settings: Settings, result: dict[str, Any]) -> str:
    """What was found, in markdown."""
    right, wrong = result["right"], result["wrong"]
    rows = [[kind, str(row["set-ups"]), str(row["found"]), str(row["named"])] for kind, row in result["kinds"].items()]
    total = sum(wrong.values())
    rows.append(["all", str(total), str(wrong["wrong"]), str(result["named"])])
    alarms = right["wrong"] / max(1, sum(right.values()))
    return (
        f"{sum(right.values())} right set-ups: {right['right']} called right, {right['not decided']} not decided, "
        f"{right['wrong']} called wrong ({percent(alarms)}). Wrong ones, by what is wrong:\n\n"
        + table(["fault", "set-ups", "called wrong", "right layer named"], rows)
        + f"\n\nWidths {', '.join(map(str, settings.widths))}; {settings.seeds} seeds, {settings.steps} steps; "
        f"{result['seconds'] / 60:.0f} minutes in {settings.processes} processes."
    )
