"""The Custom Scalars page in a real browser: every chart that is open has a line for every run, and nothing is thrown."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Page, sync_playwright

from torch_dmft.comparison import Comparison

pytestmark = pytest.mark.browser

_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
_CHARTS = """() => {
    const every = (root, name) => [...root.querySelectorAll('*')].flatMap(
        e => [...(e.localName === name ? [e] : []), ...(e.shadowRoot ? every(e.shadowRoot, name) : [])]);
    const paths = root => [...root.querySelectorAll('*')].flatMap(
        e => [...(e.localName === 'path' ? [e] : []), ...(e.shadowRoot ? paths(e.shadowRoot) : [])]);
    const title = card => (card.shadowRoot.querySelector('h1') || card.shadowRoot.firstElementChild).textContent.trim();
    return ['tf-custom-scalar-multi-line-chart-card', 'tf-custom-scalar-margin-chart-card'].flatMap(
        name => every(document, name).map(card => ({
            title: card.getAttribute('title') || card.title || card._titleDisplayString || title(card),
            lines: paths(card.shadowRoot).filter(p => /^M[^A-Za-z]+L/.test(p.getAttribute('d') || '')
                && p.closest('.plot, .line-plot, g')).length,
        })));
}"""


_LINES = {
    "loss": 8,
    "loss, log10": 8,
    "loss, with band": 11,
    "NTK alignment": 6,
    "NTK relative error": 6,
    "Phi moved, weight 1": 8,
}
"""Some charts and their lines: two of the axes, then two for each run (as it is, and smoothed), and one for each band."""


@contextmanager
def tensorboard(logdir: Path, load_fast: str) -> Iterator[str]:
    """The address of a server, up as long as the block lasts."""
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
                    if b"comparison" in answer.read():
                        break
            except OSError:
                pass
            assert time.monotonic() < deadline, "TensorBoard does not answer"
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def browser_page() -> Iterator[Page]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_FLAGS)
        yield browser.new_page(viewport={"width": 1280, "height": 1200})
        browser.close()


@pytest.mark.parametrize("load_fast", ["true", "false"], ids=["rust reader", "python reader"])
def test_every_chart_has_a_line_for_every_run(comparison: Comparison, browser_page, tmp_path, load_fast):
    comparison.write_tensorboard(tmp_path)
    thrown: list[str] = []
    browser_page.on("pageerror", lambda error: thrown.append(str(error)))
    browser_page.on("console", lambda message: thrown.append(message.text) if message.type == "error" else None)
    with tensorboard(tmp_path, load_fast) as address:
        browser_page.goto(f"{address}/#custom_scalars")
        deadline = time.monotonic() + 60
        charts: dict[str, int] = {}
        while not all(charts.get(title, 0) >= count for title, count in _LINES.items()) and time.monotonic() < deadline:
            time.sleep(1)
            charts = {chart["title"]: chart["lines"] for chart in browser_page.evaluate(_CHARTS)}
        if artefacts := os.environ.get("ARTEFACTS"):
            browser_page.screenshot(path=f"{artefacts}/custom-scalars-{load_fast}.png", timeout=180_000)
        browser_page.close()  # before the server is gone
    assert {title: charts.get(title) for title in _LINES} == _LINES
    assert thrown == []
