"""CPU time to 1% in the worst kernel: the engine against ensembles of finite networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import torch_dmft as dmft
from benchmarks.clock import Say, Spent, median, timed
from benchmarks.engine_search import TRIALS, EngineSearch, sized
from benchmarks.markdown import percent, seconds, table
from benchmarks.networks import Sums, time_batched, time_sequential, train, train_sequential
from benchmarks.setting import (
    TARGET,
    Kernels,
    chain_problem,
    engine,
    kernels_of,
    root_mean,
    squared_errors,
    worst,
)


@dataclass(frozen=True)
class Settings:
    """Pilot runs on grids of sizes; each method's cheapest way to the target is then run and checked."""

    samples: int = 10
    steps: int = 60
    target: float = TARGET
    sizes: tuple[int, ...] = (2048, 4096, 8192, 12288, 16384)
    tolerances: tuple[float | None, ...] = (None, 0.02, 0.03)  # None is the engine's default
    seeds: int = 24
    runs: int = 24  # independent runs that verify an ensemble
    loops: int = 3  # the same of networks in an ordinary loop
    reduced_runs: int = 1  # the same of a variance-reduced one, which takes as long as twenty others
    widths: tuple[int, ...] = (64, 128, 256, 384, 512, 768, 1024)
    pilot: int = 2**25  # pilot networks of width N: this over N^2, between 8 and 256
    chunks: tuple[int, ...] = (1, 4, 16, 64)
    limit: float = 300.0  # CPU seconds; an ensemble that needs more is run for as long and extrapolated
    reference_neurons: int = 16384
    reference_replicas: int = 16
    reference_tolerance: float = 2.5e-3
    check: tuple[tuple[int, int], ...] = ((128, 8192), (256, 2048), (512, 512))  # width, networks


FULL = Settings()
QUICK = Settings(
    samples=4,
    steps=4,
    target=0.5,
    sizes=(64, 128),
    seeds=2,
    runs=2,
    loops=1,
    reduced_runs=2,
    widths=(16, 32, 64),
    pilot=2**12,
    chunks=(1, 4),
    limit=2.0,
    reference_neurons=512,
    reference_replicas=2,
    check=((16, 64), (32, 32), (64, 16)),
)


@dataclass(frozen=True)
class Pilot:
    """What is known of ensembles of one width: mean kernels, one unit's relative variance, CPU seconds per unit."""

    width: int
    units: int
    mean: Kernels
    variance: dict[str, float]
    cost: float
    chunk: int


def run(settings: Settings, say: Say) -> dict[str, Any]:
    problem = chain_problem(samples=settings.samples, steps=settings.steps)
    say(f"the reference: {settings.reference_replicas} replicas of {settings.reference_neurons} neurons")
    exact = engine(
        problem,
        settings.reference_neurons,
        1_000_000,
        replicas=settings.reference_replicas,
        tolerance=settings.reference_tolerance,
    )
    reference = kernels_of(exact)
    assert exact.stderr is not None  # there are replicas
    own = {name: float(k.norm() / reference[name].norm()) for name, k in kernels_of(exact.stderr).items()}
    search = EngineSearch(problem, reference, settings.target, settings.seeds, say)
    pilots = [search.pilot(settings.sizes, tolerance) for tolerance in settings.tolerances]
    theory = search.verified(min(pilots, key=lambda pilot: pilot["expected"]))
    default = search.verified(pilots[0])
    every_step = search.runs(theory, strides=False)
    say(f"the same by single steps: {every_step['worst']:.2%} in {every_step['cpu']:.2f} s of CPU")
    costs = {width: _cost(settings, problem, width, say) for width in settings.widths}
    plain = _plain(settings, problem, reference, costs, say)
    reduced = _reduced(settings, problem, reference, costs, say)
    return {
        "target": settings.target,
        "reference_stderr": own,
        "reference_check": _check(settings, problem, reference, say),
        "costs": list(costs.values()),
        "theory": theory,
        "default": default,
        "engine_pilots": pilots,
        "every_step": every_step,
        "ensemble": plain,
        "reduced_ensemble": reduced,
        "ratio": plain["cpu"] / theory["cpu"],
        "reduced_ratio": reduced["cpu"] / theory["cpu"],
    }


