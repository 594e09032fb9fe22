"""One TensorBoard run as a file of events: many values of one step at once, every tag with its description."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from torch.utils.tensorboard import FileWriter


class EventLog:
    """Writes one run; whatever an earlier file of the same run holds from ``start`` on is forgotten by TensorBoard.

    Tags hold no parentheses: the Custom Scalars page reads ``tag (run)`` back by a greedy match, and draws nothing then.

    Args:
        logdir: directory of the run.
        describe: tag -> its description, which TensorBoard shows beside the chart; markdown.
        start: the step from which points of earlier files are forgotten.
    """

    def __init__(self, logdir: str | Path, describe: Callable[[str], str] = lambda tag: "", *, start: int = 0) -> None:
        self._writer = FileWriter(str(logdir))
        self._describe = describe
        self._described: set[str] = set()
        self._writer.add_event(Event(file_version="brain.Event:2"), start)
        self._writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), start)

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
        self._writer.add_summary(summary, step)

    def flush(self) -> None:
        """Bring everything that was written to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def run_directory(logdir: str | Path, origin: str) -> Path:
    """Where the logs of a run go: a folder named by its origin."""
    return Path(logdir) / origin.replace("/", "-")
