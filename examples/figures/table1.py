"""Table 1: what each method costs in samples P, steps T and neurons N.

    python examples/figures/table1.py

Time is CPU time of one thread, memory the most that a process takes beyond what it had, each measured in a fresh process at
growing sizes; an exponent is the slope between the two largest. O(...) is a bound: a smaller exponent keeps it.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from common import Claim, Clock, Option, finish, half_square, options_of

import torch_dmft as dmft

Sizes = dict[str, int]
"""P, T and N."""


@dataclass(frozen=True)
class Method:
    """One column of the table.

    Attributes:
        run: solves a problem of the given sizes.
        base: the sizes of which one grows at a time.
        grown: what each of them grows to.
        time: exponents in the paper's table of the time for kernels; None for methods that it does not list.
        memory: of the memory for kernels.
    """

    run: Callable[[Sizes], object]
    base: Sizes
    grown: dict[str, tuple[int, int]]
    time: Sizes | None = None
    memory: Sizes | None = None


def problem(sizes: Sizes, activation: str = "tanh") -> dmft.Problem:
    """Two hidden layers on random data, with steps too small to learn much: what they cost is the same."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(sizes["P"], 32, generator=generator)
    targets = torch.sign(torch.randn(sizes["P"], 1, generator=generator))
    settings = {"depth": 2, "activation": activation, "lr": 0.01 / sizes["P"], "steps": sizes["T"]}
    return dmft.Problem.mlp(inputs, targets, gamma0=1.0, loss=half_square, **settings)


def network(sizes: Sizes) -> object:
    """Plain training of one dense network."""
    inputs, width = problem(sizes).tensor, sizes["N"]
    model = torch.nn.Sequential(
        torch.nn.Linear(32, width),
        torch.nn.Tanh(),
        torch.nn.Linear(width, width),
        torch.nn.Tanh(),
        torch.nn.Linear(width, 1),
    )
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    for _ in range(sizes["T"]):
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()
    return model


def static(sizes: Sizes) -> object:
    """Kernels at the start, and the last outputs."""
    return dmft.solve(problem(sizes), dmft.solvers.StaticNTK(), record=sizes["T"])


def perturbation(sizes: Sizes) -> object:
    """Kernels of all steps; with a fixed number of draws."""
    return dmft.solve(problem(sizes), dmft.solvers.Perturbation(1024, 1))


def algorithm1(sizes: Sizes) -> object:
    """One iteration of the paper's Algorithm 1, at all pairs of times."""
    solver = dmft.solvers.AlternatingMonteCarlo(64, iterations=2, tolerance=10.0, stride=None, replicas=1)
    return dmft.solve(problem(sizes), solver)


def converged(sizes: Sizes) -> object:
    """Algorithm 1 until nothing changes by more than 0.1%."""
    return dmft.solve(problem(sizes), dmft.solvers.AlternatingMonteCarlo(1000, replicas=1))


def twin(sizes: Sizes) -> object:
    """The engine of this package, with N sampled neurons; kernels at equal times."""
    return dmft.solve(problem(sizes), dmft.solvers.InfiniteWidth(sizes["N"], 1))


def deep_linear(sizes: Sizes) -> object:
    """Eq. 11 for linear networks, without its matrices over all pairs of times."""
    return dmft.solve(problem(sizes, "linear"), dmft.solvers.DeepLinear())


METHODS = {
    "width-N network": Method(
        network,
        {"P": 64, "T": 4, "N": 1024},
        {"P": (512, 2048), "T": (16, 64), "N": (2048, 6144)},
        {"P": 1, "T": 1, "N": 2},
        {"P": 0, "T": 0, "N": 2},
    ),
    "static NTK": Method(
        static, {"P": 200, "T": 100}, {"P": (600, 1800), "T": (100, 1000)}, {"P": 2, "T": 0}, {"P": 2, "T": 0}
    ),
    "perturbation": Method(
        perturbation, {"P": 16, "T": 50}, {"P": (32, 64), "T": (100, 300)}, {"P": 4, "T": 1}, {"P": 4, "T": 1}
    ),
    "full DMFT, Algorithm 1": Method(
        algorithm1, {"P": 6, "T": 20}, {"P": (16, 32), "T": (60, 120)}, {"P": 3, "T": 3}, {"P": 2, "T": 2}
    ),
    "full DMFT, InfiniteWidth": Method(
        twin, {"P": 16, "T": 20, "N": 2048}, {"P": (32, 64), "T": (40, 120), "N": (8192, 32768)}
    ),
    "full DMFT, DeepLinear": Method(deep_linear, {"P": 20, "T": 100}, {"P": (100, 300), "T": (200, 600)}),
}