def _cost(settings: Settings, problem: dmft.Problem, width: int, say: Say) -> dict[str, Any]:
    """CPU seconds of one network by the fastest of: side by side in several numbers, and an ``nn.Sequential``."""
    batched: dict[int, float] = {}
    for chunk in settings.chunks:
        if batched and chunk * width**2 > 2**25:  # the weights would fill hundreds of megabytes
            break
        batched[chunk] = median([time_batched(problem, width, chunk) for _ in range(3)]).cpu
    chunk = min(batched, key=batched.__getitem__)
    sequential, measured = (
        median([time_sequential(problem, width, measured=wanted) for _ in range(2)]).cpu for wanted in (False, True)
    )
    say(
        f"width {width}: {batched[chunk]:.4f} s of CPU per network, {chunk} at once; nn.Sequential {sequential:.4f} s, "
        f"measured {measured:.4f} s"
    )
    return {
        "width": width,
        "chunk": chunk,
        "batched": batched[chunk],
        "sequential": sequential,
        "measured": measured,
        "cpu": min(batched[chunk], measured),
    }


def _plain(
    settings: Settings, problem: dmft.Problem, reference: Kernels, costs: dict[int, Any], say: Say
) -> dict[str, Any]:
    """The cheapest width and number of independent networks, and of networks in an ordinary loop."""
    pilots = [_pilot(settings, problem, reference, costs[width], antithetic=False) for width in settings.widths]
    bias = _amplitudes([((pilot, 1.0),) for pilot in pilots], reference, power=1)
    options = []
    for pilot in pilots:
        room = {name: settings.target**2 - (bias[name] / pilot.width) ** 2 for name in reference}
        if min(room.values()) > 0:
            options.append((math.ceil(max(pilot.variance[name] / room[name] for name in reference)), pilot))
    if not options:
        raise ValueError("Every width of the grid is biased by more than the target: add larger ones.")

    def run(count: int, pilot: Pilot) -> dict[str, Any]:
        return _verified(settings, problem, reference, [(pilot, 1.0, count)], antithetic=False)

    answer = _reaching(settings, options, lambda pilot: pilot.cost, run, say, "side by side")
    generator = torch.Generator().manual_seed(54321)

    def loop(count: int, pilot: Pilot) -> dict[str, Any]:
        runs = [timed(lambda: train_sequential(problem, pilot.width, count, generator)) for _ in range(settings.loops)]
        errors = root_mean(squared_errors(kernels, reference) for kernels, _ in runs)
        return {"errors": errors, "worst": worst(errors), **median([took for _, took in runs]).json()}

    measured = _reaching(settings, options, lambda pilot: costs[pilot.width]["measured"], loop, say, "in a loop")
    blind = measured["networks"] * costs[measured["width"]]["sequential"]
    return {"bias_times_width": bias, "loop": {**measured, "blind": blind}, **answer}


def _reaching(
    settings: Settings,
    options: Sequence[tuple[int, Pilot]],
    price: Callable[[Pilot], float],
    run: Callable[[int, Pilot], dict[str, Any]],
    say: Say,
    name: str,
) -> dict[str, Any]:
    """Run the cheapest option; while that misses the target, give it the networks that would make up for it, and choose anew.

    Args:
        settings: those of the benchmark.
        options: numbers of networks and pilots.
        price: CPU seconds of one network.
        run: trains so many networks like the pilot's, and tells error and time.
        say: where to report.
        name: what the networks are called.
    """
    counts = {pilot.width: count for count, pilot in options}
    pilots = {pilot.width: pilot for _, pilot in options}
    for _ in range(TRIALS):
        width = min(counts, key=lambda width: counts[width] * price(pilots[width]))
        answer = run(counts[width], pilots[width]) | {"width": width, "networks": counts[width]}
        say(f"{name}: {counts[width]} of width {width}, {answer['worst']:.2%} in {answer['cpu']:.1f} s of CPU")
        if answer["worst"] <= settings.target:
            break
        counts[width] = math.ceil(counts[width] * (answer["worst"] / settings.target) ** 2)
    return answer


def _reduced(
    settings: Settings, problem: dmft.Problem, reference: Kernels, costs: dict[int, Any], say: Say
) -> dict[str, Any]:
    """The same with antithetic pairs and Richardson's 2 K(2N) - K(N), which leaves a bias of order 1/N^2."""
    pilots = {w: _pilot(settings, problem, reference, costs[w], antithetic=True) for w in settings.widths}
    couples = [((pilots[w], -1.0), (pilots[2 * w], 2.0)) for w in settings.widths if 2 * w in pilots]
    bias = _amplitudes(couples, reference, power=2)
    options = []
    for couple in couples:
        width = couple[0][0].width
        room = {name: settings.target**2 - (bias[name] / width**2) ** 2 for name in reference}
        if min(room.values()) <= 0:
            continue
        # For fixed variance the cost sum_i n_i tau_i is least at n_i ~ |w_i| sigma_i / sqrt(tau_i).
        price = {
            name: sum(abs(weight) * math.sqrt(pilot.variance[name] * pilot.cost) for pilot, weight in couple)
            for name in reference
        }
        name = max(reference, key=lambda name: price[name] ** 2 / room[name])
        counts = [
            math.ceil(abs(weight) * math.sqrt(pilot.variance[name] / pilot.cost) * price[name] / room[name])
            for pilot, weight in couple
        ]
        parts = [(pilot, weight, count) for (pilot, weight), count in zip(couple, counts, strict=True)]
        options.append((sum(pilot.cost * count for pilot, _, count in parts), parts))
    if not options:
        raise ValueError("Every pair of widths of the grid is biased by more than the target: add larger ones.")
    _, parts = min(options, key=lambda option: option[0])
    answer = _verified(settings, problem, reference, parts, antithetic=True)
    say(f"variance-reduced ensemble: {answer['parts']}, {answer['worst']:.2%} in {answer['cpu']:.1f} s of CPU")
    return {"bias_times_width_squared": bias, **answer}


