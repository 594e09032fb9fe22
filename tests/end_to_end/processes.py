"""What two processes do: replicated, sharded and tensor-parallel training, each beside the same training in one process."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

import torch_dmft as dmft
from torch_dmft.core.errors import DMFTError

PROCESSES, SAMPLES, STEPS = 2, 6, 3
INPUTS = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.randn(SAMPLES, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Outcome = dict[str, Any]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(4, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 16), nn.RMSNorm(16), nn.Linear(16, 1)
    return nn.Sequential(*layers).double()


def wrapped(model: nn.Module, seed: int = 2) -> dmft.Plan:
    return dmft.parameterize(model, INPUTS, generator=torch.Generator().manual_seed(seed))


def recorder_of(plan_or_model: dmft.Plan | nn.Module) -> dmft.Recorder:
    return dmft.Recorder(plan_or_model, dmft.Probe(INPUTS, TARGETS))


def train(
    run: nn.Module,
    optimizer: torch.optim.Optimizer,
    recorder: dmft.Recorder | None = None,
    *,
    rows: slice | None = None,
    clip: bool = False,
    noted: Tensor | None = None,
    steps: int = STEPS,
) -> None:
    """A loop over this process's rows; None for its share of all."""
    share = SAMPLES // PROCESSES
    rows = slice(distributed.get_rank() * share, (distributed.get_rank() + 1) * share) if rows is None else rows
    with nullcontext() if recorder is None else recorder.attach(optimizer):
        for _ in range(steps):
            if recorder is not None and noted is not None:
                recorder.batch(noted)
            optimizer.zero_grad()
            nn.functional.mse_loss(run(INPUTS[rows]), TARGETS[rows]).backward()
            if clip:
                nn.utils.clip_grad_norm_(run.parameters(), 0.5)
            optimizer.step()


def sgd(plan: dmft.Plan) -> SGD:
    return SGD(plan.param_groups(0.1), momentum=0.5)


def weights(model: nn.Module) -> dict[str, Tensor]:
    found = model.state_dict()
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).clone() for name, value in found.items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def agree(one: dmft.Trajectory, other: dmft.Trajectory) -> bool:
    """Whether two runs have the same kernels at the same steps."""
    pairs = [(a.array, b.array) for x, y in zip(one.layers, other.layers, strict=True) for a, b in _kernels(x, y)]
    return torch.equal(one.steps, other.steps) and all(
        torch.allclose(a, b, rtol=1e-9) for a, b in [*pairs, (one.ntk.array, other.ntk.array)]
    )


def _kernels(x: Any, y: Any) -> list[tuple[Any, Any]]:
    return [(x.forward, y.forward), (x.backward, y.backward)]


def in_one_process(*, clip: bool = False) -> dmft.Recorder:
    """The same training on all rows."""
    plan = wrapped(network())
    recorder = recorder_of(plan)
    train(plan.model, sgd(plan), recorder, rows=slice(None), clip=clip)
    return recorder


def refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except DMFTError as error:
        return str(error)
    return ""


# Replicas


def replicas() -> Outcome:
    found: list[dict[str, Tensor]] = []
    for who in ("nobody", "every process", "the first process"):
        plan = wrapped(network())
        run, recorder = DistributedDataParallel(plan.model), recorder_of(plan)
        is_recorded = who == "every process" or (who == "the first process" and distributed.get_rank() == 0)
        train(run, sgd(plan), recorder if is_recorded else None)
        found.append(weights(plan.model))
        if who == "every process":
            whole = recorder
    return {
        "identical": [same(found[0], other) for other in found[1:]],
        "records": agree(whole.trajectory(), in_one_process().trajectory()),
        "said": (whole.training.doubt, whole.training.notes),
        "steps": whole.problem().steps,
    }


