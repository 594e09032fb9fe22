"""What is free: the least of the machine's memory and of every limit the process is under, in made-up trees of groups."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from torch_dmft.core import memory
from torch_dmft.core.errors import InsufficientMemoryError
from torch_dmft.core.memory import control_group_free, free_memory, require_memory

CPU = torch.device("cpu")


class Groups:
    """A tree of control groups of which each has a limit, a use and files that can be dropped."""

    def __init__(self, folder: Path) -> None:
        self.list, self.root = folder / "cgroup", folder / "groups"

    def process_is_in(self, *lines: str) -> None:
        self.list.write_text("".join(f"{line}\n" for line in lines))

    def v2(self, group: str, limit: object, used: object, inactive: int = 0, active: int = 0) -> None:
        statistics = f"anon 5\ninactive_file {inactive}\nactive_file {active}\n"
        self._write(group, {"memory.max": limit, "memory.current": used, "memory.stat": statistics})

    def v1(self, group: str, limit: object, used: object, inactive: int = 0) -> None:
        statistics = f"cache 7\ninactive_file 1\ntotal_inactive_file {inactive}\n"
        names = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": statistics}
        self._write(f"memory/{group}", names)

    def _write(self, group: str, files: dict[str, object]) -> None:
        folder = self.root / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(f"{content}\n")

    def free(self) -> int | None:
        return control_group_free(self.list, self.root)


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    return Groups(tmp_path)


def test_version_2_counts_what_is_used_without_the_files_that_can_be_dropped(groups: Groups) -> None:
    groups.process_is_in("0::/job")
    groups.v2("job", 1000, 700, inactive=200, active=90)
    assert groups.free() == 500


def test_version_1_counts_the_files_of_its_children_too(groups: Groups) -> None:
    groups.process_is_in("9:name=systemd:/", "8:cpu,cpuacct:/other", "4:memory:/job", "0::/")
    groups.v1("job", 1000, 700, inactive=200)
    assert groups.free() == 500


def test_a_controller_may_share_its_hierarchy(groups: Groups) -> None:
    groups.process_is_in("4:blkio,memory:/job")
    groups.v1("job", 1000, 400)
    assert groups.free() == 600


def test_the_tightest_parent_counts(groups: Groups) -> None:
    groups.process_is_in("0::/a/b/c")
    groups.v2("a/b/c", "max", 10)
    groups.v2("a/b", 1000, 100)
    groups.v2("a", 1000, 800)
    groups.v2("a/other", 10, 10)
    assert groups.free() == 200


def test_both_versions_at_once(groups: Groups) -> None:
    groups.process_is_in("4:memory:/job", "0::/job")
    groups.v1("job", 1000, 400)
    groups.v2("unified/job", 1000, 700)
    assert groups.free() == 300


@pytest.mark.parametrize("line", ["0::/docker/0123abcd", "0::/", "0::/../../elsewhere"])
def test_a_container_whose_own_group_is_the_root(line: str, groups: Groups) -> None:
    groups.process_is_in(line)
    groups.v2(".", 1000, 900)
    assert groups.free() == 100


def test_a_path_from_the_host_in_version_1(groups: Groups) -> None:
    groups.process_is_in("4:memory:/docker/0123abcd")
    groups.v1(".", 1000, 900)
    assert groups.free() == 100


def test_more_used_than_allowed_is_nothing_free(groups: Groups) -> None:
    groups.process_is_in("0::/job")
    groups.v2("job", 1000, 1500)
    assert groups.free() == 0
    groups.v2("job", 1000, 100, inactive=400)  # numbers of different moments
    assert groups.free() == 1000


def test_without_a_limit_nothing_is_said(groups: Groups, tmp_path: Path) -> None:
    assert groups.free() is None  # no such files: not Linux
    groups.process_is_in("", "nonsense", "0::", "0::/job")
    assert groups.free() is None
    groups.v2("job", "max", 700)
    assert groups.free() is None
    for limit, used in (("", 700), (1000, "?"), ("-5", 700)):
        groups.v2("job", limit, used)
        assert groups.free() is None
    (tmp_path / "groups/job/memory.max").write_bytes(b"\xff\xfe")
    assert groups.free() is None
    groups.list.unlink()
    groups.list.mkdir()
    assert groups.free() is None


def test_statistics_are_not_needed(groups: Groups) -> None:
    groups.process_is_in("0::/job")
    groups.v2("job", 1000, 700)
    for content in ("", "inactive_file\n", "inactive_file many\n"):
        (groups.root / "job/memory.stat").write_text(content)
        assert groups.free() == 300
    (groups.root / "job/memory.stat").unlink()
    assert groups.free() == 300


def test_the_smaller_of_machine_and_group_counts(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROCESS_GROUPS", groups.list)
    monkeypatch.setattr(memory, "_GROUPS", groups.root)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=500))
    assert free_memory(CPU) == 500
    groups.process_is_in("0::/job")
    groups.v2("job", 1000, 100)
    assert free_memory(CPU) == 500
    groups.v2("job", 1000, 700)
    assert free_memory(CPU) == 300
    require_memory(300, CPU, what="It", remedy="less")
    with pytest.raises(InsufficientMemoryError, match=r"It needs about 2\.0 GiB.*0\.0 GiB free.*less"):
        require_memory(2**31, CPU, what="It", remedy="less")


def test_what_torch_has_cached_is_free_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 10_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4200)
    assert free_memory(torch.device("cuda", 0)) == 900
    with pytest.raises(InsufficientMemoryError):
        require_memory(901, torch.device("cuda", 0), what="It", remedy="less")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_given_back_to_torch_is_free_again() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    before = free_memory(device)
    block = torch.empty(2**28, dtype=torch.uint8, device=device)
    assert abs(before - free_memory(device) - 2**28) < 2**26
    del block
    assert abs(before - free_memory(device)) < 2**26


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_a_limit_of_addresses_is_met_by_a_refusal_and_not_by_a_crash() -> None:
    """In a process of its own: what does not fit is refused, what fits is allocated."""
    code = """
import resource, psutil, torch
from torch_dmft.core.errors import InsufficientMemoryError
from torch_dmft.core.memory import free_memory, require_memory
cpu, room = torch.device("cpu"), 2**29
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + room, resource.RLIM_INFINITY))
assert 0.9 * room < free_memory(cpu) <= room, free_memory(cpu)
try:
    require_memory(2**30, cpu, what="It", remedy="less")
except InsufficientMemoryError:
    held = torch.ones(int(0.7 * room), dtype=torch.uint8, device="cpu")
    assert free_memory(cpu) < 0.4 * room, free_memory(cpu)
    print("refused", end="")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "refused", run.stderr