def _pilot(
    settings: Settings, problem: dmft.Problem, reference: Kernels, cost: dict[str, Any], *, antithetic: bool
) -> Pilot:
    width = cost["width"]
    networks = 2 * max(4, min(128, settings.pilot // (2 * width**2)))
    generator = torch.Generator().manual_seed(width + antithetic)
    chunk = _even(cost["chunk"]) if antithetic else cost["chunk"]
    sums = train(problem, width, networks, generator, chunk=chunk, antithetic=antithetic)
    price = (1 + antithetic) * cost["cpu"]
    return Pilot(width, sums.units, sums.mean, sums.variance(reference), price, chunk)


def _amplitudes(
    combinations: Sequence[Sequence[tuple[Pilot, float]]], reference: Kernels, *, power: int
) -> dict[str, float]:
    """The c in the bias c / N^power of every kernel of sum_i w_i K_i.

    Its square is that of the distance from K* less the sampling noise.
    """
    found = {}
    for name, kernel in reference.items():
        top = bottom = 0.0
        for combination in combinations:
            scale = combination[0][0].width ** (2 * power)
            estimate = torch.stack([weight * pilot.mean[name] for pilot, weight in combination]).sum(0)
            square = float((estimate - kernel).square().sum() / kernel.square().sum())
            noise = sum(weight**2 * pilot.variance[name] / pilot.units for pilot, weight in combination)
            precision = (scale * noise) ** -2  # the square of a noisy number is as uncertain as the noise's square
            top += precision * scale * (square - noise)
            bottom += precision
        found[name] = math.sqrt(max(0.0, top / bottom))
    return found


def _verified(
    settings: Settings,
    problem: dmft.Problem,
    reference: Kernels,
    parts: Sequence[tuple[Pilot, float, int]],
    *,
    antithetic: bool,
) -> dict[str, Any]:
    """Run sum_i w_i K_i several times; if one run exceeds the time limit, a share, whose noise is then extrapolated."""
    per_unit = 1 + antithetic
    planned = sum(pilot.cost * units for pilot, _, units in parts)
    share = min(1.0, settings.limit / planned)
    generator = torch.Generator().manual_seed(12345)
    runs: list[tuple[dict[str, float], dict[str, float], Spent]] = []
    for _ in range(settings.reduced_runs if antithetic else settings.runs):
        estimate: Kernels = {name: torch.zeros_like(kernel) for name, kernel in reference.items()}
        noise = dict.fromkeys(reference, 0.0)
        spent = Spent(0.0, 0.0)
        for pilot, weight, units in parts:
            count = max(2, math.ceil(share * units))

            def ensemble(pilot: Pilot = pilot, count: int = count) -> Sums:
                return train(
                    problem, pilot.width, per_unit * count, generator, chunk=pilot.chunk, antithetic=antithetic
                )

            sums, took = timed(ensemble)
            spent = Spent(spent.cpu + took.cpu, spent.wall + took.wall)
            for name, kernel in sums.mean.items():
                estimate[name] += weight * kernel
                noise[name] += weight**2 * sums.variance(reference)[name] / count
        squares = squared_errors(estimate, reference)
        runs.append(({name: max(0.0, squares[name] - (1 - share) * noise[name]) for name in reference}, noise, spent))
    errors = {name: math.sqrt(sum(squares[name] for squares, _, _ in runs) / len(runs)) for name in reference}
    noises = {name: math.sqrt(share * sum(noise[name] for _, noise, _ in runs) / len(runs)) for name in reference}
    spent = median([took for _, _, took in runs])
    return {
        "parts": [{"width": p.width, "weight": weight, "networks": per_unit * n} for p, weight, n in parts],
        "errors": errors,
        "worst": worst(errors),
        "noise": worst(noises),
        "cpu": spent.cpu / share,
        "run": {"share": share, "extrapolated": share < 1, **spent.json()},
    }


def _check(settings: Settings, problem: dmft.Problem, reference: Kernels, say: Say) -> dict[str, Any]:
    """The reference against antithetic ensembles extrapolated to N = infinity, which share nothing with the engine."""
    say("the reference against extrapolated ensembles")
    generator = torch.Generator().manual_seed(999)
    sums = []
    for width, networks in settings.check:
        chunk = _even(min(networks, max(2, 2**21 // width**2)))
        sums.append(train(problem, width, networks, generator, chunk=chunk, antithetic=True))
    inverse = torch.tensor([1 / width for width, _ in settings.check], dtype=torch.float64)
    difference, stderr = {}, {}
    for name, kernel in reference.items():
        variance = torch.tensor([one.variance(reference)[name] / one.units for one in sums], dtype=torch.float64)
        design = torch.stack([torch.ones_like(inverse), inverse], dim=1) / variance.sqrt()[:, None]
        weights = torch.linalg.pinv(design)[0] / variance.sqrt()  # of the intercept
        limit = torch.stack([one.mean[name] for one in sums], dim=-1) @ weights
        difference[name] = float((limit - kernel).norm() / kernel.norm())
        stderr[name] = float((weights.square() * variance).sum().sqrt())
    say(f"they differ by {worst(difference):.2%}, of which sampling explains {worst(stderr):.2%}")
    return {"difference": difference, "stderr": stderr}


def _even(number: int) -> int:
    """The even number of at least 2 next to it."""
    return max(2, number - number % 2)


def report(settings: Settings, result: dict[str, Any]) -> str:
    theory, plain, reduced = (result[name] for name in ("theory", "ensemble", "reduced_ensemble"))
    loop = plain["loop"]

    def networks(answer: dict[str, Any]) -> str:
        return " + ".join(f"{part['networks']} of width {part['width']}" for part in answer["parts"])

    def row(name: str, how: str, answer: dict[str, Any], ratio: float) -> list[str]:
        cpu = seconds(answer["cpu"]) + (" (extrapolated)" if answer.get("run", {}).get("extrapolated") else "")
        return [name, how, percent(answer["worst"]), cpu, f"{ratio:.1f}"]

    check = result["reference_check"]
    default, every_step = result["default"], result["every_step"]
    strides = "engine, by strides: {passes} passes"
    rows = [
        row(strides.format_map(theory), sized(theory), theory, 1.0),
        row(strides.format_map(default), sized(default), default, default["cpu"] / theory["cpu"]),
        row("engine, by single steps", sized(theory), every_step, every_step["cpu"] / theory["cpu"]),
        row("independent networks, side by side", networks(plain), plain, result["ratio"]),
        [
            "the same in an ordinary loop (nn.Sequential, torch.optim), measured",
            f"{loop['networks']} of width {loop['width']}",
            percent(loop["worst"]),
            seconds(loop["cpu"]),
            f"{loop['cpu'] / theory['cpu']:.1f}",
        ],
        [
            "the same, not measured",
            f"{loop['networks']} of width {loop['width']}",
            "unknown",
            seconds(loop["blind"]),
            f"{loop['blind'] / theory['cpu']:.1f}",
        ],
        row("antithetic pairs, 2 K(2N) - K(N)", networks(reduced), reduced, result["reduced_ratio"]),
    ]
    reference = (
        f"{settings.reference_replicas} replicas of {settings.reference_neurons} neurons with other seeds "
        f"(own standard error {percent(worst(result['reference_stderr']))} in the worst kernel)"
    )
    return f"""\
CPU seconds of one thread to an error of {percent(result["target"])} in the worst of Phi^1..Phi^3, G^1..G^3 over all
{settings.steps + 1} states: tanh, depth 3, P = {settings.samples}, gamma0 = 1, lr = 0.1 with half the sum of squares.
Each method takes its own best sizes (the engine's tolerance is one), found by pilot runs that are not counted, enlarged until
the target is met, or eight times; errors are root mean squares over fresh runs:
{settings.seeds} of the engine, {settings.runs} of plain ensembles, {settings.loops} of loops, {settings.reduced_runs} of
reduced ensembles. An ensemble pays c/N of bias and s/sqrt(N E) of noise; all is in float32. Networks in an ordinary loop are
trained by autograd and torch.optim, one after another, and one more backward pass gives their kernels; not measured, nobody
learns them. Networks side by side are the fastest we know: batched, in the best number, with a backward pass written by hand
that gives the kernels for next to nothing. Networks take every step, as training does.

{table(["method", "size", "error", "CPU time", "times the engine"], rows)}

Errors are against {reference}. That reference differs from antithetic ensembles extrapolated to infinite width by at most
{percent(worst(check["difference"]))}; their own sampling explains {percent(worst(check["stderr"]))}."""