def optimizer_in_parts() -> Outcome:
    """Every process steps a part of the parameters, and remembers momenta of these alone."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # slow to import

    found = []
    for is_recorded in (False, True):
        plan = wrapped(network())
        recorder = recorder_of(plan)
        optimizer = ZeroRedundancyOptimizer(plan.param_groups(0.1), optimizer_class=SGD, lr=0.1, momentum=0.5)
        train(DistributedDataParallel(plan.model), optimizer, recorder if is_recorded else None)
        found.append(weights(plan.model))
    return {
        "identical": same(*found),
        "records": agree(recorder.trajectory(), in_one_process().trajectory()),
        "said": (recorder.training.optimizer, recorder.training.notes),
    }


def replicas_as_they_come() -> Outcome:
    """A bare model inside of DistributedDataParallel; what is inside is measured."""
    found = []
    for is_recorded in (False, True):
        model = network()
        run = DistributedDataParallel(model)
        recorder = recorder_of(run)
        train(run, SGD(run.parameters(), lr=0.05), recorder if is_recorded else None)
        found.append(weights(model))
    return {"identical": same(*found), "layers": [layer.name for layer in recorder.trajectory().layers]}


def rows_of_replicas() -> Outcome:
    """A step sees the rows of all processes."""
    said = {}
    share = SAMPLES // PROCESSES
    mine = torch.arange(share) + share * distributed.get_rank()
    for name, noted in (("all", torch.arange(SAMPLES)), ("own", mine)):
        plan = wrapped(network())
        recorder = dmft.Recorder(plan, dmft.Probe(INPUTS, TARGETS), data=(INPUTS, TARGETS))
        train(DistributedDataParallel(plan.model), sgd(plan), recorder, noted=noted)
        said[name] = recorder.training.doubt
    return said


def wrapped_inside_of_replicas(*, module: bool, same_seed: bool) -> Outcome:
    run = DistributedDataParallel(network())
    before = weights(run.module)
    seed = 2 if same_seed else distributed.get_rank()
    plans: list[dmft.Plan] = []
    said = refusal(lambda: plans.append(wrapped(run.module if module else run, seed)))
    after = weights(run.module)
    if plans:
        recorder = recorder_of(plans[0])
        train(run, sgd(plans[0]), recorder)
        is_right = agree(recorder.trajectory(), in_one_process().trajectory())
    else:  # it is as it was, and can be measured
        is_right = same(before, after) and bool(recorder_of(run).record().ntk.array.isfinite().all())
    return {"said": said, "right": is_right}


# Shards


def sharded(model: nn.Sequential, mesh: DeviceMesh) -> nn.Sequential:
    """All but the readout layer by layer; that belongs to the whole model."""
    for layer in model[:-1]:
        if next(layer.parameters(), None) is not None:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@torch.no_grad()
def validate(model: nn.Module) -> None:
    """Run the model without a backward pass, after which the shards of the readout are still gathered."""
    model(INPUTS)


def shards(mesh: DeviceMesh, *, before: bool, clip: bool = False) -> Outcome:
    found = []
    for is_recorded in (False, True):
        model = network()
        initial = weights(model)
        if before:
            sharded(model, mesh)
        plan = wrapped(model)
        drawn = weights(model)
        if not before:
            sharded(model, mesh)
        rate = plan.suggest_lr(dmft.Probe(INPUTS, TARGETS), optimizer="adamw").lr
        validate(model)
        optimizer, recorder = sgd(plan), recorder_of(plan)
        validate(model)
        train(model, optimizer, recorder if is_recorded else None, clip=clip)
        found.append(weights(model))
    validate(model)
    assert not hasattr(model[-1].weight, "full_tensor")  # gathered
    look = recorder.look(check=True)
    described = dmft.describe(model, INPUTS)
    validate(model)
    plan.undo()
    plain, expected = wrapped(network()), in_one_process(clip=clip)
    return {
        "identical": same(*found),
        "drawn": same(drawn, weights(plain.model)),
        "records": agree(recorder.trajectory(), expected.trajectory()),
        "look": torch.equal(look.ntk, recorder.trajectory().ntk.array[-1]),
        "said": (recorder.training.doubt, recorder.training.notes, expected.training.doubt),
        "steps": recorder.problem().steps if not clip else STEPS,
        "rate": math.isclose(rate, plain.suggest_lr(dmft.Probe(INPUTS, TARGETS), optimizer="adamw").lr),
        "described": described == plain.architecture,
        "undone": same(weights(model), initial),
    }


def shards_as_they_come(mesh: DeviceMesh) -> Outcome:
    model, other = sharded(network(), mesh), network()
    recorder, plain = recorder_of(model), recorder_of(other)
    train(model, SGD(model.parameters(), lr=0.05), recorder)
    train(other, SGD(other.parameters(), lr=0.05), plain, rows=slice(None))
    ntks = [dmft.empirical_ntk(one, INPUTS, method=how) for one in (model, other) for how in ("layerwise", "jacobian")]
    return {
        "records": agree(recorder.trajectory(), plain.trajectory()),
        "kernels": all(torch.allclose(one, ntks[0], rtol=1e-9) for one in ntks),
    }


def shards_in_low_precision(mesh: DeviceMesh) -> Outcome:
    """Computed with in bfloat16, and measured in the precision in which the shards are kept."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float64)
    found = []
    for is_recorded in (False, True):
        plan = wrapped(network())
        fully_shard(plan.model, mesh=mesh, mp_policy=policy)
        recorder = recorder_of(plan)
        train(plan.model, sgd(plan), recorder if is_recorded else None)
        found.append(weights(plan.model))
    measured = recorder.trajectory()
    return {
        "identical": same(*found),
        "precision": measured.metadata["precision"],
        "first": torch.allclose(measured.ntk.array[0], in_one_process().trajectory().ntk.array[0], rtol=1e-9),
        "said": recorder.training.doubt,
    }


