"""One TensorBoard run as a file of events: many values of one step at once, every tag with its description."""

from __future__ import annotations

import io
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.summary.writer.record_writer import RecordWriter

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.replacing import path_of


class EventLog:
    """Writes one run, every event at once: a run that is killed loses none, and a full disk is an OSError where it is met.

    Whatever an earlier file of the same run holds from ``start`` on is forgotten by TensorBoard.

    Tags hold no parentheses: the Custom Scalars page reads ``tag (run)`` back by a greedy match, and draws nothing then.

    Args:
        logdir: directory of the run.
        describe: tag -> its description, which TensorBoard shows beside the chart; markdown.
        start: the step from which points of earlier files are forgotten.
    """

    def __init__(self, logdir: str | Path, describe: Callable[[str], str] = lambda tag: "", *, start: int = 0) -> None:
        self._file = _opened(Path(logdir))
        self._writer = RecordWriter(self._file)
        self._describe = describe
        self._described: set[str] = set()
        self._event(start, file_version="brain.Event:2")
        self._event(start, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write the scalars of one step, by tag."""
        self.add(Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]), step)

    def image(self, tag: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Write a picture, ``(height, width, 3)`` bytes."""
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, format="png", compress_level=1)
        height, width, channels = pixels.shape
        image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=encoded.getvalue())
        self.add(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def add(self, summary: Summary, step: int = 0) -> None:
        """Write a summary, and the description of every tag that is new."""
        for value in summary.value:
            text = "" if value.tag in self._described else self._describe(value.tag)
            self._described.add(value.tag)
            if text:
                value.metadata.MergeFrom(SummaryMetadata(summary_description=text))
        self._event(step, summary=summary)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _event(self, step: int, **content: Any) -> None:
        self._writer.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Unbuffered(io.FileIO):
    """A file whose bytes are the system's when ``write`` returns."""

    def write(self, data: Any) -> int:
        """Write all of it."""
        rest = memoryview(data)
        while rest:
            rest = rest[super().write(rest) or 0 :]
        return len(data)


_numbers = count()
"""Tell apart the files that one process writes within a second."""


def _opened(folder: Path) -> _Unbuffered:
    """A new file of a name by which TensorBoard knows it, and after those that were there before."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers):06d}"
    return _Unbuffered(folder / name, "x")


_SHOWN = str.maketrans({"/": "\N{DIVISION SLASH}", "\\": "\N{SET MINUS}", "\0": "\N{SYMBOL FOR NULL}"})
_LONGEST = 200
"""Bytes of a folder's name; file systems take 255."""
OWN = "comparison"
"""The folder of what no single run owns."""


def run_directory(logdir: str | Path, origin: str) -> Path:
    """Where the logs of a run go: one folder inside of ``logdir``, named by its origin.

    Whatever the origin is, it leads nowhere else, and two origins have two folders: separators are replaced by characters that
    look like them, and what cannot be a name (nothing, dots alone, the report's own folder, hundreds of characters) by one that
    can.
    """
    encoded = origin.translate(_SHOWN).encode(errors="replace")
    name = encoded.decode()
    if len(encoded) > _LONGEST:
        name = f"{encoded[:_LONGEST].decode(errors='ignore')}… {sha256(encoded).hexdigest()[:8]}"
    if name.casefold() == OWN or not name.strip(". "):
        name = f"run '{name}'"
    return local(logdir) / name


def local(logdir: str | Path) -> Path:
    """A log directory on this machine's disk, where the records of the DMFT tab are written.

    Raises:
        InvalidInputError: for what is no path, and for an address such as gs://bucket/runs, which would be taken for a folder
            called "gs:".
    """
    folder = path_of(logdir, remedy="a folder, such as runs/demo")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(logdir)):
        raise InvalidInputError(
            "Logs are written to a folder of this machine.",
            got=str(logdir),
            remedy="write to a local folder and copy it there (gsutil rsync, aws s3 sync), or mount the bucket",
        )
    return folder
