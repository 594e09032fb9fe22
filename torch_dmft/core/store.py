"""Trajectories on disk: one ``.npz`` file with the arrays and a JSON header that says what each of them is."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.trajectory import Fields, LayerKernels, Trajectory

SCHEMA = 2
"""Raised whenever a file written now could not be read by the code before."""

_FORMAT = "torch_dmft trajectory"
_HEADER = "header"
_TYPES: dict[str, type] = {kind.__name__: kind for kind in (Trajectory, LayerKernels, Kernel, Fields)}


def save(trajectory: Trajectory, path: str | Path) -> None:
    """Write a trajectory to one file, completely or not at all.

    Args:
        trajectory: what to write; every tensor comes back on the CPU with its dtype and bits.
        path: the file, conventionally ``*.npz``. An existing file is replaced in one step.
    """
    arrays: dict[str, np.ndarray] = {}
    tree = _encode(trajectory, "trajectory", arrays)
    header = {"format": _FORMAT, "schema": SCHEMA, "trajectory": tree}
    path = Path(path)
    # A file of the same folder can be renamed over the old one atomically: a killed run leaves the old file or the new.
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            np.savez(file, **{_HEADER: np.array(json.dumps(header))}, **arrays)  # type: ignore[arg-type]
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def load(path: str | Path) -> Trajectory:
    """Read a trajectory written by ``save``.

    Raises:
        InvalidInputError: if the file is no trajectory, or of a schema this version does not know.
    """
    remedy = "a file written by Trajectory.save"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop(_HEADER)[()]))
    except (KeyError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InvalidInputError("This file is no saved trajectory.", got=f"{path}: {error}", remedy=remedy) from error
    if header.get("format") != _FORMAT:
        raise InvalidInputError("This file is no saved trajectory.", got=str(header.get("format")), remedy=remedy)
    if header["schema"] != SCHEMA:
        raise InvalidInputError(
            f"This file has schema {header['schema']}; this version of torch_dmft reads schema {SCHEMA}.",
            got=str(path),
            remedy="read it with the version of torch_dmft that wrote it",
        )
    return _decode(header["trajectory"], arrays)


def _encode(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """JSON for a value; tensors go to ``arrays`` under the path ``name`` and leave their dtype behind."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        # numpy has no bfloat16: keep the bits as integers
        arrays[name] = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return {"tensor": name, "dtype": str(tensor.dtype).removeprefix("torch.")}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _encode(getattr(value, f.name), f"{name}.{f.name}", arrays) for f in fields(value)}
        return {"type": type(value).__name__, "fields": parts}
    if isinstance(value, tuple):
        return [_encode(item, f"{name}.{index}", arrays) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {"mapping": dict(value)}
    return value


def _decode(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(tree, list):
        return tuple(_decode(item, arrays) for item in tree)
    if not isinstance(tree, dict):
        return tree
    if "mapping" in tree:
        return tree["mapping"]
    if "tensor" in tree:
        tensor = torch.from_numpy(arrays[tree["tensor"]])
        return tensor.view(torch.bfloat16) if tree["dtype"] == "bfloat16" else tensor
    parts = {name: _decode(part, arrays) for name, part in tree["fields"].items()}
    return _TYPES[tree["type"]](**parts)
