"""Files hold every bit of a trajectory; whatever happens to a file, it loads as it was or is refused in words."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pickle
import re
import stat
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_dmft.core import serial, trajectory
from torch_dmft.core.equality import by_value
from torch_dmft.core.errors import InvalidInputError, NotWrittenError
from torch_dmft.core.kernel import Kernel
from torch_dmft.core.parts import refuse_misfit
from torch_dmft.core.training import Training
from torch_dmft.core.trajectory import Fields, LayerKernels, Trajectory

METADATA = {"width": 64, "gamma0": 0.1 + 0.2, "scheme": "mean_field", "two_time": True, "seed": None}


def example(generator: torch.Generator, dtype: torch.dtype = torch.float32, *, nested: bool = True) -> Trajectory:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    layers = tuple(
        LayerKernels(
            name,
            Kernel(draw(2, 3, 2, 3)),
            Kernel(draw(2, 3, 2, 3, 2)),
            Kernel(draw(2, 3, 2, 3, 2)),
            Fields(torch.tensor([0, 5]), draw(2, 3, 4), draw(2, 3, 2, 4), "tanh") if name == "fc.0" else None,
        )
        for name in ("fc.0", "head")
    )
    losses = draw(2)
    losses[0] = math.nan
    return Trajectory(
        steps=torch.tensor([0, 5]),
        outputs=draw(2, 3, 2),
        losses=losses,
        layers=layers,
        ntk=Kernel(draw(2, 3, 2, 3, 2)),
        origin="theory (N=inf), γ₀ = 0.3",
        training=Training(
            steps=5,
            numbers={"lr": torch.linspace(0.1, 0.3, 5, dtype=torch.float64), "momentum": 0.1 + 0.2},
            exceptions={"head.weight": {"lr": 0.7}},
            frozen=("fc.0.bias",),
            batches=tuple(torch.tensor([step % 2, 0]) for step in range(5)) if nested else None,
        ),
        train=torch.tensor([True, True, False]),
        targets=draw(3, 2) if nested else None,
        stderr=example(generator, nested=False) if nested else None,
        metadata=METADATA,
    )


@pytest.fixture
def run(generator: torch.Generator) -> Trajectory:
    return example(generator)


@pytest.fixture
def path(run: Trajectory, tmp_path: Path) -> Path:
    """A saved run."""
    run.save(tmp_path / "run.npz")
    return tmp_path / "run.npz"


@pytest.fixture
def small(run: Trajectory) -> Trajectory:
    """A run with fewer parts."""
    layers = (replace(run.layers[0], fields=None),)
    return replace(run, layers=layers, stderr=None, training=Training.sgd(torch.ones(5), 5), metadata={"width": 64})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def refused(path: Path, match: str) -> None:
    with pytest.raises(InvalidInputError, match=match) as caught:
        Trajectory.load(path)
    assert " Got: " in str(caught.value)
    assert " Remedy: " in str(caught.value)


def loads_equal_or_is_refused(path: Path, run: Trajectory) -> bool:
    """Whether it loads; any other error than an InvalidInputError fails the test."""
    try:
        again = Trajectory.load(path)
    except InvalidInputError:
        return False
    assert again == run
    return True


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the header and the arrays of a file, whose checksums then are right."""
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(str(arrays.pop("header")))
    change(header, arrays)
    np.savez(path, header=np.array(json.dumps(header)), **arrays)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_round_trip_keeps_every_bit(dtype: torch.dtype, generator: torch.Generator, tmp_path: Path) -> None:
    run = example(generator, dtype)
    run.save(tmp_path / "run.npz")
    again = Trajectory.load(tmp_path / "run.npz")
    assert again == run
    assert (again.outputs.dtype, again.training.numbers["momentum"], again.origin) == (dtype, 0.1 + 0.2, run.origin)
    for mine, other in ((again.outputs, run.outputs), (again.stderr.ntk.array, run.stderr.ntk.array)):
        assert torch.equal(mine.view(torch.uint8), other.view(torch.uint8))
    again.outputs[0] = 1  # its memory is its own


def test_views_are_saved_as_they_look(run: Trajectory, tmp_path: Path) -> None:
    part = run.at_steps(torch.tensor([5]))
    part.save(tmp_path / "run")
    assert Trajectory.load(tmp_path / "run") == part