def shards_resumed(mesh: DeviceMesh) -> Outcome:
    plan = wrapped(sharded(network(), mesh))
    optimizer, first = sgd(plan), recorder_of(plan)
    train(plan.model, optimizer, first, steps=1)
    later = recorder_of(plan)
    later.load_state_dict(first.state_dict())
    train(plan.model, optimizer, later, steps=STEPS - 1)
    return {"records": agree(later.trajectory(), in_one_process().trajectory()), "notes": later.training.notes}


def shards_of_other_draws(mesh: DeviceMesh) -> Outcome:
    model = sharded(network(), mesh)
    before = weights(model)
    said = refusal(lambda: wrapped(model, seed=distributed.get_rank()))
    return {"said": said, "undone": same(before, weights(model))}


def flattened() -> Outcome:
    """FullyShardedDataParallel, the older way; its remedy is that of tensor parallelism."""

    def inside(model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))

    plan = wrapped(network())
    run = inside(plan.model)
    optimizer = SGD(run.parameters(), lr=0.05)
    said = {
        "wrap": refusal(lambda: wrapped(inside(network()))),
        "record": refusal(lambda: recorder_of(inside(network()))),
        "attach": refusal(lambda: train(run, optimizer, recorder_of(plan))),
    }
    train(run, optimizer)
    copied = network()
    copied.load_state_dict(get_model_state_dict(run, options=StateDictOptions(full_state_dict=True)))
    return {"said": said, "measured": bool(recorder_of(copied).record().ntk.array.isfinite().all())}


# Tensor parallelism


def split(model: nn.Sequential, mesh: DeviceMesh) -> nn.Module:
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def plain_chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).double()


def tensor_parallel(mesh: DeviceMesh) -> Outcome:
    model = plain_chain()
    before = weights(model)
    plan = wrapped(model)
    split(model, mesh)
    train(model, sgd(plan), rows=slice(None))
    said = {
        "wrap": refusal(lambda: wrapped(split(plain_chain(), mesh))),
        "record": refusal(lambda: recorder_of(split(plain_chain(), mesh))),
        "attach": refusal(lambda: train(model, sgd(plan), recorder_of(plan), rows=slice(None))),
    }
    # The remedy: an ordinary copy.
    copied = plain_chain()
    plan_of_copy = wrapped(copied)
    copied.load_state_dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))
    record = recorder_of(plan_of_copy).record()
    one = wrapped(plain_chain())
    recorder = recorder_of(one)
    train(one.model, sgd(one), recorder, rows=slice(None))
    plan.undo()
    return {
        "said": said,
        "records": torch.allclose(record.ntk.array[0], recorder.trajectory().ntk.array[-1], rtol=1e-9),
        "undone": same(weights(model), before),
    }


def outcomes(mesh: DeviceMesh) -> dict[str, Outcome]:
    return {
        "replicas": replicas(),
        "optimizer in parts": optimizer_in_parts(),
        "replicas as they come": replicas_as_they_come(),
        "rows of replicas": rows_of_replicas(),
        **{
            f"wrapped {'module of ' * module}replicas, {'one seed' if seed else 'two seeds'}": wrapped_inside_of_replicas(
                module=module, same_seed=seed
            )
            for module in (False, True)
            for seed in (False, True)
        },
        **{
            f"shards {'before' if before else 'after'}{', clipped' * clip}": shards(mesh, before=before, clip=clip)
            for before, clip in ((False, False), (True, False), (True, True))
        },
        "shards of replicas": shards(
            init_device_mesh("cpu", (1, PROCESSES), mesh_dim_names=("copies", "parts")), before=False
        ),
        "shards in low precision": shards_in_low_precision(mesh),
        "shards as they come": shards_as_they_come(mesh),
        "shards resumed": shards_resumed(mesh),
        "shards of other draws": shards_of_other_draws(mesh),
        "flattened": flattened(),
        "tensor parallel": tensor_parallel(mesh),
    }


def work(rank: int, folder: str) -> None:
    """Do all of it as one of the processes, and leave the outcomes in a file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=30),
    )
    try:
        found = outcomes(init_device_mesh("cpu", (PROCESSES,)))
        torch.save(found, Path(folder) / f"{rank}.pt")
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
    os._exit(0)  # at the end of a process torch now and then aborts over a thread that still runs
