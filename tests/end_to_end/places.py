"""Where people train: loops as they are written, each a generator that stops before its first step and after every one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.checkpoint import checkpoint

import torch_dmft as dmft
from tests.accelerated import accelerator

STEPS = 4
INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randn(6, 1, generator=torch.Generator().manual_seed(1))

Attach = Callable[..., AbstractContextManager[Any]]
Loop = Callable[[nn.Module, dmft.Plan, Attach], Iterator[None]]


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 32), nn.RMSNorm(32), nn.Linear(32, 1)
    )


class Checkpointed(nn.Module):
    """Forgets the activations of its middle."""

    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 32), nn.Linear(32, 32), nn.Linear(32, 1)
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = checkpoint(lambda h: torch.tanh(self.middle(h)), h, use_reentrant=self.use_reentrant)
        return self.last(h)


def loss_of(model: Callable[[Tensor], Tensor], rows: slice = slice(None)) -> Tensor:
    return nn.functional.mse_loss(model(INPUTS[rows]), TARGETS[rows])


def backward(model: nn.Module, run: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    model.zero_grad()
    loss = loss_of(model if run is None else run)
    loss.backward()
    return loss


def sgd(plan: dmft.Plan, **settings: Any) -> SGD:
    return SGD(plan.param_groups(0.1), momentum=0.5, **settings)


class Sharp(Optimizer):
    """Sharpness-aware minimisation, written as its authors' and everybody's."""

    def __init__(self, groups: list[dict[str, Any]], base: type[Optimizer], rho: float = 0.05) -> None:
        super().__init__(groups, {"rho": rho})
        self.base_optimizer = base(self.param_groups)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        parameters = [(group, p) for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for _, p in parameters]).norm()
        for group, p in parameters:
            self.state[p]["old"] = p.clone()
            p.add_(group["rho"] * p.grad / norm)

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["old"])
        self.base_optimizer.step()

    def step(self, closure: Any) -> None:
        self.first_step()
        torch.enable_grad()(closure)()
        self.second_step()


class Lookahead(Optimizer):
    """Slow weights that follow the fast ones every second step; like many, it does not call ``Optimizer.__init__``."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.param_groups, self.defaults = optimizer, optimizer.param_groups, optimizer.defaults
        self.state = optimizer.state
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        self.count = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.optimizer.step()
        self.count += 1
        if self.count % 2 == 0:
            fast = [p for group in self.param_groups for p in group["params"]]
            for slow, p in zip(self.slow, fast, strict=True):
                p.copy_(slow.lerp_(p, 0.5))


