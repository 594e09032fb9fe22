"""Files hold every bit of a trajectory; whatever happens to a file, it loads as it was or is refused in words."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.core.saved import example, refused, rewrite
from torch_dmft.core.errors import InvalidInputError, NotWrittenError
from torch_dmft.core.trajectory import Trajectory


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
