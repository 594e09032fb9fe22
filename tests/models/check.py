"""Whether one model is measured, bit-identical under recording, and has the NTK of an independent Jacobian."""

from __future__ import annotations

import copy
import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD

import torch_dmft as dmft
from tests.models.entry import Model
from torch_dmft.core.errors import UnsupportedModelError
from torch_dmft.uses.outputs import Runs

SAMPLES, STEPS = 3, 2
EXACT = 1e-6
"""Largest relative difference of two NTKs in float64; parts of many models compute in float32 whatever they are given."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run the body with random numbers that are the same each time."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.setstate(random.Random(seed).getstate())
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def check(entry: Model) -> dict[str, Any]:
    """The row of the table of one model: numbers, words, booleans."""
    started = time.perf_counter()
    with warnings.catch_warnings(), seeded(0):
        warnings.simplefilter("ignore")
        model = entry.build(1).double().train()
        inputs = entry.inputs(SAMPLES)
        row: dict[str, Any] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "measured": False,
            "refused": "",
            "layers": 0,
            "notes": "",
            "identical": None,
            "difference": None,
            "oracle": "",
        }
        _shaken(model)
        try:
            recorder = dmft.Recorder(copy.deepcopy(model), dmft.Probe(inputs), outputs=entry.outputs)
            record = recorder.record()
        except UnsupportedModelError as error:
            return {**row, "refused": " ".join(str(error).split()), "seconds": round(time.perf_counter() - started, 1)}
        row["measured"] = bool(record.ntk.array.isfinite().all())
        row["layers"] = len(record.layers)
        row["notes"] = "; ".join(record.notes)
        row["identical"] = bit_identical(model, inputs, entry.outputs, record.outputs.shape[-1])
        row["oracle"], oracle = jacobian(model, inputs, entry.outputs)
        if oracle is not None:
            row["difference"] = float((record.ntk.array.reshape(oracle.shape) - oracle).norm() / oracle.norm())
        row["seconds"] = round(time.perf_counter() - started, 1)
    return row


def is_right(row: dict[str, Any]) -> bool:
    """Whether everything that was tried came out as it has to."""
    difference = row.get("difference")
    return bool(row.get("measured") and row.get("identical") and difference is not None and difference <= EXACT)


def _shaken(model: nn.Module) -> None:
    """Move parameters away from zeros and ones, at which errors hide: layer scales, gates, last layers."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.02 * torch.randn_like(parameter))


def bit_identical(model: nn.Module, inputs: Any, outputs: Any, count: int) -> bool:
    """Whether training with a recorder leaves the weights, buffers and random numbers that training without one leaves."""
    ends = []
    for recorded in (True, False):
        with seeded(1):
            trained = copy.deepcopy(model)
            run = Runs(trained, outputs)
            optimizer = SGD(trained.parameters(), lr=1e-3, momentum=0.9)
            targets = torch.zeros(SAMPLES, count, dtype=torch.float64)
            recorder = dmft.Recorder(trained, dmft.Probe(inputs, targets), outputs=outputs)
            with recorder.attach(optimizer) if recorded else warnings.catch_warnings():
                for _ in range(STEPS):
                    optimizer.zero_grad()
                    run(inputs).square().mean().backward()
                    optimizer.step()
            state = {name: value for name, value in trained.state_dict().items() if isinstance(value, Tensor)}
            ends.append({**state, "\0random": torch.get_rng_state()})
    first, second = ends
    return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def jacobian(model: nn.Module, inputs: Any, outputs: Any) -> tuple[str, Tensor | None]:
    """The NTK by another way: ``torch.func``, or one backward pass for every output where it cannot follow."""
    model = copy.deepcopy(model)
    try:
        return "torch.func", dmft.empirical_ntk(model, inputs, outputs=outputs, method="jacobian")
    except Exception:
        return "autograd", _by_autograd(model, inputs, outputs)


def _by_autograd(model: nn.Module, inputs: Any, outputs: Any) -> Tensor:
    from torch_dmft.core.undisturbed import undisturbed
    from torch_dmft.measurement.batch_norm import Statistics

    run = Runs(model, outputs)
    statistics = Statistics(model, run, "probe")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with undisturbed(run), statistics.set(run, inputs):
        f = run(inputs)
        rows = [
            torch.cat(
                [
                    torch.zeros(p.numel(), dtype=f.dtype) if g is None else g.flatten().to(f.dtype)
                    for p, g in zip(
                        parameters,
                        torch.autograd.grad(number, parameters, retain_graph=True, allow_unused=True),
                        strict=True,
                    )
                ]
            )
            for number in f.flatten()
        ]
    found = torch.stack(rows)
    return found @ found.T
