"""A file that is replaced in one step: completely or not at all, whoever else writes it and whenever the process ends."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from torch_dmft.core.errors import InvalidInputError, NotWrittenError


def path_of(path: str | os.PathLike[str], *, remedy: str) -> Path:
    """A path as ``pathlib`` has it.

    Args:
        path: what a user gave.
        remedy: for the message.

    Raises:
        InvalidInputError: if it is none, is empty, or holds a null character, which no file system knows.
    """
    if not isinstance(path, str | os.PathLike) or not os.fsdecode(path) or "\0" in os.fsdecode(path):
        got = repr(path) if isinstance(path, str | os.PathLike) else type(path).__name__
        raise InvalidInputError("This must be the path of a file or folder.", got=got, remedy=remedy)
    return Path(os.fsdecode(path))


@contextmanager
def writing(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Name the folder in an error of the file system in the body, which writes into it.

    Raises:
        NotWrittenError: in place of that error.
    """
    try:
        yield
    except NotWrittenError:
        raise
    except OSError as error:
        raise NotWrittenError(
            f"Nothing more could be written to {os.fspath(folder)!r}.",
            got=f"{error.filename or folder}: {error.strerror or error}",
            remedy="a folder that may be written to and has room",
        ) from error


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of ``path`` at the end of the body, and is gone if that raises.

    It has a name of its own beside the target until then, so that two writers of one path do not meet: the later one's
    file stays. Its bytes are on the disk before it is renamed. Links are followed, and the mode of an existing file is kept.

    Args:
        path: the file, in an existing folder.

    Raises:
        InvalidInputError: if it is no path.
        NotWrittenError: if the target is a folder, a device or a pipe, or for any error of the file system, a full disk
            among them; whatever stood there is unchanged then.
    """
    target = path_of(path, remedy="a file in an existing folder")
    try:
        target = Path(os.path.realpath(target))
        mode = (
            target.stat().st_mode if target.exists() or target.is_symlink() else None
        )  # a link that leads nowhere raises
        if mode is not None and not stat.S_ISREG(mode):
            raise NotWrittenError(
                "Only a regular file can be replaced.", got=f"{path}, {_kind(mode)}", remedy="the path of a file"
            )
        # Of one folder, so that it can be renamed over the old one atomically.
        scratch = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}")
        try:
            with scratch.open("xb") as file:
                if mode is not None:
                    os.chmod(file.fileno() if os.chmod in os.supports_fd else scratch, stat.S_IMODE(mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(target)
        finally:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
    except NotWrittenError:
        raise
    except OSError as error:
        raise NotWrittenError(
            "The file could not be written; what stood there before is unchanged.",
            got=f"{path}: {error.strerror or error}",
            remedy="a folder that exists, may be written to and has room",
        ) from error
    _sync_folder(target.parent)


def _kind(mode: int) -> str:
    kinds = {"a folder": stat.S_ISDIR, "a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return next((kind for kind, is_one in kinds.items() if is_one(mode)), "a device")


def _sync_folder(folder: Path) -> None:
    """Bring the new name to the disk too, where folders can be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
