"""The main job on real images: wrap a network, train it, predict it, compare, and show it in TensorBoard."""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from torch import Tensor, nn

from torch_dmft import data
from torch_dmft.comparison import Comparison, compare
from torch_dmft.comparison.width import gap
from torch_dmft.core.activation import activation
from torch_dmft.core.devices import usable
from torch_dmft.core.errors import ConvergenceError, InvalidInputError
from torch_dmft.core.stability import NEAR_THE_EDGE
from torch_dmft.core.trajectory import Trajectory
from torch_dmft.measurement import Probe, Recorder
from torch_dmft.parameterization import Plan, centered, parameterize
from torch_dmft.report.events import local, run_directory
from torch_dmft.report.interrupt import interrupts_wait
from torch_dmft.report.live import LiveScalars
from torch_dmft.report.overview import overview
from torch_dmft.report.results import Printout, Results
from torch_dmft.report.tensorboard import write_comparison
from torch_dmft.report.widths import gap_figure, gap_table
from torch_dmft.settings import Settings
from torch_dmft.theory import Problem, Solver, solve, solvers


def run(settings: Settings, console: Console | None = None) -> Comparison:
    """Run the demo and print what it finds. Every result is saved as soon as it is there.

    Args:
        settings: what to run.
        console: where to print; default the terminal.

    Returns:
        The comparison of the network of width ``settings.width`` with the theory and the static NTK.

    Raises:
        DMFTError: for settings, data or a folder that cannot work, before anything runs.
        ConvergenceError: if the network's training diverges; then no theory is tried.
        NotWrittenError: at the end, if the disk did not take some of the results; everything else was done.
    """
    console = console or terminal()
    started = time.perf_counter()
    _check(settings)
    logdir = settings.directory
    inputs, targets = data.load(settings.data, settings.samples, settings.data_dir, seed=settings.seed)
    probe = Probe(inputs.to(settings.device), targets.to(settings.device))
    plan = wrap(settings, probe, settings.width)
    problem = Problem.like(plan, probe, lr=settings.lr, steps=settings.steps)
    generator = torch.Generator().manual_seed(settings.seed + 1)
    predictor: Solver = solvers.InfiniteWidth(settings.neurons, settings.replicas, generator=generator, strides=True)
    if settings.activation == "linear":
        predictor = solvers.DeepLinear()  # exact
    predictor.check(problem)
    _require_writable(logdir)

    results = Results(logdir, console)
    console.print(f"[bold]1. Wrap[/bold] a network for {len(inputs)} images of {settings.data}, two classes.")
    console.print(plan)

    console.print("[bold]2. Train and measure[/bold] it.")
    if settings.centered:
        console.print(
            "gamma0 is small: trained is the centered model f - f_0, because a network of finite width starts at a "
            "random output f_0 of order 1 / (gamma0 sqrt(N)), and the infinitely wide one at zero."
        )
    measured = train(settings, plan, probe, console, run_directory(logdir, plan.origin))
    results.keep("network.npz", measured.save)

    console.print("[bold]3. Predict[/bold] the infinitely wide network, and beside it the static NTK.")
    theory = solve(problem, predictor, record=measured.steps, progress=console.is_terminal)
    results.keep("theory.npz", theory.save)
    static = solve(problem, solvers.StaticNTK(), record=measured.steps)
    results.keep("static_ntk.npz", static.save)

    console.print("[bold]4. Compare[/bold]")
    judge = problem if settings.networks else None
    comparison = compare(measured, theory, static, problem=judge, replicas=settings.networks)
    if judge is not None:
        results.keep("networks.npz", comparison.predictions[-1].save)
    hparams = {"seed": settings.seed}
    shown = console.is_terminal
    results.keep("logs", lambda _: write_comparison(comparison, logdir, plan, hparams=hparams, progress=shown))
    results.figure("overview.png", overview(comparison))
    console.print(comparison)
    if settings.widths:
        gaps = []
        for width in sorted(set(settings.widths)):
            same = width == settings.width
            network = measured if same else train(settings, wrap(settings, probe, width), probe, console)
            results.keep(f"network-{width}.npz", network.save)
            gaps.append(gap(compare(network, theory)))
        console.print(gap_table(gaps))
        results.figure("widths.png", gap_figure(gaps))

    glance = "" if "overview.png" in results.lost else f"At a glance: {logdir / 'overview.png'}; t"
    console.print(
        f"Done in {time.perf_counter() - started:.0f} s. {glance or 'T'}he trajectories are in {logdir}/*.npz; "
        f'everything else is in the DMFT tab of\n\n    tensorboard --logdir "{logdir}"\n\nand the same page '
        f'as one file: torch-dmft report "{logdir}" -o report.html\n',
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    results.require_all()
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
    generator = torch.Generator().manual_seed(settings.seed)
    model = network(settings, probe.tensor, width)
    for module in model.modules():
        if isinstance(module, nn.Linear):  # as torch.nn draws them, but from the seed
            nn.init.uniform_(module.bias, -(module.in_features**-0.5), module.in_features**-0.5, generator=generator)
    model.to(settings.device)
    return parameterize(model, probe.tensor, gamma0=settings.gamma0, generator=generator)


def train(settings: Settings, plan: Plan, probe: Probe, console: Console, logdir: Path | None = None) -> Trajectory:
    """Train a wrapped network by full-batch SGD, as any user would, and measure it on the way.

    Raises:
        ConvergenceError: if the loss does not fall.
    """
    loss = nn.MSELoss()
    model = centered(plan.model) if settings.centered else plan.model
    optimizer = torch.optim.SGD(plan.param_groups(settings.lr))
    interval = max(1, settings.steps // settings.records)
    recorder = Recorder(plan, probe, every=interval, model=model)
    with LiveScalars(logdir, recorder) if logdir else nullcontext(), recorder.attach(optimizer):
        for _ in track(range(settings.steps), escape(plan.origin), console=console, disable=not console.is_terminal):
            with interrupts_wait():  # somewhere below a KeyboardInterrupt can get lost, and training goes on
                optimizer.zero_grad()
                loss(model(probe.tensor), probe.targets).backward()
                optimizer.step()
    measured = recorder.trajectory()
    start, end = measured.losses[0].item(), measured.losses[-1].item()
    if not end <= start:
        raise ConvergenceError(
            f"Training of {plan.origin} diverges.",
            got=f"a loss of {start:.3g} at step 0 and {end:.3g} at step {int(measured.steps[-1])}",
            remedy=f"a smaller learning rate, such as --lr {settings.lr / 4:.2g}",
        )
    edge = 0.0 if measured.edge is None else float(measured.edge.nan_to_num(0.0).max())
    if edge > NEAR_THE_EDGE or bool((measured.losses[1:] > 1.05 * measured.losses[:-1]).any()):
        console.print(
            f"[yellow]The learning rate of {escape(plan.origin)} is close to instability, {edge:.2g} of the largest stable "
            "one: there small differences grow. Trust the comparison at a smaller one, such as "
            f"--lr {settings.lr / 4:.2g}.[/yellow]"
        )
    return measured


def terminal() -> Console:
    """The terminal; wide enough for the tables where there is none. It raises no errors of a disk."""
    printout: Any = Printout(sys.stdout)  # type: ignore[arg-type]  # typeshed knows it by its protocol
    console = Console(file=printout)
    return console if console.is_terminal else Console(file=printout, width=110)


def _check(settings: Settings) -> None:
    activation(settings.activation)
    usable(settings.device, remedy="--device cpu")


def _require_writable(folder: Path) -> None:
    local(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InvalidInputError(
            "The results cannot be written.", got=str(error), remedy="choose another folder by --logdir"
        ) from error
