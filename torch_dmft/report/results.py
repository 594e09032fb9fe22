"""Results on disk, each as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOBase
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from torch_dmft.core.errors import NotWrittenError
from torch_dmft.core.replacing import replacing


class Printout:
    """A text file that is written to as long as it takes it: a full disk ends the log of a run, and not the run.

    Args:
        file: what is written to, such as ``sys.stdout``.

    Attributes:
        error: why it took no more, None if it took everything.
    """

    def __init__(self, file: TextIOBase) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write, if that is possible."""
        with self._kept():
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand over to the system what was written."""
        with self._kept():
            self._file.flush()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def require_printed(console: Console) -> None:
    """Refuse to end as if everything had been printed.

    Raises:
        NotWrittenError: if the console's ``Printout`` lost something.
    """
    printout = console.file
    if isinstance(printout, Printout) and printout.error:
        raise NotWrittenError(
            "Not everything could be printed; all else is done.",
            got=printout.error.strerror or str(printout.error),
            remedy="send the output to a disk that has room, or to a terminal",
        )


class Results:
    """Keeps what a long run finishes, at once; what the disk does not take is told, and the run goes on.

    Args:
        folder: where results go.
        console: where it is told.

    Attributes:
        lost: names of what could not be written.
    """

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder, self.console = folder, console
        self.lost: list[str] = []

    def keep(self, name: str, write: Callable[[Path], object]) -> None:
        """Write one result.

        Args:
            name: of the file or folder.
            write: what writes it, to the path it is given.
        """
        try:
            write(self.folder / name)
        except OSError as error:
            self.lost.append(name)
            self.console.print(Text(f"{name} could not be written: {error}", style="yellow"))

    def figure(self, name: str, figure: Figure) -> None:
        """Write a figure as a picture."""

        def write(path: Path) -> None:
            with replacing(path) as file:
                figure.savefig(file, format="png", dpi=150)

        self.keep(name, write)

    def require_all(self) -> None:
        """Refuse to end as if everything had been kept.

        Raises:
            NotWrittenError: if something was not; the message lists it.
        """
        if self.lost:
            raise NotWrittenError(
                "Some results could not be written; all others are there.",
                got=", ".join(self.lost),
                remedy="make room, or choose another folder by --logdir, and run again",
            )
        require_printed(self.console)