def ordinary(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
    optimizer = sgd(plan)
    with attach(optimizer):
        yield
        for _ in range(STEPS):
            backward(model)
            optimizer.step()
            yield


def compiled(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
    run, optimizer = torch.compile(model, backend="eager"), sgd(plan)
    with attach(optimizer):
        yield
        for _ in range(STEPS):
            backward(model, run)
            optimizer.step()
            yield


def compiled_in_place(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
    model.compile(backend="eager")
    yield from ordinary(model, plan, attach)


def compiled_step(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
    optimizer = sgd(plan)
    step = torch.compile(optimizer.step, backend="eager")
    with attach(optimizer):
        yield
        for _ in range(STEPS):
            backward(model)
            step()
            yield


def two_optimizers(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
    groups = plan.param_groups(0.1)
    one, other = SGD(groups[:1]), SGD(groups[1:])
    with attach(one, other):
        yield
        for _ in range(STEPS):
            backward(model)
            one.step()
            other.step()
            yield


def in_turn(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
    groups = plan.param_groups(0.1)
    optimizers = SGD(groups[:1]), SGD(groups[1:])
    with attach(*optimizers):
        yield
        for _ in range(STEPS):
            for optimizer in optimizers:
                backward(model)
                optimizer.step()
            yield


def sharp(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
    optimizer = Sharp(plan.param_groups(0.1), SGD)
    with attach(optimizer):
        yield
        for _ in range(STEPS):
            backward(model)
            optimizer.first_step()
            backward(model)
            optimizer.second_step()
            yield


def sharp_by_closure(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
    optimizer = Sharp(plan.param_groups(0.1), SGD)
    with attach(optimizer):
        yield
        for _ in range(STEPS):
            backward(model)
            optimizer.step(lambda: backward(model))
            yield


def base_of_sharp(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
    def inner(optimizer: Sharp) -> AbstractContextManager[Any]:
        return attach(optimizer.base_optimizer)

    yield from sharp(model, plan, inner)


def both_of_sharp(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
    def twice(optimizer: Sharp) -> AbstractContextManager[Any]:
        return attach(optimizer.base_optimizer, optimizer)

    yield from sharp(model, plan, twice)


def lookahead(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
    optimizer = Lookahead(sgd(plan))
    with attach(optimizer):
        yield
        for _ in range(STEPS):
            backward(model)
            optimizer.step()
            yield


def within_backward(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
    optimizers = {
        p: SGD([{**group, "params": [p]}], momentum=0.5) for group in plan.param_groups(0.1) for p in group["params"]
    }

    def step(p: Tensor) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in optimizers:
        p.register_post_accumulate_grad_hook(step)
    with attach(*optimizers.values()):
        yield
        for _ in range(STEPS):
            loss_of(model).backward()
            yield


def averaged(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
    average, optimizer = torch.optim.swa_utils.AveragedModel(model), sgd(plan)
    with attach(optimizer):
        yield
        for _ in range(STEPS):
            backward(model)
            optimizer.step()
            average.update_parameters(model)
            yield


def lbfgs(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
    optimizer = torch.optim.LBFGS(list(model.parameters()), lr=0.1, max_iter=3)
    with attach(optimizer):
        yield
        for _ in range(STEPS):
            optimizer.step(lambda: backward(model))
            yield


def scaled(**settings: bool) -> Loop:
    def loop(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
        optimizer, scaler = sgd(plan, **settings), torch.amp.GradScaler("cpu", init_scale=2.0**10)
        with attach(optimizer):
            yield
            for count in range(STEPS):
                model.zero_grad()
                blown = float("inf") if count == 1 else 1.0
                scaler.scale(loss_of(model) * blown).backward()
                scaler.step(optimizer)
                scaler.update()
                if count != 1:  # which is skipped
                    yield

    return loop


def accumulated(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
    optimizer = sgd(plan)
    with attach(optimizer):
        yield
        for _ in range(STEPS):
            model.zero_grad()
            for rows in (slice(0, 3), slice(3, 6)):
                (loss_of(model, rows) / 2).backward()
            optimizer.step()
            yield


def accelerated(**settings: Any) -> Loop:
    def loop(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
        outer = accelerator(gradient_accumulation_steps=2, **settings)
        run, optimizer = outer.prepare(model, sgd(plan))
        with attach(optimizer):
            yield
            for _ in range(STEPS):
                for rows in (slice(0, 3), slice(3, 6)):
                    with outer.accumulate(run):
                        outer.backward(loss_of(run, rows))
                        optimizer.step()
                        optimizer.zero_grad()
                yield

    return loop


def fabric(**settings: Any) -> Loop:
    def loop(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
        from lightning import Fabric

        lab = Fabric(accelerator="cpu", **settings)
        run, optimizer = lab.setup(model, sgd(plan))
        with attach(optimizer):
            yield
            for _ in range(STEPS):
                optimizer.zero_grad()
                lab.backward(loss_of(run))
                optimizer.step()
                yield

    return loop


def lightning(model: nn.Module, plan: dmft.Plan, attach: Attach) -> Iterator[None]:
    """The optimizers that a LightningModule with manual optimization is given are Lightning's own."""
    from lightning.pytorch.core.optimizer import LightningOptimizer

    inner = sgd(plan)
    with attach(LightningOptimizer(inner)):
        yield
        for _ in range(STEPS):
            backward(model)
            inner.step()
            yield


@dataclass(frozen=True)
class Place:
    """A loop, what trains in it, and what a recorder says of it.

    Attributes:
        loop: the loop.
        sees: what the optimizer is taken for.
        notes: what is noted of the run, in part; "" for nothing.
        doubt: why its batches are not known for certain, in part; "" if they are.
        models: builders of the models it is tried with.
    """

    loop: Loop
    sees: str = "SGD"
    notes: str = ""
    doubt: str = ""
    models: tuple[Callable[[], nn.Module], ...] = (chain, normed)


UNCHECKED = "no gradients could be checked"
PLACES = {
    "an ordinary loop": Place(ordinary),
    "torch.compile(model) after wrapping": Place(compiled),
    "model.compile() after wrapping": Place(compiled_in_place),
    "torch.compile(optimizer.step)": Place(compiled_step, models=(chain,)),
    "two optimizers": Place(two_optimizers),
    "two optimizers in turn": Place(in_turn, notes="different backward passes"),
    "sharpness-aware": Place(sharp, sees="Sharp", doubt=UNCHECKED),
    "sharpness-aware by a closure": Place(sharp_by_closure, sees="Sharp", doubt=UNCHECKED),
    "sharpness-aware, its base attached": Place(base_of_sharp, doubt="gradients were not those of MSELoss"),
    "sharpness-aware, both attached": Place(both_of_sharp, sees="Sharp", doubt=UNCHECKED, models=(chain,)),
    "Lookahead": Place(lookahead, sees="Lookahead", doubt=UNCHECKED),
    "steps within the backward pass": Place(within_backward),
    "averaged weights beside": Place(averaged),
    "LBFGS": Place(lbfgs, sees="LBFGS", doubt=UNCHECKED),
    "GradScaler": Place(scaled(foreach=False)),
    "GradScaler, foreach": Place(scaled(foreach=True)),
    "GradScaler, fused": Place(scaled(fused=True)),
    "accumulation": Place(accumulated),
    "checkpointing": Place(ordinary, models=(lambda: Checkpointed(use_reentrant=False),)),
    "reentrant checkpointing": Place(ordinary, models=(lambda: Checkpointed(use_reentrant=True),)),
    "accelerate": Place(accelerated()),
    "accelerate in bfloat16": Place(accelerated(mixed_precision="bf16"), models=(chain,)),
    "Fabric": Place(fabric()),
    "Fabric in bfloat16": Place(fabric(precision="bf16-mixed"), models=(chain,)),
    "Lightning's optimizers": Place(lightning),
}


def wrapped(make: Callable[[], nn.Module] = chain, **settings: Any) -> tuple[nn.Module, dmft.Plan, dmft.Recorder]:
    torch.manual_seed(0)
    model = make()
    plan = dmft.parameterize(model, INPUTS, generator=torch.Generator().manual_seed(2))
    return model, plan, dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS), **settings)


def train(make: Callable[[], nn.Module], loop: Loop, *, record: bool) -> tuple[list[dict[str, Tensor]], dmft.Recorder]:
    """The weights before the first step and after each, and the recorder."""
    model, plan, recorder = wrapped(make)
    attach: Any = recorder.attach if record else lambda *_: nullcontext()
    return [copy.deepcopy(model.state_dict()) for _ in loop(model, plan, attach)], recorder
