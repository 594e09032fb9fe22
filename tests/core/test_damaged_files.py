"""A damaged or foreign file loads equal or is refused."""

from __future__ import annotations

import json
import pickle
import zipfile
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.core.saved import example, loads_equal_or_is_refused, refused, rewrite
from torch_dmft.core import trajectory
from torch_dmft.core.trajectory import Trajectory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def test_members_that_share_their_bytes_are_refused(small: Trajectory, path: Path) -> None:
    """A small file whose list of members names one array many times."""
    small.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        for number in range(1000):
            again = copy(largest)
            again.filename = f"trajectory.{number}.npy"
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
        archive._didModify = True
    refused(path, "larger than the file")


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused(folder: Path, content: bytes) -> None:
    for start in (b"", b"PK\x03\x04"):
        (folder / "random").write_bytes(start + content)
        refused(folder / "random", "saved trajectory")


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_loads_equal_or_is_refused(folder: Path, data: st.DataObject) -> None:
    """Bytes are cut out, put in, or replaced, at several places at once."""
    run = example(torch.Generator().manual_seed(0), nested=False)
    run.save(folder / "damaged")
    content = bytearray((folder / "damaged").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content) - 1))
        end = data.draw(st.integers(start, min(start + 64, len(content))))
        content[start:end] = data.draw(st.binary(max_size=64))
    (folder / "damaged").write_bytes(content)
    loads_equal_or_is_refused(folder / "damaged", run)


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shapes_that_lie_are_refused(folder: Path, data: st.DataObject) -> None:
    """One array of the file has another shape, with all checksums right."""
    run = example(torch.Generator().manual_seed(0))
    path = folder / "lies.npz"
    run.save(path)
    with np.load(path) as file:
        shapes = {name: file[name].shape for name in file.files if name != "header"}
    free = ("fields.preactivation", "fields.gradient", "training")  # neurons are free; numbers may go on after the run
    name = data.draw(st.sampled_from(sorted(name for name in shapes if not any(part in name for part in free))))
    shape = list(shapes[name])
    if shape and data.draw(st.booleans()):
        shape[data.draw(st.integers(0, len(shape) - 1))] += data.draw(st.sampled_from([-1, 1, 2]))
    elif data.draw(st.booleans()):
        shape.insert(data.draw(st.integers(0, len(shape))), data.draw(st.integers(0, 3)))
    else:
        shape = shape[1:]
    layouts = {(2, 3, 3), (2, 3, 2, 3), (2, 3, 2, 3, 2), (2, 3, 2, 2, 3, 2)}  # of kernels, all of them true
    assume(tuple(shape) != shapes[name] and not (name.endswith("array") and tuple(shape) in layouts))
    lie = np.zeros(shape, dtype=_dtype_of(path, name))
    rewrite(path, lambda header, arrays: arrays.update({name: lie}))
    refused(path, r"damaged or incomplete.*(equal|axes|Expected)")


def _dtype_of(path: Path, name: str) -> np.dtype:
    with np.load(path) as file:
        return file[name].dtype


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    for write in (
        lambda: path.write_text("hello"),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
        lambda: np.savez(path, a=np.zeros(3)),
        lambda: np.savez(path, header=np.zeros(3)),
        lambda: np.savez(path, header=np.array("{")),
        lambda: np.savez(path, header=np.array("[1, 2]")),
        lambda: np.savez(path, header=np.array(json.dumps({"format": "something else", "schema": 3}))),
    ):
        write()
        refused(path, "not a saved trajectory")
    np.save(tmp_path / "array.npy", np.zeros(3))
    refused(tmp_path / "array.npy", "not a saved trajectory")
    for write in (
        lambda: torch.save({"a": torch.ones(2)}, path),
        lambda: zipfile.ZipFile(path, "w").writestr("a", "b"),
    ):
        write()
        refused(path, "saved trajectory")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "cannot be read")
    refused(tmp_path / "missing.npz", "does not exist")
    with pytest.raises(FileNotFoundError):
        Trajectory.load(tmp_path / "missing.npz")


def test_nothing_is_unpickled(path: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    path.write_bytes(pickle.dumps(Bomb()))
    refused(path, "not a saved trajectory")
    np.savez(path, header=np.array(Bomb(), dtype=object))
    refused(path, "damaged")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("schema", [2, 99])
def test_another_schema_is_refused(schema: int, run: Trajectory, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectory, "FORMAT", replace(trajectory.FORMAT, schema=schema))
    run.save(path)
    monkeypatch.undo()
    refused(path, f"schema {schema}; this version of torch_dmft reads schema {trajectory.FORMAT.schema}")


def test_a_truncated_file_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "saved trajectory")


def test_a_file_with_a_flipped_bit_loads_equal_or_is_refused(small: Trajectory, path: Path) -> None:
    small.save(path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    tail = whole.index(b"PK\x01\x02")  # where zip keeps its list of members
    spots = [
        *random.integers(0, 400, 100),
        *random.integers(0, len(whole), 100),
        *random.integers(tail, len(whole), 200),
    ]
    loaded = 0
    for spot in spots:
        damaged = bytearray(whole)
        damaged[spot] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        loaded += loads_equal_or_is_refused(path, small)
    assert 0 < loaded < len(spots) / 2  # a date may be wrong


def test_a_file_with_zeroed_bytes_is_refused(run: Trajectory, path: Path) -> None:
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for start in random.integers(0, len(whole) - 64, 300):
        path.write_bytes(whole[:start] + bytes(64) + whole[start + 64 :])
        loads_equal_or_is_refused(path, run)
