"""Results on disk, each as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from torch_dmft.core.errors import NotWrittenError
from torch_dmft.core.replacing import replacing


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