def test_an_interrupted_save_leaves_the_old_file(run: Trajectory, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(file: Any, **_: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace(run, origin="new").save(path)
    assert list(path.parent.iterdir()) == [path]
    assert Trajectory.load(path) == run


def test_a_full_disk_leaves_the_old_file_and_says_so(
    run: Trajectory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(NotWrittenError, match=r"could not be written.*run\.npz: No space left.*Remedy") as caught:
        replace(run, origin="new").save(path)
    assert isinstance(caught.value, OSError)
    assert list(path.parent.iterdir()) == [path]
    assert Trajectory.load(path) == run


def test_links_are_followed_and_modes_kept(run: Trajectory, path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name, target in (("link.npz", path), ("dangling.npz", tmp_path / "new.npz")):
        (folder / name).symlink_to(target)
        replace(run, origin=name).save(folder / name)
        assert (folder / name).is_symlink()
        assert Trajectory.load(target).origin == name
    path.chmod(0o640)
    run.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(folder.iterdir()) == [folder / "dangling.npz", folder / "link.npz"]


def test_only_a_regular_file_is_replaced_or_read(run: Trajectory, tmp_path: Path) -> None:
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for place, said in (
        (pipe, "Only a regular file.*a pipe"),
        (tmp_path, "Only a regular file.*a folder"),
        (Path(os.devnull), "Only a regular file.*a device"),
        (tmp_path / "no" / "folder.npz", "No such file or directory"),
        (tmp_path / ("x" * 300), "File name too long"),
        (loop, "symbolic links"),
    ):
        with pytest.raises(NotWrittenError, match=said):
            run.save(place)
        refused(place, r"does not exist|cannot be read")
    assert sorted(tmp_path.iterdir()) == [loop, pipe]
    assert pipe.is_fifo()
    with pytest.raises(InvalidInputError, match=r"must be the path of a file.*Got.*Remedy"):
        run.save(f"{tmp_path}/a\0b")
    refused(Path(f"{tmp_path}/a\0b"), "must be the path of a file")


def test_writers_of_one_path_do_not_meet(small: Trajectory, path: Path) -> None:
    """Four threads of one process: each file is whole, and the last one stays."""
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(15):
                small.save(path)
                assert Trajectory.load(path) == small
        except BaseException as error:
            failures.append(error)

    small.save(path)
    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(path.parent.iterdir()) == [path]


def test_threads_that_parse_do_not_make_a_file_damaged(
    small: Trajectory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python before 3.11.8 and 3.12.2 mixes up what threads parse, by chance; numpy parses what an array begins with."""
    real = np.lib.format.read_array_header_1_0
    errors = [SystemError("AST constructor recursion depth mismatch (before=156, after=102)")] * 3

    def read(stream: Any) -> Any:
        if errors and stream.readline():
            raise errors.pop()
        return real(stream)

    small.save(path)
    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", read)
    assert Trajectory.load(path) == small
    assert errors == []
    errors.append(SystemError("something else"))
    refused(path, "SystemError: something else")


def test_bytes_are_on_the_disk_before_the_file_takes_its_name(
    run: Trajectory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, sync, rename = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), sync(handle)))
    monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("rename"), rename(self, target)))
    run.save(path)
    assert done[:2] == ["sync", "rename"]


def test_arrays_that_nobody_needs_are_not_read(small: Trajectory, path: Path) -> None:
    small.save(path)
    rewrite(path, lambda header, arrays: arrays.update(more=np.zeros(2**25)))
    tracemalloc.start()
    refused(path, "does not know the array 'more'")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    small.save(path)
    with np.load(path) as file:
        arrays = {**file, "more": np.zeros(2**25)}
    np.savez_compressed(path, **arrays)
    tracemalloc.start()
    refused(path, "not stored as it was written")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda arrays: arrays["trajectory.steps"].__setitem__(1, -5), "integers from 0 on"),
        (lambda arrays: arrays["trajectory.training.batches.1"].__setitem__(0, -1), "rows"),
        (
            lambda arrays: arrays.update({"trajectory.training.numbers.0": np.zeros(3)}),
            "lr is one number for each of 5",
        ),
    ],
)
def test_numbers_that_cannot_be_are_refused(change: Callable[[dict[str, Any]], None], reason: str, path: Path) -> None:
    rewrite(path, lambda header, arrays: change(arrays))
    refused(path, f"damaged or incomplete.*{reason}")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda fields: fields["training"]["fields"].update(gamma0=-5.0), "gamma0 must be a finite number > 0"),
        (lambda fields: fields["training"]["fields"].update(gamma0=math.inf), "gamma0 must be a finite number > 0"),
        (lambda fields: fields["training"]["fields"].update(steps=6), "each of 6 steps"),
        (lambda fields: fields["training"]["fields"].update(steps=-1), "steps must be an integer >= 0"),
        (lambda fields: fields.update(width=-3), "width is at least 1"),
        (lambda fields: fields["layers"][0]["fields"].update(width=0), "width of 'fc.0' is at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: Callable[[dict[str, Any]], None], reason: str, path: Path) -> None:
    rewrite(path, lambda header, arrays: change(header["value"]["fields"]))
    refused(path, f"damaged or incomplete.*{reason}")


@pytest.mark.parametrize("kind", ["complex64", "bool", "int64", "float32"])
@pytest.mark.parametrize("name", ["steps", "outputs", "losses", "train", "targets", "ntk.array"])
def test_numbers_of_a_kind_that_cannot_be_are_refused(name: str, kind: str, small: Trajectory, path: Path) -> None:
    """And those that can be are read: whole outputs, for instance."""
    known = {"steps": {"int64"}, "train": {"bool"}}.get(name, {"int64", "float32"})
    small.save(path)
    name = f"trajectory.{name}"

    def change(header: dict[str, Any], arrays: dict[str, Any]) -> None:
        arrays[name] = arrays[name].astype(kind)
        text = json.dumps(header).replace(
            f'"tensor": "{name}", "dtype": "{_dtype_in(header, name)}"', f'"tensor": "{name}", "dtype": "{kind}"'
        )
        header.update(json.loads(text))

    rewrite(path, change)
    if kind in known:
        str(Trajectory.load(path))
    else:
        refused(path, r"damaged or incomplete.*(integers from 0|real|bools|complex)")


def _dtype_in(header: dict[str, Any], name: str) -> str:
    found = re.search(rf'"tensor": "{re.escape(name)}", "dtype": "(\w+)"', json.dumps(header))
    assert found
    return found[1]


def test_bools_that_are_neither_are_refused(small: Trajectory, path: Path) -> None:
    small.save(path)

    def change(header: dict[str, Any], arrays: dict[str, Any]) -> None:
        arrays["trajectory.train"].view(np.uint8)[0] = 2

    rewrite(path, change)
    refused(path, "neither true nor false")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda fields: fields.update(origin="\ud800"), r"origin is text that can be written.*ud800"),
        (lambda fields: fields["layers"][0]["fields"].update(name="a\udfff"), r"name of weight 0 is text"),
        (lambda fields: fields["training"]["fields"].update(loss="\ud800"), r"loss is text"),
        (lambda fields: fields["training"]["fields"].update(steps=10**20), r"steps=an integer of 67 bits"),
    ],
)
def test_texts_and_counts_that_nobody_can_use_are_refused(
    change: Callable[[dict[str, Any]], None], reason: str, path: Path, small: Trajectory
) -> None:
    small.save(path)
    rewrite(
        path,
        lambda header, arrays: (arrays.pop("trajectory.training.numbers.0", None), change(header["value"]["fields"])),
    )
    refused(path, f"damaged or incomplete.*{reason}")


@pytest.mark.parametrize("number", ["much", None, torch.zeros(5, dtype=torch.complex64)])
@pytest.mark.parametrize("place", ["numbers", "exceptions"])
def test_settings_that_are_no_numbers_are_refused(place: str, number: Any, small: Trajectory) -> None:
    numbers = {"lr": number}  # put there behind the checks of annotations
    object.__setattr__(small.training, place, numbers if place == "numbers" else {"fc.0.weight": numbers})
    with pytest.raises(InvalidInputError, match=r"lr is a number, or one for each step.*Got"):
        refuse_misfit(small)


def test_a_file_that_may_not_grow_leaves_the_old_one(path: Path, run: Trajectory) -> None:
    """A limit of the system in the place of a full disk."""
    code = (
        "import resource, sys; from torch_dmft.core.errors import NotWrittenError; "
        "from torch_dmft.core.trajectory import Trajectory; run = Trajectory.load(sys.argv[1]); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try: run.save(sys.argv[1])\nexcept NotWrittenError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert re.search(r"could not be written; what stood there before is unchanged.*File too large", done.stdout)
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr
    assert list(path.parent.iterdir()) == [path]
    assert Trajectory.load(path) == run


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


def test_every_array_is_needed(path: Path) -> None:
    whole = path.read_bytes()
    with np.load(path) as file:
        names = [name for name in file.files if name != "header"]
    assert len(names) > 20
    for name in names:
        path.write_bytes(whole)
        rewrite(path, lambda header, arrays, name=name: arrays.pop(name))
        refused(path, f"damaged or incomplete.*{name}' is missing")
    path.write_bytes(whole)
    rewrite(path, lambda header, arrays: arrays.update(more=np.zeros(2)))
    refused(path, "does not know the array 'more'")


def test_every_field_of_the_header_is_needed(path: Path) -> None:
    whole = path.read_bytes()
    for name in trajectory.Trajectory.__dataclass_fields__:
        path.write_bytes(whole)
        rewrite(path, lambda header, arrays, name=name: header["value"]["fields"].pop(name))
        refused(path, f"damaged or incomplete.*`trajectory` lacks '{name}'")
    for key, reason in (("format", "not a saved trajectory"), ("schema", "no schema"), ("value", "lacks 'value'")):
        path.write_bytes(whole)
        rewrite(path, lambda header, arrays, key=key: header.pop(key))
        refused(path, reason)


def test_every_value_of_the_header_has_its_type(small: Trajectory, path: Path) -> None:
    """Each value and each branch of the JSON is replaced by values of all other types."""
    small.save(path)
    with np.load(path) as file:
        arrays = dict(file)
    text = str(arrays.pop("header"))
    spots = list(places(json.loads(text)))
    assert len(spots) > 50
    for spot in spots:
        for other in (None, 7, "x", [1], {}, {"tensor": "x", "dtype": "float32"}):
            header = json.loads(text)
            put(header, spot, other)
            np.savez(path, header=np.array(json.dumps(header)), **arrays)
            with contextlib.suppress(InvalidInputError):
                again = Trajectory.load(path)  # only another value of the same type is taken for one
                again.save(path)
                assert Trajectory.load(path) == again


def places(tree: Any, start: tuple[Any, ...] = ()) -> Any:
    if start:
        yield start
    for key, branch in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(branch, (*start, key))


def put(tree: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        tree = tree[key]
    tree[place[-1]] = value


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda fields: fields["training"]["fields"].update(gamma0="x"),
            "`trajectory.training.gamma0` must not be of type str",
        ),
        (
            lambda fields: fields["training"]["fields"].update(steps=True),
            "`trajectory.training.steps` must not be of type bool",
        ),
        (
            lambda fields: fields["training"]["fields"].update(numbers=1),
            "`trajectory.training.numbers` must not be of type int",
        ),
        (lambda fields: fields.update(origin=3), "`trajectory.origin` must not be of type int"),
        (lambda fields: fields.update(outputs=None), "`trajectory.outputs` must not be of type NoneType"),
        (
            lambda fields: fields.update(outputs={"type": "Kernel", "fields": {"array": 1}}),
            "`trajectory.outputs.array` must not be of type int",
        ),
        (
            lambda fields: fields.update(ntk=fields["layers"]),
            "`trajectory.ntk.0.forward.array` is said to be in the array 'trajectory.layers.0.forward.array'",
        ),
        (lambda fields: fields.update(layers=[1]), "`trajectory.layers` must not be of type tuple"),
        (lambda fields: fields["ntk"].update(type="Popen"), "`trajectory.ntk` is of an unknown type 'Popen'"),
        (lambda fields: fields.update(extra=1), "`trajectory` has an unknown field 'extra'"),
        (lambda fields: fields["outputs"].update(dtype="float64"), "`trajectory.outputs` must be of dtype float64"),
        (lambda fields: fields["outputs"].update(dtype="int32"), "`trajectory.outputs` must be of dtype int32"),
        (lambda fields: fields["outputs"].update(dtype="load"), "`trajectory.outputs` must be of dtype load"),
        (
            lambda fields: fields["losses"].update(tensor="trajectory.train"),
            "`trajectory.losses` is said to be in the array 'trajectory.train'",
        ),
        (lambda fields: fields.update(targets=None), "does not know the array 'trajectory.targets'"),
    ],
)
def test_what_is_wrong_is_said(change: Callable[[dict[str, Any]], None], reason: str, path: Path) -> None:
    rewrite(path, lambda header, arrays: change(header["value"]["fields"]))
    refused(path, reason)


def test_arrays_that_do_not_fit_together_are_refused(path: Path) -> None:
    rewrite(path, lambda header, arrays: arrays.update({"trajectory.losses": np.zeros(3, np.float32)}))
    refused(path, "damaged or incomplete.*must have equal lengths")
    rewrite(path, lambda header, arrays: arrays.update({"trajectory.ntk.array": np.zeros(3, np.float32)}))
    refused(path, "damaged or incomplete.*3 to 6 axes")


@dataclass(frozen=True)
class Leaf:
    number: int
    facts: Mapping[Any, Any]


@by_value
@dataclass(frozen=True)
class Tree:
    leaves: tuple[Leaf, ...]
    first: Leaf | None = None


@dataclass(frozen=True)
class Stranger:
    number: int


TREES = serial.FileFormat("trees", 1, root=Tree, parts=(Leaf,))


def test_any_registered_dataclass_goes_to_a_file(tmp_path: Path) -> None:
    tree = Tree((Leaf(1, {"a": "b"}), Leaf(2, {"leaf": Leaf(3, {}), "infinite": math.inf})), first=Leaf(4, {}))
    serial.write(tree, tmp_path / "tree", TREES)
    assert serial.read(tmp_path / "tree", TREES) == tree
    with pytest.raises(InvalidInputError, match=r"not a saved trajectory.*Trajectory\.save"):
        Trajectory.load(tmp_path / "tree")


def test_mappings_hold_tensors_tuples_and_mappings(tmp_path: Path) -> None:
    facts = {"lr": torch.tensor(0.1), "widths": (8, 16), "a.b": {"c": torch.arange(3)}, "a": {"b": torch.ones(())}}
    facts |= {3: math.nan, None: [1, None, "x"], "numpy": np.int64(3), "single": np.float32(0.1), "/": torch.ones(0, 3)}
    tree = Tree((Leaf(1, facts),))
    serial.write(tree, tmp_path / "tree", TREES)
    again = serial.read(tmp_path / "tree", TREES)
    assert again == tree
    (leaf,) = again.leaves
    assert list(leaf.facts) == list(facts)
    assert (type(leaf.facts["widths"]), type(leaf.facts[None]), type(leaf.facts["numpy"])) == (tuple, list, int)


def test_what_cannot_be_saved_is_named_and_leaves_the_old_file(tmp_path: Path) -> None:
    path, tree = tmp_path / "tree", Tree((Leaf(1, {}),))
    serial.write(tree, path, TREES)
    for wrong, name in (
        (Tree((Leaf(1, {"a": {"loss": len}}),)), "tree.leaves.0.facts.0.0"),
        (Tree((Leaf(1, {(1, 2): 3}),)), "tree.leaves.0.facts"),
        (Tree((Leaf(1, {"z": 1j}),)), "tree.leaves.0.facts.0"),
        (Tree((Leaf(1, {"a": Stranger(1)}),)), "tree.leaves.0.facts.0"),
        (Tree((Leaf(1.5, {}),)), "tree.leaves.0.number"),
        (Tree([Leaf(1, {})]), "tree.leaves"),
    ):
        with pytest.raises(InvalidInputError, match=f"`{name}` cannot be saved.*Got.*Remedy"):
            serial.write(wrong, path, TREES)
    with pytest.raises(InvalidInputError, match="must be a Tree"):
        serial.write(Stranger(1), path, TREES)
    assert serial.read(path, TREES) == tree
    assert list(tmp_path.iterdir()) == [path]
