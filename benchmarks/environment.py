"""Where a benchmark ran: the facts without which a time means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

import torch_dmft

ROOT = Path(__file__).parents[1]


def environment() -> dict[str, str | int | float]:
    """Plain facts of machine, software and moment."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "torch_dmft": torch_dmft.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": _cpu(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0,
    }


def _commit() -> str:
    """The commit that is checked out, marked if tracked files differ from it, apart from results that an earlier run wrote."""

    def git(*arguments: str) -> str:
        shown = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return shown.stdout.strip()

    try:
        changed = git("diff", "--name-only", "HEAD", "--", ".", ":(exclude)benchmarks/results")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
