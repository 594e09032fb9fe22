"""CPU time of the engine against the number of steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.clock import Say, exponent, median, timed
from benchmarks.markdown import table
from benchmarks.setting import chain_problem, engine


@dataclass(frozen=True)
class Settings:
    """T steps at fixed S; longer training at a fixed rate, and the same horizon in finer steps."""

    samples: int = 10
    neurons: int = 4096
    steps: tuple[int, ...] = (50, 100, 200, 400)
    runs: int = 3
    lr: float = 0.1
    relu_lr: float = 0.02
    horizon: float = 5.0


FULL = Settings()
QUICK = Settings(4, 128, (3, 6), 1)


def run(settings: Settings, say: Say) -> dict[str, Any]:
    cases = {
        "tanh, longer": ("tanh", lambda steps: settings.lr),
        "tanh, finer": ("tanh", lambda steps: settings.horizon / steps),
        "relu, longer": ("relu", lambda steps: settings.relu_lr),
    }
    engine(chain_problem(samples=settings.samples, steps=2), settings.neurons, 0)  # the first call pays for imports
    answer = {}
    for name, (activation, rate) in cases.items():
        points = []
        for steps in settings.steps:
            problem = chain_problem(samples=settings.samples, steps=steps, activation=activation, lr=rate(steps))
            runs = [timed(partial(engine, problem, settings.neurons, seed)) for seed in range(settings.runs)]
            spent = median([took for _, took in runs])
            rank = max(int(trajectory.metadata["rank"] or 0) for trajectory, _ in runs)
            points.append({"steps": steps, "lr": rate(steps), "rank": rank, **spent.json()})
            say(f"{name}, {steps} steps: {spent.cpu:.2f} s of CPU, rank {rank}")
        times, steps_taken = [point["cpu"] for point in points], [float(steps) for steps in settings.steps]
        ranks = [float(point["rank"]) for point in points]
        answer[name] = {
            "points": points,
            "exponent": exponent(steps_taken, times),
            "last_exponent": exponent(steps_taken[-2:], times[-2:]),
            "rank_exponent": exponent(steps_taken, ranks),
        }
    return answer


def report(settings: Settings, result: dict[str, Any]) -> str:
    rows = []
    for name, case in result.items():
        for point in case["points"]:
            rows.append([name, point["steps"], f"{point['lr']:g}", f"{point['cpu']:.2f}", point["rank"]])
    laws = [
        [name, f"{case['exponent']:.2f}", f"{case['last_exponent']:.2f}", f"{case['rank_exponent']:.2f}"]
        for name, case in result.items()
    ]
    return f"""\
Depth 3, P = {settings.samples}, S = {settings.neurons}, all states recorded, one replica, median of {settings.runs} runs.
"Longer" keeps the learning rate, "finer" keeps lr T = {settings.horizon:g}. The rank is the largest number of directions
that any hidden matrix has met on one side. For ReLU it grows until it meets S, where the twin is an ordinary network of
width S.

{table(["case", "T", "lr", "CPU s", "rank"], rows)}

{table(["case", "exponent of time in T", "between the last two", "exponent of rank in T"], laws)}"""
