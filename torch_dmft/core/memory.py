"""Refuse allocations that would not fit in memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import psutil
import torch

from torch_dmft.core.errors import InsufficientMemoryError

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

_PROCESS_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_TRIFLE = 2**26
_looked = [-math.inf, math.inf]
"""When control groups were last read for a small request, and what they allowed."""


def require_memory(needed: int, device: torch.device, *, what: str, remedy: str | Callable[[], str]) -> None:
    """Check an estimate against the free memory.

    Args:
        needed: the bytes about to be allocated.
        device: where.
        what: what needs the memory, for the message.
        remedy: how to need less, or what finds that out.

    Raises:
        InsufficientMemoryError: if more is needed than is free; the message has both numbers.
    """
    if _was_plenty(needed, device):
        return
    free = free_memory(device)
    if needed > free:
        raise InsufficientMemoryError(
            f"{what} needs about {needed / 2**30:.1f} GiB of memory.",
            got=f"{free / 2**30:.1f} GiB free",
            remedy=remedy if isinstance(remedy, str) else remedy(),
        )


def _was_plenty(needed: int, device: torch.device) -> bool:
    """Whether the request is small against what was free a moment ago, as finding that out is slow."""
    if device.type == "cuda" or needed > _TRIFLE:
        return False
    now = time.monotonic()
    if now - _looked[0] > 1.0:
        _looked[:] = now, float(free_memory(device))
    return needed * 16 < _looked[1]


def free_memory(device: torch.device) -> int:
    """The bytes that can be allocated on a device now.

    On a CUDA device that is what the driver has free and what torch's allocator holds without using it. Elsewhere it is what
    the machine has available, or less where the control group of the process (a container's, a batch job's) allows less.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    allowed = control_group_free(_PROCESS_GROUPS, _GROUPS), address_space_free()
    return min([psutil.virtual_memory().available, *(one for one in allowed if one is not None)])


def address_space_free() -> int | None:
    """The bytes by which the process may grow before it meets its limit of addresses (``ulimit -v``); None without one."""
    if resource is None:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else max(0, limit - psutil.Process().memory_info().vms)


def control_group_free(process_groups: Path, groups: Path) -> int | None:
    """The bytes that a process may still allocate before it meets the limit of a control group it is in, of either version.

    A group uses what it has allocated, without the cached files that the kernel drops first (``inactive_file``).

    Args:
        process_groups: the file that lists the groups of the process, ``/proc/self/cgroup``.
        groups: where the groups are mounted, ``/sys/fs/cgroup``.

    Returns:
        The least over the groups and their parents; None if no limit can be read.
    """
    free = [_free_v1(group) for group in _folders(process_groups, "memory", [groups / "memory"])]
    free += [_free_v2(group) for group in _folders(process_groups, "", [groups, groups / "unified"])]
    return min((bytes_free for bytes_free in free if bytes_free is not None), default=None)


def _folders(process_groups: Path, controller: str, mounts: list[Path]) -> Iterator[Path]:
    """The folders of the process's group in one hierarchy and of all its parents.

    A container may see the path that its group has on the host while its own group is mounted as the root; the folders that
    are not there then are skipped by whoever reads them, and the root is always among them.
    """
    for line in (_text(process_groups) or "").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controller in controllers.split(","):
            inside = PurePosixPath(*(part for part in PurePosixPath(path).parts if part not in ("/", "..")))
            for mount in mounts:
                yield from (mount / part for part in (inside, *inside.parents))


def _free_v1(group: Path) -> int | None:
    return _free(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _free_v2(group: Path) -> int | None:
    return _free(group, "memory.max", "memory.current", "inactive_file")


def _free(group: Path, limit_name: str, used_name: str, reclaimable_name: str) -> int | None:
    limit, used = _number(_text(group / limit_name)), _number(_text(group / used_name))
    if limit is None or used is None:
        return None  # no limit ("max"), or nothing to read
    statistics = dict(
        line.split(maxsplit=1) for line in (_text(group / "memory.stat") or "").splitlines() if " " in line
    )
    reclaimable = _number(statistics.get(reclaimable_name)) or 0
    return max(0, limit - max(0, used - reclaimable))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return None
