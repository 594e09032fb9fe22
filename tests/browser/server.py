"""TensorBoard as a process of its own, for as long as a block lasts."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def tensorboard(logdir: Path, load_fast: str = "false", *, shows: bytes = b"") -> Iterator[str]:
    """The address of a server, up as long as the block lasts.

    Args:
        logdir: directory of the logs.
        load_fast: ``"true"`` for the Rust reader, ``"false"`` for the Python reader.
        shows: what must be among its runs before it counts as up.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
    server = subprocess.Popen(
        [*command, "--port", str(port), f"--load_fast={load_fast}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{address}/data/runs", timeout=10) as answer:
                    if shows in answer.read():
                        break
            except OSError:
                pass
            assert time.monotonic() < deadline, "TensorBoard does not answer"
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()
