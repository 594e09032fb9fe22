"""The main job on real images: wrap a network, train it, predict it, compare, and show it in TensorBoard."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from torch_dmft import data
from torch_dmft.comparison import Comparison, compare
from torch_dmft.comparison.width import gap
from torch_dmft.core.activation import activation
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement import Probe, Recorder
from torch_dmft.parameterization import Plan, parameterize
from torch_dmft.report.figures import figures
from torch_dmft.report.overview import overview
from torch_dmft.report.tensorboard import LiveScalars, write_comparison
from torch_dmft.report.widths import gap_figure, gap_table
from torch_dmft.theory import Problem, solve, solvers


@dataclass(frozen=True)
class Settings:
    """What the demo runs; every field is an option of ``torch-dmft demo``.

    Attributes:
        data: ``"digits"``, ``"synthetic"`` or ``"cifar10"``, see ``torch_dmft.data``.
        samples: P, training images, half of each of two classes.
        width: N, neurons per hidden layer.
        widths: further widths to train, to see the gap to theory shrink.
        depth: L, hidden layers.
        activation: name of phi.
        gamma0: feature-learning strength.
        lr: eta, the base learning rate of the mean squared error.
        steps: full-batch SGD steps.
        records: how many steps are recorded, evenly spaced.
        neurons: sample of neurons that stands for infinite width.
        replicas: independent theory runs, for error bars.
        seed: of the network's and the theory's random numbers.
        device: where everything runs.
        logdir: TensorBoard logs and figures.
        data_dir: where CIFAR-10 lies.
    """

    data: data.Name = "digits"
    samples: int = 20
    width: int = 512
    widths: tuple[int, ...] = ()
    depth: int = 3
    activation: str = "tanh"
    gamma0: float = 1.0
    lr: float = 0.05
    steps: int = 200
    records: int = 40
    neurons: int = 4096
    replicas: int = 4
    seed: int = 0
    device: str = "cpu"
    logdir: Path = Path("runs")
    data_dir: Path = Path("data")


def run(settings: Settings, console: Console | None = None) -> Comparison:
    """Run the demo and print what it finds.

    Args:
        settings: what to run.
        console: where to print; default the terminal.

    Returns:
        The comparison of the network of width ``settings.width`` with the theory and the static NTK.

    Raises:
        InvalidInputError: for settings or data that cannot work, before anything runs.
    """
    console = console or _console()
    _check(settings)
    started = time.perf_counter()
    inputs, targets = data.load(settings.data, settings.samples, settings.data_dir, seed=settings.seed)
    probe = Probe(inputs.to(settings.device), targets.to(settings.device))
    console.print(f"[bold]1. Wrap[/bold] a network for {len(inputs)} images of {settings.data}, two classes.")
    plan = wrap(settings, probe, settings.width)
    console.print(plan)

    console.print("[bold]2. Train and measure[/bold] it.")
    with LiveScalars(settings.logdir / f"network (N={settings.width})", targets) as live:
        measured = train(settings, plan, probe, console, live)

    console.print("[bold]3. Predict[/bold] the infinitely wide network, and beside it the static NTK.")
    problem = Problem.like(plan, probe, lr=settings.lr, steps=settings.steps)
    generator = torch.Generator().manual_seed(settings.seed + 1)
    sampled = solvers.InfiniteWidth(neurons=settings.neurons, replicas=settings.replicas, generator=generator)
    theory = solve(problem, sampled, record=measured.steps, progress=True)
    static = solve(problem, solvers.StaticNTK(), record=measured.steps)

    console.print("[bold]4. Compare[/bold]")
    comparison = compare(measured, theory, static)
    console.print(comparison)
    drawn = {"overview": overview(comparison), **figures(comparison)}
    if settings.widths:
        gaps = []
        for width in sorted(settings.widths):
            same = width == settings.width
            run = measured if same else train(settings, wrap(settings, probe, width), probe, console)
            gaps.append(gap(compare(run, theory)))
        console.print(gap_table(gaps))
        drawn["widths"] = gap_figure(gaps)

    write_comparison(comparison, settings.logdir, plan)
    for name, figure in drawn.items():
        figure.savefig(settings.logdir / f"{name}.png", dpi=150)
    for name, run in (("network", measured), ("theory", theory), ("static_ntk", static)):
        run.save(settings.logdir / f"{name}.npz")
    console.print(
        f"Done in {time.perf_counter() - started:.0f} s. Figures (.png) and trajectories (.npz) are in "
        f"{settings.logdir}/; everything else opens with\n\n    tensorboard --logdir {settings.logdir}\n"
    )
    return comparison


def network(settings: Settings, inputs: Tensor, width: int) -> nn.Sequential:
    """An ordinary network: flattened images, ``depth`` hidden layers of ``width`` neurons, one output."""
    layers: list[nn.Module] = [nn.Flatten()]
    fan_in = inputs[0].numel()
    for _ in range(settings.depth):
        layers += [nn.Linear(fan_in, width), activation(settings.activation).module()]
        fan_in = width
    return nn.Sequential(*layers, nn.Linear(fan_in, 1))


def wrap(settings: Settings, probe: Probe, width: int) -> Plan:
    """The network of one width in mean-field parameterization."""
    model = network(settings, probe.inputs, width).to(settings.device)
    generator = torch.Generator().manual_seed(settings.seed)
    return parameterize(model, probe.inputs, gamma0=settings.gamma0, generator=generator)


def train(
    settings: Settings, plan: Plan, probe: Probe, console: Console, live: LiveScalars | None = None
) -> Trajectory:
    """Train a wrapped network by full-batch SGD, as any user would, and measure it on the way."""
    model, loss = plan.model, nn.MSELoss()
    optimizer = torch.optim.SGD(plan.param_groups(settings.lr))
    recorder = Recorder(plan, probe, every=max(1, settings.steps // settings.records), callbacks=[live] if live else [])
    with recorder.attach(optimizer):
        for _ in track(range(settings.steps), f"network (N={plan.width})", console=console):
            optimizer.zero_grad()
            loss(model(probe.inputs), probe.targets).backward()
            optimizer.step()
    return recorder.trajectory()


def _console() -> Console:
    """The terminal; wide enough for the tables where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=110)


def _check(settings: Settings) -> None:
    for name in ("width", "depth", "steps", "records", "neurons", "replicas"):
        if getattr(settings, name) < 1:
            raise InvalidInputError(f"{name} must be at least 1.", got=str(getattr(settings, name)))
    for name in ("gamma0", "lr"):
        if not getattr(settings, name) > 0:
            raise InvalidInputError(f"{name} must be positive.", got=str(getattr(settings, name)))
    activation(settings.activation)
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidInputError("No CUDA device is available.", got=settings.device, remedy="--device cpu")
