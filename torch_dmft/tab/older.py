"""Logs without records, of an older version or whose records were removed: what their event files hold is shown.

The tags of the event files are the names of numbers in records, so that curves and heatmaps are there; kernels are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.context import RequestContext
from tensorboard.data.provider import DataProvider, RunTagFilter
from tensorboard.errors import PublicError

from torch_dmft.tab.about import About
from torch_dmft.tab.reader import Records
from torch_dmft.tab.runs import Member

_EVERY, _DEVIATION = "Phi moved/0", "Phi alignment/0"
"""Tags that every run has, and every prediction."""
_POINTS = 1000
_PROBLEM = (
    "these logs hold curves only. Kernels, spectra and densities come with comparison.write_tensorboard(logdir), of the "
    "trajectories that were saved."
)


def older_runs(provider: DataProvider | None) -> dict[str, Member]:
    """Runs by their name, whose numbers are read when they are asked for; none without a provider."""
    if provider is None:
        return {}
    try:
        listed = provider.list_scalars(RequestContext(), experiment_id="", plugin_name="scalars")
    except PublicError:  # such as a directory that does not exist yet
        return {}
    ours = {name: tags for name, tags in listed.items() if _EVERY in tags}
    networks = {_parent(name): name for name, tags in ours.items() if _DEVIATION not in tags}
    return {
        name: Member(
            Path(name),
            _about(name, tags, networks.get(_parent(name))),
            (len(tags), max(series.max_step for series in tags.values())),
            partial(_read, provider, name, _about(name, tags, networks.get(_parent(name)))),
        )
        for name, tags in ours.items()
    }


def _about(name: str, tags: Mapping[str, Any], network: str | None) -> About:
    origin = _origin(name)
    count = sum(tag.startswith("Phi moved/") and tag.rpartition("/")[2].isdigit() for tag in tags)
    kind = "network" if _DEVIATION not in tags else "static" if origin.startswith("static") else "theory"
    of = None if kind == "network" or network is None else _origin(network)
    return About(origin, kind, tuple(map(str, range(count))), rows=(), network=of)


def _read(provider: DataProvider, name: str, about: About) -> Records:
    wanted = RunTagFilter(runs=[name])
    table = provider.read_scalars(
        RequestContext(), experiment_id="", plugin_name="scalars", downsample=_POINTS, run_tag_filter=wanted
    ).get(name, {})
    steps = sorted({point.step for points in table.values() for point in points})
    position = {step: at for at, step in enumerate(steps)}
    values = np.full((len(steps), len(table)), np.nan, np.float32)
    for column, points in enumerate(table.values()):
        for point in points:
            values[position[point.step], column] = point.value
    times = np.full(len(steps), np.nan)
    return Records(
        Path(name), about, np.array(steps, np.int64), times, tuple(table), values, problems=tuple(_problems(about))
    )


def _problems(about: About) -> Iterator[str]:
    if about.kind == "network":
        yield _PROBLEM


def _origin(name: str) -> str:
    return name.rpartition("/")[2]


def _parent(name: str) -> str:
    return name.rpartition("/")[0]