def _peak() -> int:
    """The most KiB that this process has had in memory since it was forgotten."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _child(run: Callable[[Sizes], object], sizes: Sizes, to: Connection) -> None:
    torch.set_num_threads(1)
    gc.collect()  # what is given back while the method runs would hide what it takes
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # a fork has the peak of what it comes from
    before, started = _peak(), time.process_time()
    answer = run(sizes)
    taken = time.process_time() - started
    to.send((taken, _peak() - before))
    to.close()
    del answer


def measured(run: Callable[[Sizes], object], sizes: Sizes) -> tuple[float, float]:
    """CPU seconds and KiB of one run, in a process of its own."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(run, sizes, there))
    process.start()
    there.close()
    found = here.recv()
    process.join()
    return found


def exponents(method: Method, shrink: int) -> dict[str, tuple[float, float]]:
    """By P, T and N: the exponents of time and memory."""
    method.run({"P": 2, "T": 2, "N": 64})  # what is loaded on first use is no cost of a size
    found = {}
    for name, (small, large) in method.grown.items():
        few, many = (max(2, size // shrink) for size in (small, large))
        base = {key: max(2, size // shrink) for key, size in method.base.items()}
        costs = [measured(method.run, base | {name: size}) for size in (few, many)]
        ratio = torch.tensor(costs[1], dtype=torch.float64) / torch.tensor(costs[0], dtype=torch.float64).clamp(
            min=1e-9
        )
        slopes = ratio.clamp(min=1e-9).log() / torch.tensor(many / few, dtype=torch.float64).log()
        found[name] = float(slopes[0]), float(slopes[1])
    return found


def caption(shrink: int) -> list[Claim]:
    """What the caption concludes."""
    samples, steps, width = 6, max(4, 20 // shrink), 4096 // shrink
    sizes = {"P": samples, "T": steps, "N": width}
    plain, _ = measured(network, sizes)
    equal = []
    for run in (converged, twin):
        taken, _ = measured(run, sizes)
        equal.append(width * (taken / plain) ** 0.5)  # a network's time is O(N^2)
    wide = {"P": max(4, 64 // shrink), "T": 4}
    full, leading = (measured(run, wide)[0] for run in (converged, perturbation))
    return [
        Claim(
            "DMFT is faster than a width-N network only if N >> P T",
            f"P = {samples}, T = {steps}: Algorithm 1 to 0.1% takes the time of a network of N = {equal[0]:.0f}, "
            f"{equal[0] / samples / steps:.0f} P T; InfiniteWidth with {width} neurons that of N = {equal[1]:.0f}",
            equal[0] > samples * steps,
        ),
        Claim(
            "Full DMFT is cheaper than perturbation theory if T << P^(1/2)",
            f"P = {wide['P']}, T = {wide['T']}: Algorithm 1 takes {full:.1f} s, Perturbation by sampling {leading:.1f} s",
            full < leading,
        ),
    ]


def law(powers: dict[str, float]) -> str:
    """P^a T^b."""
    shown = {name: f"{power:.1f}".removesuffix(".0") for name, power in powers.items()}
    return " ".join(name if power == "1" else f"{name}^{power}" for name, power in shown.items() if power != "0") or "1"


def main(arguments: Sequence[str] | None = None) -> list[Claim]:
    """Returns the claims."""
    options = options_of(__doc__, "table1", arguments, shrink=Option(1, 8, "divide all sizes by"))
    torch.set_num_threads(1)
    clock = Clock.started()
    claims = []
    for name, method in METHODS.items():
        found = exponents(method, options.shrink)
        for kind, (cost, said) in enumerate((("Time", method.time), ("Memory", method.memory))):
            powers = {key: max(0.0, pair[kind]) for key, pair in found.items()}
            title = f"{cost} for kernels, {name}: " + ("not in the table" if said is None else f"O({law(said)})")
            holds = None if said is None else all(power <= said[key] + 0.35 for key, power in powers.items())
            claims.append(Claim(title, law(powers), holds))
    claims += caption(options.shrink)
    finish(options, "Exponents of cost, two hidden layers", clock, None, claims)
    return claims


if __name__ == "__main__":
    main()
