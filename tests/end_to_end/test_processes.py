"""Training by several processes: each claim held on both of two, beside the same training in one.

The processes are started once, as importing torch takes most of the time.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs torch.distributed with gloo"
)
Outcome = dict[str, Any]
PROCESSES, STEPS = 2, 3
_SECONDS = 240
"""After which processes that wait for each other are ended."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Outcome]]:
    """What every process found."""
    from tests.end_to_end import processes  # here, as it imports much

    assert (processes.PROCESSES, processes.STEPS) == (PROCESSES, STEPS)
    folder: Path = tmp_path_factory.mktemp("processes")
    running = multiprocessing.spawn(processes.work, args=(str(folder),), nprocs=PROCESSES, join=False)
    until = time.monotonic() + _SECONDS
    while not running.join(timeout=1):
        if time.monotonic() > until:
            for process in running.processes:
                process.kill()
            pytest.fail(f"the processes were not done after {_SECONDS} seconds")
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.fixture(params=range(PROCESSES))
def found(request: pytest.FixtureRequest, outcomes: list[dict[str, Outcome]]) -> dict[str, Outcome]:
    return outcomes[request.param]


def test_replicas_are_recorded_by_all_or_by_the_first(found: dict[str, Any]) -> None:
    expected = {"identical": [True, True], "records": True, "said": ("", ()), "steps": STEPS}
    assert found["replicas"] == expected


def test_an_optimizer_in_parts_is_followed_and_named(found: dict[str, Any]) -> None:
    expected = {"identical": True, "records": True, "said": ("ZeroRedundancyOptimizer", ())}
    assert found["optimizer in parts"] == expected


def test_what_is_inside_of_replicas_is_measured(found: dict[str, Any]) -> None:
    assert found["replicas as they come"] == {"identical": True, "layers": ["0", "3", "5"]}


def test_a_step_of_replicas_sees_the_rows_of_all_processes(found: dict[str, Any]) -> None:
    assert found["rows of replicas"]["all"] == ""
    assert "on the rows noted by this one of several processes" in found["rows of replicas"]["own"]


@pytest.mark.parametrize("what", ["replicas", "module of replicas"])
def test_replicas_that_draw_differently_are_refused(found: dict[str, Any], what: str) -> None:
    assert found[f"wrapped {what}, one seed"] == {"said": "", "right": True}
    refused = found[f"wrapped {what}, two seeds"]
    assert refused["right"]
    assert "Every process must draw the same weights" in refused["said"]
    assert "parameterize before DistributedDataParallel" in refused["said"]


@pytest.mark.parametrize("when", ["before", "after", "of replicas", "before, clipped"])
def test_shards_are_recorded_as_one_network_and_undone_bit_for_bit(found: dict[str, Any], when: str) -> None:
    outcome = dict(found[f"shards {when}"])
    doubt, notes, expected_doubt = outcome.pop("said")
    assert (doubt, notes) == (expected_doubt, ())
    assert bool(doubt) == when.endswith("clipped")  # clipped gradients are found out
    assert outcome.pop("steps") == STEPS
    assert outcome == dict.fromkeys(("identical", "drawn", "records", "look", "rate", "described", "undone"), True)


def test_shards_as_they_come(found: dict[str, Any]) -> None:
    assert found["shards as they come"] == {"records": True, "kernels": True}


def test_shards_are_measured_in_the_precision_in_which_they_are_kept(found: dict[str, Any]) -> None:
    expected = {"identical": True, "precision": "float64", "first": True, "said": ""}
    assert found["shards in low precision"] == expected


def test_shards_are_resumed(found: dict[str, Any]) -> None:
    assert found["shards resumed"] == {"records": True, "notes": ()}


def test_shards_that_draw_differently_are_refused(found: dict[str, Any]) -> None:
    assert "with one seed everywhere" in found["shards of other draws"]["said"]
    assert found["shards of other draws"]["undone"]


def test_tensor_parallelism_is_refused_and_a_copy_is_measured(found: dict[str, Any]) -> None:
    outcome = found["tensor parallel"]
    for said in outcome["said"].values():
        assert (
            "0.weight, 0.bias, 2.weight, 2.bias: spread over processes, none of which computes with the whole" in said
        )
        assert "full_state_dict=True" in said
    assert (outcome["records"], outcome["undone"]) == (True, True)


def test_flattened_parameters_are_refused_and_a_copy_is_measured(found: dict[str, Any]) -> None:
    for said in found["flattened"]["said"].values():
        assert "0.weight, " in said
        assert "flattened and cut into the parts of processes. Remedy: shard it by fully_shard" in said
    assert found["flattened"]["measured"]
